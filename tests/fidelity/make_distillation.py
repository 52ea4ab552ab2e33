"""Writes distillation.npz: DINO, iBOT and DINOv2, steps of training, and their
optimisers with all their schedules.

Run where torch and omegaconf are installed, with checkouts of the authors'
code, facebookresearch/dino, bytedance/ibot and facebookresearch/dinov2:

  python tests/fidelity/make_distillation.py DINO IBOT DINOV2

All in float64, but for DINOv2's Sinkhorn, which they have in float32. Each
method trains its own tiny ViT under its own head by SGD with their schedules,
clipping and frozen last layer. Local crops are as large as global ones, for
positions would be interpolated otherwise, which torch does in another way. Of
DINOv2 what needs a GPU is replaced: xformers' attention over lists of crops by
one crop after the other, FSDP by nothing, its clipping by torch's.
"""

import concurrent.futures
import functools
import multiprocessing
import os
import sys
import types

import numpy as np
import torch
from torch import nn

BATCH, SIZE, PATCH, DIM, DEPTH, K, EPOCHS, LENGTH = 4, 8, 2, 8, 2, 12, 3, 2
STEPS = EPOCHS * LENGTH
HEAD = dict(hidden_dim=10, bottleneck_dim=6)
VIT = dict(embed_dim=DIM, depth=DEPTH, num_heads=2, patch_size=PATCH)
CLIP = 3.0


def alone():
  """One process that is the whole world, as the authors' losses want one."""
  store = torch.distributed.HashStore()
  torch.distributed.init_process_group(
    "gloo", store=store, rank=0, world_size=1
  )


def stub(name, **names):
  module = sys.modules[name] = types.ModuleType(name)
  vars(module).update(names)
  return module


def without_torchvision():
  """Theirs read and augment images by it, which is not needed here."""
  parts = {name: stub(f"torchvision.{name}") for name in ("datasets", "models")}
  stub("torchvision", transforms=stub("torchvision.transforms"), **parts)


def perturb(model, seed=0):
  """Away from the start, where much is zero; in float32's numbers."""
  torch.manual_seed(seed)
  with torch.no_grad():
    for p in filter(lambda p: p.requires_grad, model.parameters()):
      p.copy_((p + 0.3 * torch.randn_like(p)).float())
  return model.double()


def store(arrays, prefix, module):
  for name, value in module.state_dict().items():
    arrays[f"{prefix}/{name}"] = value.detach().numpy().astype("float32")


def pack(arrays, path, module, like):
  """One array of all, in the order of the names of `like`, for an array each
  takes more of a file than its numbers do; 0 for what is not there."""
  values = module.state_dict()
  arrays[path] = np.concatenate(
    [
      values.get(name, torch.zeros_like(x)).numpy().ravel()
      for name, x in sorted(like.state_dict().items())
    ]
  ).astype("float32")


def draw(arrays):
  """Views [step b crop h w c], the same for all methods."""
  rng = np.random.default_rng(0)
  shape = (STEPS, BATCH, 4, SIZE, SIZE, 3)
  x = rng.normal(size=(*shape[:2], 1, *shape[3:])) + rng.normal(size=shape)
  x = arrays["views"] = x.astype("float16")
  return torch.from_numpy(x.astype("float64")).permute(0, 2, 1, 5, 3, 4)


def draw_masks(arrays):
  """Bool [step b 2 h w], some crops without any."""
  rng = np.random.default_rng(1)
  side = SIZE // PATCH
  ratio = rng.uniform(0.1, 0.5, (STEPS, BATCH, 2, 1, 1))
  ratio *= rng.integers(0, 2, ratio.shape)
  noise = rng.uniform(size=(STEPS, BATCH, 2, side * side)).argsort(axis=-1)
  mask = noise.reshape(*noise.shape[:3], side, side) < np.floor(ratio * side**2)
  arrays["masks"] = mask
  return torch.from_numpy(mask).transpose(1, 2)


def schedules(utils):
  steps = (EPOCHS, LENGTH)
  return (
    utils.cosine_scheduler(0.05, 1e-3, *steps),
    utils.cosine_scheduler(0.04, 0.4, *steps),
    utils.cosine_scheduler(0.8, 1, *steps),
  )


