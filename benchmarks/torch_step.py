"""PyTorch's side of `step.py`: `python torch_step.py --model=vit_ti`.

Needs torch alone. On a GPU, where there is one, with TF32, which jax takes
there too. Prints a JSON object for each of the models.
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


class Bottleneck(nn.Module):
  def __init__(self, c, d, stride):
    super().__init__()
    self.first, self.second = conv(c, d, 1, 1), conv(d, d, 3, stride)
    self.third = conv(d, 4 * d, 1, 1)
    same = stride == 1 and c == 4 * d
    self.shortcut = nn.Identity() if same else conv(c, 4 * d, 1, stride)

  def forward(self, x):
    y = F.relu(self.second(F.relu(self.first(x))))
    return F.relu(self.third(y) + self.shortcut(x))


def resnet50():
  layers, c = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
  for stage, blocks in enumerate((3, 4, 6, 3)):
    for block in range(blocks):
      d = 64 * 2**stage
      layers.append(Bottleneck(c, d, 2 if stage and not block else 1))
      c = 4 * d
  head = nn.Linear(c, c), nn.ReLU(), nn.Linear(c, 128)
  return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


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


def patchify(x, p):
  b, n = len(x), x.shape[-1] // p
  x = x.view(b, 3, n, p, n, p).permute(0, 2, 4, 3, 5, 1)
  return x.reshape(b, n * n, 3 * p * p)


def stack(depth, d, heads):
  return nn.Sequential(*(Block(d, heads) for _ in range(depth)))


class ViT(nn.Module):
  """SimCLR's projection of the mean token, or MAE's loss."""

  def __init__(self, size=32, patch=4, dim=192, heads=3, keep=None, decoder=()):
    super().__init__()
    self.keep, self.patch, self.n = keep, patch, (size // patch) ** 2
    pixels = 3 * patch**2
    self.embed, self.norm = nn.Linear(pixels, dim), nn.LayerNorm(dim)
    self.positions = nn.Parameter(0.02 * torch.randn(self.n, dim))
    self.blocks = stack(12, dim, heads)
    if keep is None:
      self.head = nn.Linear(dim, 128)
      return
    depth, d, decoder_heads = decoder
    self.decoder_embed, self.decoder_norm = nn.Linear(dim, d), nn.LayerNorm(d)
    self.mask_token = nn.Parameter(torch.zeros(d))
    self.decoder_positions = nn.Parameter(0.02 * torch.randn(self.n, d))
    self.decoder = stack(depth, d, decoder_heads)
    self.predict = nn.Linear(d, pixels)

  def forward(self, x):
    target = patchify(x, self.patch)
    x = self.embed(target) + self.positions
    if self.keep is None:
      return self.head(self.norm(self.blocks(x)).mean(1))
    b, n, keep = len(x), self.n, self.keep
    # The device is named, for torch.compile does not know the default one.
    order = torch.rand(b, n, device=x.device).argsort(1)
    restore = order.argsort(1)
    take = lambda x, i: x.gather(1, i[..., None].expand(-1, -1, x.shape[-1]))
    x = self.decoder_embed(self.norm(self.blocks(take(x, order[:, :keep]))))
    hidden = self.mask_token.to(x.dtype).expand(b, n - keep, -1)
    x = take(torch.cat([x, hidden], 1), restore)
    x = self.decoder_norm(self.decoder(x + self.decoder_positions))
    x = self.predict(x)
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
    hidden = torch.rand(tokens.shape, device=tokens.device) < 0.15
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


MAE_TI = dict(keep=16, decoder=(4, 96, 3))
MAE_B = dict(
  size=224, patch=16, dim=768, heads=12, keep=49, decoder=(8, 512, 16)
)
MODELS = {
  "vit_ti": ViT,
  "mae_ti": lambda: ViT(**MAE_TI),
  "mae_b": lambda: ViT(**MAE_B),
  "bert_mini": Bert,
  "resnet18_16": lambda: resnet18(16),
  "resnet18_64": lambda: resnet18(64),
  "resnet50": resnet50,
}


def measure(name, args, device):
  """The figures of one model."""
  start = time.perf_counter()
  model = MODELS[name]()
  if name == "bert_mini":
    x = torch.randint(2, 8192, (64, 128))
  elif name in ("mae_b", "resnet50"):
    x = torch.randn(128, 3, 224, 224)
  else:
    x = torch.randn(256, 3, 32, 32)
  if name.startswith("resnet"):
    tx = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
  else:
    tx = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
  if args.channels_last:
    model = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
  run = torch.compile(model, mode=args.compile) if args.compile else model
  times = []
  for _ in range(args.steps + 2):
    tx.zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=args.bf16):
      out = run(x)
      loss = out if out.ndim == 0 else ntxent(out.float())
    loss.backward()
    tx.step()
    if device == "cuda":
      torch.cuda.synchronize()
    times.append(time.perf_counter())
  pairs = zip(times[1:], times[2:])
  return {
    "model": name,
    "params": sum(p.numel() for p in model.parameters()),
    "step_s": round(statistics.median(b - a for a, b in pairs), 5),
    "first_s": round(times[0] - start, 2),
    "loss": round(loss.item(), 4),
    "precision": "bfloat16" if args.bf16 else "float32",
    "device": torch.cuda.get_device_name() if device == "cuda" else device,
  }


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--model", default="vit_ti", help="names between commas")
  parser.add_argument("--steps", type=int, default=5)
  parser.add_argument("--compile", nargs="?", const="default", metavar="MODE")
  parser.add_argument("--channels-last", action="store_true")
  parser.add_argument("--bf16", action="store_true")
  args = parser.parse_args()
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_default_device(device)
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.manual_seed(0)
  for name in args.model.split(","):
    print(json.dumps(measure(name, args, device)), flush=True)


if __name__ == "__main__":
  main()
