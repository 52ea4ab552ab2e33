"""Writes masked.npz: SimMIM, data2vec for images, I-JEPA, AIM and CPC.

Run where torch and huggingface_hub are installed, with checkouts of the
authors' code; timm and torchvision, of which they take little, are not needed:

  python tests/fidelity/make_masked.py SIMMIM DATA2VEC_VISION IJEPA ML_AIM BOLTS

Three steps of SGD of each method, in float64. Images and the start are drawn by
`drawn.py` from names; stored are masks, losses, the end, and teachers. Also how
masks are distributed that the authors draw. Where no code is published (AIM's
head and loss, CPC's context network) it is put together from the paper.
"""

import functools
import importlib.util
import os
import random
import sys
import types
from unittest import mock

import drawn
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SIMMIM, DATA2VEC, IJEPA, AIM, BOLTS = sys.argv[1:]
STEPS = 3


def stub(name, **names):
  sys.modules[name] = types.SimpleNamespace(**names)


def stub_all():
  """What the authors import and these runs hardly use."""
  layers = dict(
    DropPath=nn.Identity,
    drop_path=None,
    to_2tuple=lambda x: x if isinstance(x, tuple) else (x, x),
    trunc_normal_=nn.init.trunc_normal_,
  )
  for name in ("timm", "timm.models"):
    stub(name)
  stub("timm.models.layers", **layers)
  stub("timm.models.registry", register_model=lambda f: f)
  means = dict(IMAGENET_DEFAULT_MEAN=0, IMAGENET_DEFAULT_STD=0)
  stub("timm.data", **means)
  for name in ("torchvision", "torchvision.transforms", "torchvision.datasets"):
    sys.modules[name] = mock.MagicMock()
  for name in ("pl_bolts", "pl_bolts.utils", "pl_bolts.models"):
    stub(name)
  stub("pl_bolts.models.vision")
  stub("pl_bolts.models.vision.pixel_cnn", PixelCNN=None)
  stub("pl_bolts.utils.stability", under_review=lambda: lambda f: f)
  # The engine's log, of which losses are wanted.
  stub("utils", MetricLogger=Log, SmoothedValue=mock.MagicMock)
  np.int = int  # dropped by NumPy


class Log:
  """Losses of facebookresearch/data2vec_vision `engine_for_cyclical.py`."""

  losses = []
  meters = {}

  def __init__(self, **unused):
    pass

  def add_meter(self, *unused):
    pass

  def log_every(self, loader, *unused):
    return loader

  def update(self, loss=None, **unused):
    if loss is not None:
      Log.losses.append(loss)

  def synchronize_between_processes(self):
    pass


def load(folder, path, name=None):
  """A module of the authors by its file."""
  path = os.path.join(folder, path)
  name = name or os.path.basename(path)[:-3]
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


def views(name):
  """Images of the three steps [3 b c h w]."""
  return torch.from_numpy(drawn.draw(f"input/{name}", (STEPS, 4, 3, 16, 16)))


def draw_weights(model, prefix):
  """Those that learn, drawn from their names."""
  with torch.no_grad():
    for name, x in model.named_parameters():
      if x.requires_grad:
        start = drawn.draw(f"{prefix}/{name}", tuple(x.shape))
        x.copy_(torch.from_numpy(start))


def sgd(parameters):
  return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)


def train(model, loss_of_step, after=lambda: None):
  optimizer, history = sgd([p for p in model.parameters()]), []
  for step in range(STEPS):
    loss = loss_of_step(step)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    after()
    history.append(loss.item())
  return history


def keep(arrays, prefix, model):
  for name, x in model.named_parameters():
    if x.requires_grad or prefix.endswith("teacher"):
      arrays[f"{prefix}/{name}"] = x.detach().numpy().copy()


beit = dict(
  img_size=16,
  patch_size=4,
  embed_dim=12,
  num_heads=2,
  qkv_bias=True,
  init_values=0.1,
  use_abs_pos_emb=False,
  use_shared_rel_pos_bias=True,
  norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
)


