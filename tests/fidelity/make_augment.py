"""Writes augment.npz: what torchvision's views give, on one stored image.

Run where torch and torchvision are installed; the project needs neither:

  python tests/fidelity/make_augment.py

`exact/NAME` holds an op's result [c h w]; `moments/NAME` the mean, variance and
fourth central moment [3 c h w] of 10,000 draws.
"""

import os

import numpy as np
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

DRAWS = 10_000
SIZE = 16, 20


def picture():
  """[3 20 24] uint8: smooth colours, edges and noise; no symmetry."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[0:20, 0:24]
  red = 128 + 90 * np.sin(0.3 * x + 0.1 * y)
  green = 40 + 8 * y + 20 * (x > 9)
  blue = 200 - 6 * x + 50 * ((x - 15) ** 2 + (y - 7) ** 2 < 25)
  image = np.stack([red, green, blue]) + rng.normal(0, 10, (3, 20, 24))
  return np.clip(image, 0, 255).astype(np.uint8)


def apply(p, op):
  return v2.RandomApply([op], p)


RANDOM = {
  "crop_bilinear": v2.RandomResizedCrop(SIZE, antialias=True),
  "crop_bicubic": v2.RandomResizedCrop(
    SIZE,
    scale=(0.2, 1.0),
    interpolation=v2.InterpolationMode.BICUBIC,
    antialias=True,
  ),
  "flip": v2.RandomHorizontalFlip(0.3),
  "brightness": v2.ColorJitter(brightness=0.8),
  "contrast": v2.ColorJitter(contrast=0.8),
  "saturation": v2.ColorJitter(saturation=0.8),
  "hue": v2.ColorJitter(hue=0.2),
  "jitter": apply(0.8, v2.ColorJitter(0.8, 0.8, 0.8, 0.2)),
  "jitter_grey": apply(0.8, v2.ColorJitter(0.4, 0.4)),
  "grayscale": v2.RandomGrayscale(0.2),
  "blur": apply(0.5, v2.GaussianBlur(5, (0.1, 2.0))),
  "solarize": v2.RandomSolarize(0.5, p=0.2),
  "preset_moco_v2": v2.Compose(
    [
      v2.RandomResizedCrop(SIZE, scale=(0.2, 1.0), antialias=True),
      v2.RandomHorizontalFlip(),
      apply(0.8, v2.ColorJitter(0.4, 0.4, 0.4, 0.1)),
      v2.RandomGrayscale(0.2),
      apply(0.5, v2.GaussianBlur(3, (0.1, 2.0))),
      v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
  ),
}


def exact(x):
  bicubic = v2.InterpolationMode.BICUBIC
  box = 3, 5, 13, 11  # top, left, height, width
  crop = lambda size, mode: functional.resized_crop(
    x, *box, size, mode, antialias=True
  )
  bilinear = v2.InterpolationMode.BILINEAR
  return {
    "shrink_bilinear": crop([7, 8], bilinear),
    "shrink_bicubic": crop([7, 8], bicubic),
    "grow_bilinear": crop([28, 20], bilinear),
    "grow_bicubic": crop([28, 20], bicubic),
    "hue_up": functional.adjust_hue(x, 0.13),
    "hue_down": functional.adjust_hue(x, -0.4),
    "grayscale": functional.rgb_to_grayscale(x, 3),
    "blur": functional.gaussian_blur(x, [5, 5], [1.3, 1.3]),
    "solarize": functional.solarize(x, 0.5),
  }


def moments(x):
  """Mean, variance and fourth central moment of x [n ...]."""
  mean = x.mean(0)
  return torch.stack([mean, *(((x - mean) ** n).mean(0) for n in (2, 4))])


def main():
  torch.manual_seed(0)
  image = picture()
  x = torch.from_numpy(image).float() / 255
  arrays = {"image": image}
  for name, result in exact(x).items():
    arrays[f"exact/{name}"] = result.numpy()
  for name, op in RANDOM.items():
    start = x[:1] if name.endswith("grey") else x
    draws = torch.stack([op(start) for _ in range(DRAWS)]).double()
    arrays[f"moments/{name}"] = moments(draws).float().numpy()
  path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "augment.npz")
  np.savez_compressed(path, **arrays)
  print(path, os.path.getsize(path))


if __name__ == "__main__":
  main()
