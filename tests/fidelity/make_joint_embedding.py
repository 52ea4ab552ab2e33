"""Writes joint_embedding.npz: SimSiam, Barlow Twins and VICReg, their losses on
features, steps of training, and the LARS of the latter two.

Run where torch and torchvision are installed, with checkouts of the authors'
code, facebookresearch/simsiam, barlowtwins and vicreg:

  python tests/fidelity/make_joint_embedding.py SIMSIAM BARLOWTWINS VICREG

All in float64. Each method does three steps of SGD on a small network under the
authors' head; stored are the inputs, the start, the losses and the end.
"""

import argparse
import importlib.util
import os
import sys

import numpy as np
import torch
from torch import nn

SIMSIAM, BARLOW_TWINS, VICREG = sys.argv[1:4]
STEPS, BATCH, INPUT, WIDTH, DIM = 3, 16, 12, 8, 6


def load(path):
  sys.path.insert(0, os.path.dirname(path))
  spec = importlib.util.spec_from_file_location("authors", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class Encoder(nn.Module):
  """A layer, and the `fc` that SimSiam's authors replace by their head."""

  def __init__(self, num_classes=1, **unused):
    super().__init__()
    self.body = nn.Linear(INPUT, WIDTH)
    self.fc = nn.Linear(WIDTH, num_classes)

  def forward(self, x):
    return self.fc(torch.relu(self.body(x)))


def barlow_twins(features, batch):
  model = load(os.path.join(BARLOW_TWINS, "main.py")).BarlowTwins(
    argparse.Namespace(projector=features, batch_size=batch, lambd=0.0051)
  )
  # Theirs is as wide as a ResNet-50.
  hidden = model.projector[0].out_features
  model.projector[0] = nn.Linear(WIDTH, hidden, bias=False)
  return with_encoder(model)


def vicreg(features, batch):
  authors = load(os.path.join(VICREG, "main_vicreg.py"))
  args = argparse.Namespace(
    mlp=features,
    batch_size=batch,
    arch="resnet50",
    sim_coeff=25.0,
    std_coeff=25.0,
    cov_coeff=1.0,
  )
  model = authors.VICReg(args)
  model.projector = authors.Projector(args, WIDTH)
  return with_encoder(model)


def with_encoder(model):
  model.backbone = Encoder()
  model.backbone.fc = nn.Identity()
  return model


def simsiam(batch):
  del batch
  builder = load(os.path.join(SIMSIAM, "simsiam", "builder.py"))
  return builder.SimSiam(Encoder, dim=DIM, pred_dim=5)


def simsiam_loss(p1, p2, z1, z2):
  """`train` of main_simsiam.py."""
  criterion = nn.CosineSimilarity(dim=1)
  return -(criterion(p1, z2).mean() + criterion(p2, z1).mean()) * 0.5


def features(arrays, name, loss_fn, count):
  """The loss of drawn features, and its gradients."""
  rng = np.random.default_rng(0)
  shared = rng.normal(size=(1, 12, 8))
  x = (shared + 0.5 * rng.normal(size=(count, 12, 8))).astype("float32")
  z = torch.from_numpy(x).double().requires_grad_()
  loss = loss_fn(*z)
  loss.backward()
  arrays[f"{name}/features/z"] = x
  arrays[f"{name}/features/loss"] = loss.item()
  arrays[f"{name}/features/grad"] = z.grad.numpy()


def without_network(model):
  model.backbone = model.projector = nn.Identity()
  return model.double()


def store(arrays, prefix, module):
  for name, value in module.state_dict().items():
    arrays[f"{prefix}/{name}"] = value.numpy().copy()


def train(arrays, name, model, loss_fn):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(STEPS, BATCH, 1, INPUT))
  x = x + 0.3 * rng.normal(size=(STEPS, BATCH, 2, INPUT))
  x = arrays[f"{name}/views"] = x.astype("float32")
  store(arrays, f"{name}/start", model)
  model = model.double()
  learned = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.SGD(learned, 0.1, momentum=0.9, weight_decay=1e-3)
  losses = []
  for views in torch.from_numpy(x).double():
    loss = loss_fn(*views.unbind(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  arrays[f"{name}/losses"] = np.array(losses)
  store(arrays, f"{name}/end", model)


def lars(arrays):
  """Barlow Twins' optimiser and schedule, a rate for weights, one for biases;
  VICReg's are the same with one rate."""
  authors = load(os.path.join(BARLOW_TWINS, "main.py"))
  args = argparse.Namespace(
    epochs=14,
    batch_size=512,
    learning_rate_weights=20.0,
    learning_rate_biases=0.48,
  )
  rng = np.random.default_rng(1)
  shapes = {"kernel": (7, 5), "bias": (5,)}
  start = {k: rng.normal(size=s).astype("float32") for k, s in shapes.items()}
  grads = {
    k: 0.1 * rng.normal(size=(14, *s)).astype("float32")
    for k, s in shapes.items()
  }
  params = {
    k: nn.Parameter(torch.from_numpy(v).double()) for k, v in start.items()
  }
  optimizer = authors.LARS(
    [{"params": [params["kernel"]]}, {"params": [params["bias"]]}],
    lr=0,
    weight_decay=1e-2,
    weight_decay_filter=True,
    lars_adaptation_filter=True,
  )
  history = {k: [] for k in shapes}
  for step in range(14):
    authors.adjust_learning_rate(args, optimizer, [None], step)
    for k, p in params.items():
      p.grad = torch.from_numpy(grads[k][step]).double()
    optimizer.step()
    for k, p in params.items():
      history[k].append(p.detach().numpy().copy())
  for k in shapes:
    arrays[f"lars/start/{k}"] = start[k]
    arrays[f"lars/grads/{k}"] = grads[k]
    arrays[f"lars/history/{k}"] = np.stack(history[k])


def main():
  torch.distributed.init_process_group(
    "gloo", init_method="tcp://127.0.0.1:29518", rank=0, world_size=1
  )
  arrays = {}
  torch.manual_seed(0)
  features(arrays, "simsiam", simsiam_loss, count=4)
  model = simsiam(BATCH)
  train(arrays, "simsiam", model, lambda *x: simsiam_loss(*model(*x)))
  for name, make in (("barlow_twins", barlow_twins), ("vicreg", vicreg)):
    features(arrays, name, without_network(make("8-8-8", 12)), count=2)
    model = make("10-7-6", BATCH)
    train(arrays, name, model, model)
  lars(arrays)
  folder = os.path.dirname(os.path.abspath(__file__))
  path = os.path.join(folder, "joint_embedding.npz")
  np.savez_compressed(path, **arrays)
  print(path, os.path.getsize(path))
  for name in arrays:
    if name.endswith(("loss", "losses")):
      print(name, arrays[name])


if __name__ == "__main__":
  main()