def simmim(arrays):
  sys.path.insert(0, SIMMIM)
  stub("data")  # not theirs, which imports the whole of torchvision
  from models import simmim

  np.random.seed(0)
  generator = load(SIMMIM, "data/data_simmim.py").MaskGenerator(16, 8, 4, 0.6)
  masks = np.stack([generator() for _ in range(4)])
  encoder = simmim.VisionTransformerForSimMIM(
    num_classes=0, depth=2, use_mean_pooling=False, **beit
  )
  model = simmim.SimMIM(encoder, 4).double()
  draw_weights(model, "simmim")
  x, mask = views("simmim").double(), torch.from_numpy(masks)
  arrays["simmim/losses"] = train(model, lambda step: model(x[step], mask))
  arrays["simmim/mask"] = masks.reshape(4, -1)
  keep(arrays, "simmim/end", model)


def data2vec(arrays):
  beit_folder = os.path.join(DATA2VEC, "beit")
  sys.path.insert(0, beit_folder)
  modeling = load(beit_folder, "modeling_cyclical.py")
  engine = load(beit_folder, "engine_for_cyclical.py")
  generators = load(beit_folder, "masking_generator.py")
  random.seed(1)
  generator = generators.MaskingGenerator(4, 7, 2)
  masks = [generator() for _ in range(200)]
  masks = np.stack([m for m in masks if m.sum() == 7][:4])
  make = lambda: modeling.VisionTransformerForCyclicalTraining(
    depth=3, **beit
  ).double()
  model, teacher = make(), make()
  draw_weights(model, "data2vec")
  draw_weights(teacher, "data2vec")

  def update(new, update_fn):  # timm's ModelEmaV2
    with torch.no_grad():
      for e, m in zip(teacher.state_dict().values(), new.state_dict().values()):
        if e.is_floating_point():  # timm rounds indices down as well
          e.copy_(update_fn(e, m))

  optimizer = sgd(model.parameters())
  scaler = lambda loss, optimizer, **unused: (
    optimizer.zero_grad(),
    loss.backward(),
    optimizer.step(),
  )
  scaler.state_dict = lambda: {"scale": 1.0}
  x, mask = views("data2vec").double(), torch.from_numpy(masks)
  torch.cuda.synchronize = lambda: None
  torch.Tensor.float = torch.Tensor.double  # not to lose digits
  teacher.eval()
  engine.train_one_epoch(
    model,
    types.SimpleNamespace(module=teacher, _update=update),
    0,
    0.9,
    0.9,
    [1, 2],
    [((x[step], mask), None) for step in range(STEPS)],
    optimizer,
    torch.device("cpu"),
    0,
    scaler,
    l1_beta=2.0,
    start_steps=0,
    post_target_layer_norm=True,
  )
  arrays["data2vec/losses"] = np.array(Log.losses)
  arrays["data2vec/mask"] = masks.reshape(4, -1)
  keep(arrays, "data2vec/end", model)
  keep(arrays, "data2vec/teacher", teacher)
  block_masks(arrays, generators.MaskingGenerator(14, 120, 16, 196))


def block_masks(arrays, generator):
  """How often each place is masked, and how often neighbours are unlike."""
  masks = np.stack([generator() for _ in range(20_000)])
  arrays["blocks/mean"] = masks.mean(axis=0)
  unlike = [np.diff(masks, axis=axis) != 0 for axis in (1, 2)]
  arrays["blocks/unlike"] = np.array([u.mean() for u in unlike])
  arrays["blocks/count"] = masks.sum(axis=(1, 2)).mean()


