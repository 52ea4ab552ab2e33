"""PyTorch's side of `step.py`: `python torch_step.py --model=vit_ti`.

Needs torch alone. Prints one JSON object.
"""

import argparse
import json
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


def conv(c, d, k, stride):
  return nn.Sequential(
    nn.Conv2d(c, d, k, stride, k // 2, bias=False), nn.BatchNorm2d(d)
  )


class Basic(nn.Module):
  def __init__(self, c, d, stride):
    super().__init__()
    self.first, self.second = conv(c, d, 3, stride), conv(d, d, 3, 1)
    same = stride == 1 and c == d
    self.shortcut = nn.Identity() if same else conv(c, d, 1, stride)

  def forward(self, x):
    y = self.second(F.relu(self.first(x)))
    return F.relu(y + self.shortcut(x))


def resnet18(width):
  layers, c = [conv(3, width, 3, 1), nn.ReLU()], width
  for i in range(8):
    d = width * 2 ** (i // 2)
    layers.append(Basic(c, d, 2 if i in (2, 4, 6) else 1))
    c = d
  head = nn.Linear(c, c), nn.ReLU(), nn.Linear(c, 128)
  return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


class Block(nn.Module):
  def __init__(self, d, heads):
    super().__init__()
    self.heads = heads
    self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
    self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
    self.mlp = nn.Sequential(
      nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)
    )

  def forward(self, x):
    b, n, d = x.shape
    qkv = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1)
    y = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
    x = x + self.proj(y.transpose(1, 2).reshape(b, n, d))
    return x + self.mlp(self.norm2(x))


def patchify(x):
  b = len(x)
  return x.view(b, 3, 8, 4, 8, 4).permute(0, 2, 4, 3, 5, 1).reshape(b, 64, 48)


def stack(depth, d, heads):
  return nn.Sequential(*(Block(d, heads) for _ in range(depth)))


class ViT(nn.Module):
  """SimCLR's projection of the mean token, or MAE's loss."""

  def __init__(self, keep=None):
    super().__init__()
    self.keep = keep
    self.embed, self.norm = nn.Linear(48, 192), nn.LayerNorm(192)
    self.positions = nn.Parameter(0.02 * torch.randn(64, 192))
    self.blocks = stack(12, 192, 3)
    if keep is None:
      self.head = nn.Linear(192, 128)
      return
    self.decoder_embed, self.decoder_norm = nn.Linear(192, 96), nn.LayerNorm(96)
    self.mask_token = nn.Parameter(torch.zeros(96))
    self.decoder_positions = nn.Parameter(0.02 * torch.randn(64, 96))
    self.decoder, self.predict = stack(4, 96, 3), nn.Linear(96, 48)

  def forward(self, x):
    target = patchify(x)
    x = self.embed(target) + self.positions
    if self.keep is None:
      return self.head(self.norm(self.blocks(x)).mean(1))
    b, n, keep = len(x), 64, self.keep
    order = torch.rand(b, n).argsort(1)
    restore = order.argsort(1)
    take = lambda x, i: x.gather(1, i[..., None].expand(-1, -1, x.shape[-1]))
    x = self.decoder_embed(self.norm(self.blocks(take(x, order[:, :keep]))))
    x = torch.cat([x, self.mask_token.expand(b, n - keep, -1)], 1)
    x = self.decoder(take(x, restore) + self.decoder_positions)
    x = self.predict(self.decoder_norm(x))
    mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    error = (x - (target - mean) / (var + 1e-6).sqrt()).square().mean(-1)
    mask = restore >= keep
    return (error * mask).sum() / mask.sum()


class Bert(nn.Module):
  """The loss of hidden tokens; all tokens meet the vocabulary."""

  def __init__(self):
    super().__init__()
    self.embed, self.norm = nn.Embedding(8192, 256), nn.LayerNorm(256)
    self.positions = nn.Parameter(0.02 * torch.randn(128, 256))
    self.blocks = stack(4, 256, 4)

  def forward(self, tokens):
    hidden = torch.rand(tokens.shape) < 0.15
    x = self.embed(tokens.masked_fill(hidden, 1)) + self.positions
    logits = self.norm(self.blocks(x)) @ self.embed.weight.T
    loss = F.cross_entropy(
      logits.flatten(0, 1), tokens.flatten(), reduction="none"
    )
    return (loss * hidden.flatten()).sum() / hidden.sum()


def ntxent(z):
  z, n = F.normalize(z, dim=1), len(z)
  logits = (z @ z.T / 0.5).masked_fill(torch.eye(n, dtype=torch.bool), -1e9)
  return 2 * F.cross_entropy(logits, (torch.arange(n) + n // 2) % n)


MODELS = ("vit_ti", "mae_ti", "bert_mini", "resnet18_16", "resnet18_64")


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--model", default="vit_ti", choices=MODELS)
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--compile", action="store_true")
  parser.add_argument("--channels-last", action="store_true")
  args = parser.parse_args()
  torch.manual_seed(0)
  x = torch.randn(256, 3, 32, 32)
  start = time.perf_counter()
  if args.model.startswith("resnet18"):
    model = resnet18(int(args.model.split("_")[1]))
    tx = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
  elif args.model == "bert_mini":
    model, x = Bert(), torch.randint(2, 8192, (64, 128))
    tx = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
  else:
    model = ViT(keep=16 if args.model == "mae_ti" else None)
    tx = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
  if args.channels_last:
    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
  run = torch.compile(model) if args.compile else model
  times = []
  for _ in range(args.steps + 2):
    tx.zero_grad()
    out = run(x)
    loss = out if out.ndim == 0 else ntxent(out)
    loss.backward()
    tx.step()
    times.append(time.perf_counter())
  pairs = zip(times[1:], times[2:])
  print(
    json.dumps(
      {
        "model": args.model,
        "params": sum(p.numel() for p in model.parameters()),
        "step_s": round(statistics.median(b - a for a, b in pairs), 4),
        "first_s": round(times[0] - start, 2),
        "loss": round(loss.item(), 4),
      }
    )
  )


if __name__ == "__main__":
  main()
