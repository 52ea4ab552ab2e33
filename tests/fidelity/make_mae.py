"""Writes mae.npz: facebookresearch/mae's model, given the noise of its masks.

Run where torch and timm 0.3.2 are installed, with a checkout of the authors'
code:

  python tests/fidelity/make_mae.py MAE

Stored are the weights of a tiny model, images, noise, loss, predictions, mask,
with and without `norm_pix_loss`, and with it the gradients of all weights.
"""

import collections.abc
import os
import sys
import types

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
# timm 0.3.2 and the authors' positions want names that torch and NumPy dropped.
sys.modules["torch._six"] = types.SimpleNamespace(
  container_abcs=collections.abc, inf=float("inf")
)
np.float = float

import models_mae  # noqa: E402


def main():
  torch.manual_seed(0)
  model = models_mae.MaskedAutoencoderViT(
    img_size=16,
    patch_size=4,
    embed_dim=32,
    depth=2,
    num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
    norm_layer=lambda dim: torch.nn.LayerNorm(dim, eps=1e-6),
  )
  with torch.no_grad():
    for p in model.parameters():
      if p.requires_grad:  # biases and norms start at 0 and 1
        p.add_(0.05 * torch.randn_like(p))
  images, noise = torch.rand(4, 3, 16, 16), torch.rand(4, 16)
  arrays = {"images": images.numpy(), "noise": noise.numpy()}
  for name, value in model.state_dict().items():
    arrays[f"weights/{name}"] = value.numpy()
  torch.rand = lambda *unused, **options: noise
  for norm_pix in (False, True):
    model.norm_pix_loss = norm_pix
    model.zero_grad()
    loss, predicted, mask = model(images, mask_ratio=0.75)
    loss.backward()
    arrays[f"norm_pix={norm_pix}/loss"] = loss.detach().numpy()
  for name, p in model.named_parameters():
    if p.grad is not None:
      arrays[f"grads/{name}"] = p.grad.numpy().copy()
  arrays["predicted"] = predicted.detach().numpy()
  arrays["mask"] = mask.numpy()
  path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mae.npz")
  np.savez_compressed(path, **arrays)
  print(path, os.path.getsize(path), loss.item())


if __name__ == "__main__":
  main()