def ijepa(arrays):
  for name in [n for n in sys.modules if n == "src" or n.startswith("src.")]:
    del sys.modules[name]
  sys.path.insert(0, IJEPA)
  from src.masks import multiblock
  from src.masks.utils import apply_masks
  from src.models import vision_transformer as vit
  from src.utils.tensors import repeat_interleave_batch

  torch.manual_seed(0)
  collator = multiblock.MaskCollator(
    input_size=(32, 32),
    patch_size=4,
    pred_mask_scale=(0.15, 0.2),
    enc_mask_scale=(0.85, 1.0),
    aspect_ratio=(0.75, 1.5),
    nenc=1,
    npred=4,
    min_keep=4,
  )
  _, context, wanted = collator([torch.zeros(1)] * 4)
  norm = functools.partial(nn.LayerNorm, eps=1e-6)
  make = lambda: vit.VisionTransformer(
    img_size=[32], patch_size=4, embed_dim=16, depth=2, num_heads=2,
    norm_layer=norm,
  ).double()  # fmt: skip
  encoder, teacher = make(), make()
  predictor = vit.VisionTransformerPredictor(
    num_patches=64, embed_dim=16, predictor_embed_dim=8, depth=1, num_heads=2,
    norm_layer=norm,
  ).double()  # fmt: skip
  model = nn.ModuleDict({"encoder": encoder, "predictor": predictor})
  draw_weights(model, "ijepa")
  teacher.load_state_dict(encoder.state_dict())
  name = "input/ijepa"
  x = torch.from_numpy(drawn.draw(name, (STEPS, 4, 3, 32, 32))).double()
  momentum = iter([0.8, 0.8 + 0.2 / 3, 0.8 + 0.4 / 3])

  def loss(step):  # as `train_step` of src/train.py
    with torch.no_grad():
      h = teacher(x[step])
      h = F.layer_norm(h, (h.size(-1),))
      h = apply_masks(h, wanted)
      h = repeat_interleave_batch(h, 4, repeat=len(context))
    z = predictor(encoder(x[step], context), context, wanted)
    return F.smooth_l1_loss(z, h)

  def after():
    m = next(momentum)
    with torch.no_grad():
      for q, k in zip(encoder.parameters(), teacher.parameters()):
        k.mul_(m).add_((1.0 - m) * q)

  arrays["ijepa/losses"] = train(model, loss, after)
  arrays["ijepa/context"] = torch.stack(context).numpy()[0]
  arrays["ijepa/targets"] = torch.stack(wanted).numpy().swapaxes(0, 1)
  keep(arrays, "ijepa/end", model)
  for p, q in zip(teacher.parameters(), encoder.parameters()):
    p.requires_grad = q.requires_grad
  keep(arrays, "ijepa/moved", teacher)
  multiblock_masks(arrays, multiblock)


def multiblock_masks(arrays, multiblock):
  """Sizes given the number that draws them, and how places are distributed."""
  collator = multiblock.MaskCollator(
    enc_mask_scale=(0.85, 1.0),
    pred_mask_scale=(0.15, 0.2),
    aspect_ratio=(0.75, 1.5),
    npred=4,
    min_keep=10,
  )
  rand, sizes = torch.rand, []
  for u in np.linspace(0.0005, 0.9995, 1000):
    torch.rand = lambda *unused, u=u, **also: torch.tensor([u])
    block = collator._sample_block_size
    sizes.append(
      block(None, (0.15, 0.2), (0.75, 1.5)) + block(None, (0.85, 1), (1, 1))
    )
  torch.rand = rand
  arrays["multiblock/sizes"] = np.array(sizes)
  targets, contexts = np.zeros(196), np.zeros(196)
  examples = 6000
  for _ in range(examples):
    drawn_ = [collator._sample_block_mask((5, 7)) for _ in range(4)]
    for mask, _ in drawn_:
      targets[mask] += 1
    context, _ = collator._sample_block_mask((13, 13), [c for _, c in drawn_])
    contexts[context] += 1
  arrays["multiblock/targets"] = targets / examples / 4
  arrays["multiblock/contexts"] = contexts / examples


class Head(nn.Module):
  """AIM's, of the paper: blocks of the authors' MLP, positions before."""

  def __init__(self, layers, width):
    super().__init__()
    self.embed = nn.Linear(16, width, bias=False)
    self.positions = layers.SinCosPosEmbed()
    self.norms = nn.ModuleList([layers.LayerNorm(width) for _ in range(2)])
    self.mlps = nn.ModuleList(
      [layers.MLP(width, 4 * width, use_bias=False) for _ in range(2)]
    )
    self.norm = layers.LayerNorm(width)
    self.predict = nn.Linear(width, 48, bias=False)

  def forward(self, x):
    x = self.embed(x)
    x = x + self.positions(4, 4, x.shape[-1])
    for norm, mlp in zip(self.norms, self.mlps):
      x = x + mlp(norm(x))
    return self.predict(self.norm(x))