def fit(arrays, prefix, utils, student, teacher, losses_of):
  """`train_one_epoch` of DINO and iBOT, with SGD."""
  rates, decays, momenta = schedules(utils)
  optimizer = torch.optim.SGD(
    utils.get_params_groups(student), lr=0, momentum=0.9
  )
  history = []
  for step in range(STEPS):
    for i, group in enumerate(optimizer.param_groups):
      group["lr"] = rates[step]
      if i == 0:
        group["weight_decay"] = decays[step]
    loss = losses_of(step)
    optimizer.zero_grad()
    loss.backward()
    utils.clip_gradients(student, CLIP)
    utils.cancel_gradients_last_layer(step // LENGTH, student, 1)
    optimizer.step()
    of_teacher = dict(teacher.named_parameters())
    with torch.no_grad():
      for name, p in student.named_parameters():
        if name in of_teacher:
          m = momenta[step]
          of_teacher[name].mul_(m).add_((1 - m) * p)
    history.append(loss.item())
  arrays[f"{prefix}/losses"] = np.array(history)
  pack(arrays, f"{prefix}/end", student, student)
  pack(arrays, f"{prefix}/teacher", teacher, student)


def dino(path):
  alone()
  without_torchvision()
  sys.path.insert(0, path)
  import main_dino
  import utils
  import vision_transformer

  arrays = {}
  views = draw(arrays)

  def network():
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    vit = vision_transformer.VisionTransformer(
      img_size=[SIZE], qkv_bias=True, norm_layer=norm, **VIT
    )
    head = vision_transformer.DINOHead(DIM, K, norm_last_layer=False, **HEAD)
    return utils.MultiCropWrapper(vit, head)

  student, teacher = perturb(network()), network().double()
  teacher.load_state_dict(student.state_dict())
  teacher.requires_grad_(False)
  store(arrays, "dino/start", student)
  criterion = main_dino.DINOLoss(K, 4, 0.04, 0.07, 2, EPOCHS).double()

  def loss(step):
    target = teacher(list(views[step][:2]))
    return criterion(student(list(views[step])), target, step // LENGTH)

  fit(arrays, "dino", utils, student, teacher, loss)
  arrays["dino/centre"] = criterion.center[0].numpy()
  optimizer(arrays, "dino", utils)
  return arrays


def optimizer(arrays, prefix, utils):
  """Their AdamW, with clipping and the frozen last layer."""
  rng = np.random.default_rng(2)
  model = nn.Module()
  model.mlp = nn.Linear(5, 4)
  model.last_layer = nn.Linear(4, 7, bias=False)
  model.double()
  rates, decays, _ = schedules(utils)
  tx = torch.optim.AdamW(utils.get_params_groups(model))
  params = dict(model.named_parameters())
  for name, p in params.items():
    p.data = p.data.float().double()
    arrays[f"{prefix}/adamw/start/{name}"] = p.detach().numpy().copy()
    grads = 3.0 * rng.normal(size=(STEPS, *p.shape)).astype("float32")
    arrays[f"{prefix}/adamw/grads/{name}"] = grads
  history = {name: [] for name in params}
  for step in range(STEPS):
    for i, group in enumerate(tx.param_groups):
      group["lr"] = rates[step]
      if i == 0:
        group["weight_decay"] = decays[step]
    for name, p in params.items():
      g = arrays[f"{prefix}/adamw/grads/{name}"][step]
      p.grad = torch.from_numpy(g).double()
    utils.clip_gradients(model, CLIP)
    utils.cancel_gradients_last_layer(step // LENGTH, model, 1)
    tx.step()
    for name, p in params.items():
      history[name].append(p.detach().numpy().copy())
  for name in params:
    arrays[f"{prefix}/adamw/history/{name}"] = np.stack(history[name])


def ibot(path):
  alone()
  without_torchvision()
  sys.path.insert(0, path)
  stub("timm.models.registry", register_model=lambda f: f)
  names = ("DropPath", "to_2tuple", "trunc_normal_")
  stub("timm.models.layers", **dict.fromkeys(names))
  stub("loader", ImageFolderMask=None)
  stub("tensorboardX", SummaryWriter=None)
  stub("munkres", Munkres=None)
  stub("evaluation.unsupervised.unsup_cls", eval_pred=None)
  import main_ibot
  import models
  import utils

  arrays = {}
  for shared in (True, False):
    prefix = "ibot" if shared else "ibot_apart"
    views, masks = draw(arrays), draw_masks(arrays)
    patch_k = K if shared else K - 3

    def network(masked, shared=shared, patch_k=patch_k):
      vit = models.vision_transformer.VisionTransformer(
        img_size=[SIZE],
        qkv_bias=True,
        return_all_tokens=True,
        masked_im_modeling=masked,
        **VIT,
      )
      head = main_ibot.iBOTHead(
        DIM, K, patch_out_dim=patch_k, shared_head=shared, **HEAD
      )
      return utils.MultiCropWrapper(vit, head)

    student, teacher = perturb(network(True)), network(False).double()
    teacher.load_state_dict(student.state_dict(), strict=False)
    teacher.requires_grad_(False)
    store(arrays, f"{prefix}/start", student)
    criterion = main_ibot.iBOTLoss(
      K, patch_k, 2, 2, 0.04, 0.06, 0.05, 0.07, 2, EPOCHS
    ).double()

    def loss(
      step,
      student=student,
      teacher=teacher,
      criterion=criterion,
      views=views,
      masks=masks,
    ):
      crops, mask = list(views[step]), list(masks[step])
      target = teacher(crops[:2])
      out = student(crops[:2], mask=mask)
      student.backbone.masked_im_modeling = False
      local = student(crops[2:])[0]
      student.backbone.masked_im_modeling = True
      return criterion(out, target, local, mask, step // LENGTH)["loss"]

    fit(arrays, prefix, utils, student, teacher, loss)
    arrays[f"{prefix}/centre"] = criterion.center[0].numpy()
    arrays[f"{prefix}/patch_centre"] = criterion.center2[0, 0].numpy()
  return arrays


class _Joined:
  """`fmha.BlockDiagonalMask`, of what the head needs."""

  def __init__(self, sizes):
    self.sizes = sizes

  @classmethod
  def from_tensor_list(cls, xs):
    return cls([x.shape[1] for x in xs]), torch.cat(xs, dim=1)

  def split(self, x):
    return list(x.split(self.sizes, dim=1))


def _import_dinov2(path):
  sys.path.insert(0, path)
  os.environ["XFORMERS_DISABLED"] = "1"
  fmha = types.SimpleNamespace(BlockDiagonalMask=_Joined)
  stub("xformers", ops=None)
  stub("xformers.ops", fmha=fmha)
  none = lambda *args, **kwargs: None
  names = ("get_fsdp_wrapper", "ShardedGradScaler", "get_fsdp_modules")
  stub("dinov2.fsdp", reshard_fsdp_model=none, **dict.fromkeys(names, none))
  torch.Tensor.cuda = lambda self, *args, **kwargs: self
  # Of the package only this module, for its `train.py` wants fvcore.
  stub("dinov2.train", __path__=[os.path.join(path, "dinov2", "train")])
  from dinov2.layers import block
  from dinov2.train import ssl_meta_arch

  one = block.Block.forward
  block.NestedTensorBlock.forward = lambda self, x: (
    [one(self, y) for y in x] if isinstance(x, list) else one(self, x)
  )
  return ssl_meta_arch


def dinov2(path):
  alone()
  arch = _import_dinov2(path)
  import omegaconf
  from dinov2.layers import MemEffAttention
  from dinov2.layers import NestedTensorBlock
  from dinov2.models import vision_transformer
  from dinov2.utils import utils

  def networks(cfg):
    make = lambda: vision_transformer.DinoVisionTransformer(
      img_size=SIZE,
      block_fn=functools.partial(NestedTensorBlock, attn_class=MemEffAttention),
      init_values=0.5,
      num_register_tokens=2,
      block_chunks=0,
      **VIT,
    )
    return make(), make(), DIM

  arch.build_model_from_cfg = networks
  default = omegaconf.OmegaConf.load(
    os.path.join(path, "dinov2", "configs", "ssl_default_config.yaml")
  )
  arrays = {}
  head = {f"head_{k}": v for k, v in HEAD.items()}
  for name, centring in (("dinov2", "sinkhorn_knopp"), ("short", "centering")):
    apart = centring == "sinkhorn_knopp"
    cfg = omegaconf.OmegaConf.merge(
      default,
      dict(
        compute_precision=dict(grad_scaler=False),
        dino=dict(head_n_prototypes=K, **head),
        ibot=dict(
          head_n_prototypes=K - 3,
          separate_head=apart,
          **(head | {"head_bottleneck_dim": 5}),
        ),
        crops=dict(local_crops_number=2, global_crops_size=SIZE),
        train=dict(centering=centring),
        optim=dict(layerwise_decay=0.7, clip_grad=CLIP),
      ),
    )
    model = arch.SSLMetaArch(cfg)
    train_dinov2(arrays, name, model, cfg, utils)
  return arrays


def train_dinov2(arrays, name, model, cfg, utils):
  """`do_train` with SGD."""
  views, masks = draw(arrays), draw_masks(arrays)
  student, teacher = perturb(model.student), model.teacher.double()
  model.double().train()
  teacher.load_state_dict(student.state_dict())
  model.need_to_synchronize_fsdp_streams = False
  store(arrays, f"{name}/start", student)
  tx = torch.optim.SGD(model.get_params_groups(), lr=0, momentum=0.9)
  schedule = lambda *args: utils.CosineScheduler(*args)
  rates = schedule(0.05, 1e-3, STEPS)
  decays = schedule(0.04, 0.4, STEPS)
  momenta = schedule(0.8, 1, STEPS)
  heats = schedule(0.07, 0.07, 2 * LENGTH, 2 * LENGTH, 0.04)
  history, norms = [], []
  for step in range(STEPS):
    for group in tx.param_groups:
      group["weight_decay"] = decays[step] * group["wd_multiplier"]
      frozen = group["is_last_layer"] and step < LENGTH
      group["lr"] = 0 if frozen else rates[step] * group["lr_multiplier"]
    mask = masks[step].flatten(0, 1).flatten(1)
    weight = (1 / mask.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    batch = {
      "collated_global_crops": views[step][:2].flatten(0, 1),
      "collated_local_crops": views[step][2:].flatten(0, 1),
      "collated_masks": mask,
      "mask_indices_list": mask.flatten().nonzero().flatten(),
      "n_masked_patches": mask.sum().reshape(1),
      "upperbound": int(mask.numel() // 2),
      "masks_weight": weight.expand_as(mask)[mask].double(),
    }
    tx.zero_grad()
    loss = {}
    model.backprop_loss = lambda total, loss=loss: (
      loss.update(total=total.item()),
      total.backward(),
    )
    model.forward_backward(batch, teacher_temp=heats[step])
    for part in student.values():
      norms.append(
        nn.utils.clip_grad_norm_(part.parameters(), cfg.optim.clip_grad).item()
      )
    tx.step()
    with torch.no_grad():
      for p, q in zip(student.parameters(), teacher.parameters()):
        q.mul_(momenta[step]).add_((1 - momenta[step]) * p)
    history.append(loss["total"])
  print(name, "norms", np.round(norms, 2))
  arrays[f"{name}/losses"] = np.array(history)
  pack(arrays, f"{name}/end", student, student)
  pack(arrays, f"{name}/teacher", teacher, student)
  if cfg.train.centering == "centering":
    model.dino_loss.apply_center_update()
    model.ibot_patch_loss.apply_center_update()
    arrays[f"{name}/centre"] = model.dino_loss.center[0].numpy()
    arrays[f"{name}/patch_centre"] = model.ibot_patch_loss.center[0, 0].numpy()


def main():
  arrays = {}
  for make, path in zip((dino, ibot, dinov2), sys.argv[1:4]):
    # A process each: two of them have a `utils`.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
      arrays |= pool.submit(make, os.path.abspath(path)).result()
  folder = os.path.dirname(os.path.abspath(__file__))
  path = os.path.join(folder, "distillation.npz")
  np.savez_compressed(path, **arrays)
  print(path, os.path.getsize(path))
  for name in arrays:
    if name.endswith("losses"):
      print(name, arrays[name])


if __name__ == "__main__":
  main()
