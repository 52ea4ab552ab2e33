"""torchvision's side of `benchmarks.views`: images a second, two views each.

A loader with one worker a core, as its users have it; torch and torchvision in
an environment of their own. Prints one JSON object.
"""

import json
import os
import time

import numpy as np
import torch
from torchvision.transforms import v2

SECONDS = 10.0


def views(size, colour):
  """The preset `moco_v2`, which is torchvision's own semantics."""
  jitter = (0.4, 0.4, 0.4, 0.1) if colour else (0.4, 0.4)
  parts = [
    v2.ToImage(),
    v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
    v2.RandomHorizontalFlip(),
    v2.RandomApply([v2.ColorJitter(*jitter)], 0.8),
    *([v2.RandomGrayscale(0.2)] if colour else []),
    v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], 0.5),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize([0.5], [0.25]),
  ]
  return v2.Compose(parts)


class Dataset(torch.utils.data.Dataset):
  def __init__(self, size, channels):
    rng = np.random.default_rng(0)
    self.images = rng.integers(0, 256, (256, size, size, channels), np.uint8)
    self.augment = views(size, channels == 3)

  def __len__(self):
    return 1 << 30

  def __getitem__(self, i):
    image = self.images[i % len(self.images)]
    return self.augment(image), self.augment(image)


def rate(size, channels):
  loader = torch.utils.data.DataLoader(
    Dataset(size, channels),
    256,
    sampler=range(1 << 30),
    num_workers=os.cpu_count(),
  )
  batches = iter(loader)
  for _ in range(2 * os.cpu_count()):  # what was made before the clock starts
    next(batches)
  start, count = time.perf_counter(), 0
  while time.perf_counter() - start < SECONDS:
    count += len(next(batches)[0])
  return round(count / (time.perf_counter() - start))


if __name__ == "__main__":
  print(
    json.dumps(
      {
        "grey_28": rate(28, 1),
        "colour_32": rate(32, 3),
        "colour_96": rate(96, 3),
      }
    )
  )