def aim(arrays):
  sys.path.insert(0, os.path.join(AIM, "aim-v1"))
  from aim.v1.torch import layers
  from aim.v1.torch import models

  torch.set_default_dtype(torch.float64)  # their positions are made on the fly
  torch.Tensor.float = torch.Tensor.double
  embed = layers.PatchEmbed(16, 4, 3, 16, norm_layer=layers.LayerNorm)
  make = lambda attention, **options: models.Transformer(
    lambda use_bias: attention(16, 2, use_bias=use_bias, **options),
    embed_dim=16,
    num_blocks=3,
  )
  model = nn.ModuleDict(
    {
      "preprocessor": layers.ViTPreprocessor(embed),
      "trunk": make(layers.PrefixCausalAttention, num_patches=16),
      "head": Head(layers, 8),
    }
  )
  draw_weights(model, "aim")
  prefix = np.array([1, 4, 9, 15])
  seen = torch.arange(16) < torch.from_numpy(prefix)[:, None]
  x = views("aim").double()

  def loss(step):
    tokens = model["preprocessor"](x[step])
    tokens, _ = model["trunk"](tokens, mask=~seen)
    predicted = model["head"](tokens)[:, :-1]  # of the next patch
    patches = x[step].reshape(4, 3, 4, 4, 4, 4).permute(0, 2, 4, 3, 5, 1)
    patches = patches.reshape(4, 16, 48)
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    target = (patches - mean) / (var + 1e-6) ** 0.5
    error = ((predicted - target[:, 1:]) ** 2).mean(-1)
    return error[~seen[:, 1:]].mean()

  arrays["aim/losses"] = train(model, loss)
  arrays["aim/prefix"] = prefix
  keep(arrays, "aim/end", model)
  plain = make(layers.Attention)
  plain.load_state_dict(model["trunk"].state_dict(), strict=False)
  with torch.no_grad():
    features = plain(model["preprocessor"](x[0]), return_features=True)
    average = layers.AverageLayers((1, 2))(None, features)
  arrays["aim/features"] = average.numpy()


class Context(nn.Module):
  """`pixelCNN` of the listing in Hénaff et al., appendix A."""

  def __init__(self, width, hidden, depth):
    super().__init__()
    conv = nn.Conv2d
    self.blocks = nn.ModuleList(
      nn.Sequential(
        conv(width, hidden, 1),
        nn.ReLU(),
        conv(hidden, hidden, (1, 3), padding=(0, 1)),
        nn.ZeroPad2d((0, 0, 1, 0)),
        conv(hidden, hidden, (2, 1)),
        nn.ReLU(),
        conv(hidden, width, 1),
      )
      for _ in range(depth)
    )

  def forward(self, x):
    for block in self.blocks:
      x = x + block(x)
    return torch.relu(x)


def cpc(arrays):
  losses = load(BOLTS, "src/pl_bolts/losses/self_supervised_learning.py")
  model = nn.ModuleDict(
    {
      "body": nn.Linear(6 * 6 * 3, 8),
      "context": Context(8, 12, 2),
      "target": nn.Conv2d(8, 10, 1),
      "predict1": nn.Conv2d(8, 10, 1),
      "predict2": nn.Conv2d(8, 10, 1),
    }
  ).double()
  draw_weights(model, "cpc")
  task = types.SimpleNamespace(target_dim=10, embed_scale=0.1)
  x = views("cpc").double()

  def loss(step):
    patches = x[step].unfold(2, 6, 3).unfold(3, 6, 3)  # [b c r q p p]
    patches = patches.permute(0, 2, 3, 4, 5, 1).reshape(4, 4, 4, -1)
    z = torch.relu(model["body"](patches)).permute(0, 3, 1, 2)
    c, targets = model["context"](z), model["target"](z)
    return sum(
      losses.CPCTask.compute_loss_h(task, targets, model[f"predict{i}"](c), i)
      for i in (1, 2)
    )

  arrays["cpc/losses"] = train(model, loss)
  keep(arrays, "cpc/end", model)


def main():
  stub_all()
  arrays = {}
  for make in (simmim, data2vec, ijepa, aim, cpc):
    make(arrays)
    print(make.__name__, arrays[f"{make.__name__}/losses"])
  folder = os.path.dirname(os.path.abspath(__file__))
  path = os.path.join(folder, "masked.npz")
  arrays = {k: np.asarray(x) for k, x in arrays.items()}
  small = lambda x: np.float32(x) if x.dtype == np.float64 else np.int16(x)
  np.savez_compressed(path, **{k: small(x) for k, x in arrays.items()})
  print(path, os.path.getsize(path))


if __name__ == "__main__":
  main()
