"""Writes moco.npz: steps of facebookresearch/moco and moco-v3, and LARC's.

Run where torch, torchvision and timm 0.3.2 are installed, with checkouts of the
authors' code and of NVIDIA/apex as it was before it dropped `LARC.py`:

  python tests/fidelity/make_moco.py MOCO MOCO_V3 APEX

Each method does three steps of SGD on a small network of two layers under the
authors' head; stored are the inputs, the start, the losses and the end.
"""

import importlib.util
import os
import sys

import numpy as np
import torch
from torch import nn

MOCO, MOCO_V3, APEX = sys.argv[1:4]
STEPS, BATCH, INPUT, WIDTH, DIM = 3, 16, 12, 8, 6


def load(path):
  spec = importlib.util.spec_from_file_location("authors", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class Encoder(nn.Module):
  """A layer, and the `fc` that the authors replace by their heads."""

  def __init__(self, num_classes):
    super().__init__()
    self.body = nn.Linear(INPUT, WIDTH)
    self.fc = nn.Linear(WIDTH, num_classes)

  def forward(self, x):
    return self.fc(torch.relu(self.body(x)))


def store(arrays, prefix, module):
  for name, value in module.state_dict().items():
    arrays[f"{prefix}/{name}"] = value.numpy().copy()


def views(seed):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(STEPS, BATCH, 1, INPUT))
  return (x + 0.3 * rng.normal(size=(STEPS, BATCH, 2, INPUT))).astype("float32")


def train(arrays, prefix, model, loss_fn):
  x = arrays[f"{prefix}/views"] = views(0)
  store(arrays, f"{prefix}/start", model)
  learned = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.SGD(learned, 0.1, momentum=0.9, weight_decay=1e-3)
  losses = []
  for step in range(STEPS):
    loss = loss_fn(model, step, *torch.from_numpy(x[step]).unbind(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  arrays[f"{prefix}/losses"] = np.array(losses)
  store(arrays, f"{prefix}/end", model)


def moco(arrays):
  builder = load(os.path.join(MOCO, "moco", "builder.py"))
  torch.manual_seed(0)
  model = builder.MoCo(Encoder, dim=DIM, K=2 * BATCH, m=0.9, T=0.2, mlp=True)

  def loss_fn(model, step, query, key):
    logits, labels = model(query, key)
    return nn.functional.cross_entropy(logits, labels)

  train(arrays, "moco", model, loss_fn)


def mocov3(arrays):
  builder = load(os.path.join(MOCO_V3, "moco", "builder.py"))
  torch.manual_seed(1)
  model = builder.MoCo_ResNet(Encoder, dim=DIM, mlp_dim=10, T=0.5)

  def loss_fn(model, step, x1, x2):
    # `adjust_moco_momentum` of main_moco.py, in steps.
    m = 1 - 0.5 * (1 + np.cos(np.pi * step / STEPS)) * (1 - 0.8)
    return model(x1, x2, m)

  train(arrays, "mocov3", model, loss_fn)


def larc(arrays):
  rng = np.random.default_rng(1)
  start = rng.normal(size=(7, 5)).astype(np.float32)
  grads = 0.1 * rng.normal(size=(5, 7, 5)).astype(np.float32)
  arrays["larc/start"], arrays["larc/grads"] = start, grads
  for clip in (False, True):
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    sgd = torch.optim.SGD([weight], 0.3, momentum=0.9, weight_decay=1e-2)
    optimizer = load(APEX).LARC(sgd, trust_coefficient=0.02, clip=clip)
    history = []
    for g in grads:
      weight.grad = torch.from_numpy(g.copy())
      optimizer.step()
      history.append(weight.detach().numpy().copy())
    arrays[f"larc/clip={clip}"] = np.stack(history)


def main():
  torch.Tensor.cuda = lambda self, *unused: self
  torch.distributed.init_process_group(
    "gloo", init_method="tcp://127.0.0.1:29517", rank=0, world_size=1
  )
  arrays = {}
  moco(arrays)
  mocov3(arrays)
  larc(arrays)
  path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "moco.npz")
  np.savez_compressed(path, **arrays)
  print(path, os.path.getsize(path), arrays["moco/losses"])
  print(arrays["mocov3/losses"])


if __name__ == "__main__":
  main()
