"""Writes resnet.npz: torchvision's ResNet-18, forwards and backwards.

Run where torch and torchvision are installed; the project needs neither:

  python tests/fidelity/make_resnet.py

Weights and images are `drawn.py`'s; everything is computed in float64. With
MODE `train` or `eval`, `MODE/pooled` holds the features [b d],
`MODE/grad/NAME` the gradient of sum(pooled * draw("input_cotangent")) in a
weight, or in `image`, and `train/stats/NAME` running statistics afterwards.
"""

import os

import drawn
import numpy as np
import torch
import torchvision

# In training a channel needs values enough: the last stage has 16. With the 2
# of [2 3 32 32] torchvision in float32 is 4e-3 from itself in float64.
SHAPES = {"train": (4, 3, 48, 48), "eval": (2, 3, 32, 32)}
GRADIENTS = (
  "conv1.weight",
  "bn1.weight",
  "layer2.0.downsample.0.weight",
  "layer3.0.downsample.1.bias",
  "layer4.1.bn2.weight",
  "layer4.1.bn2.bias",
)
STATISTICS = (
  "bn1.running_mean",
  "bn1.running_var",
  "layer2.0.downsample.1.running_var",
  "layer4.1.bn2.running_mean",
  "layer4.1.bn2.running_var",
)


def results(mode):
  net = torchvision.models.resnet18()
  net.fc = torch.nn.Identity()
  state = {
    name: torch.from_numpy(drawn.draw(name, tuple(x.shape)))
    for name, x in net.state_dict().items()
    if not name.endswith("num_batches_tracked")
  }
  net.load_state_dict(state)
  net.double().train(mode == "train")
  image = torch.from_numpy(drawn.draw("input", SHAPES[mode])).double()
  image.requires_grad_(True)
  pooled = net(image)
  cotangent = torch.from_numpy(drawn.draw("input_cotangent", pooled.shape))
  (pooled * cotangent).sum().backward()
  weights = dict(net.named_parameters())
  found = {"pooled": pooled, "grad/image": image.grad}
  found |= {f"grad/{name}": weights[name].grad for name in GRADIENTS}
  if mode == "train":
    state = net.state_dict()
    found |= {f"stats/{name}": state[name] for name in STATISTICS}
  return {name: x.detach().float().numpy() for name, x in found.items()}


def main():
  arrays = {}
  for mode in SHAPES:
    for name, x in results(mode).items():
      arrays[f"{mode}/{name}"] = x
  path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "resnet.npz")
  np.savez_compressed(path, **arrays)
  print(path, os.path.getsize(path), torch.__version__, torchvision.__version__)


if __name__ == "__main__":
  main()
