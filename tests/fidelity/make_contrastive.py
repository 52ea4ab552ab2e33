"""Writes contrastive.npz: NNCLR, MoCo v2+, DCL, W-MSE, LeJEPA, supervised
learning, SupCon and RotNet, their losses on features and steps of training.

Run where torch and lightly are installed, with checkouts of
vturrisi/solo-learn, raminnakhli/Decoupled-Contrastive-Learning,
htdt/self-supervised, rbalestr-lab/lejepa, HobbitLong/SupContrast and
gidariss/FeatureLearningRotNet:

  python tests/fidelity/make_contrastive.py SOLO DCL WMSE LEJEPA SUPCON ROTNET

All in float64. Each method does three steps of SGD (W-MSE of Adam) on a small
network; stored are the inputs, what was drawn, the start, the losses and the
end.
"""

import ast
import importlib.util
import os
import sys
import types
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SOLO, DCL, WMSE, LEJEPA, SUPCON, ROTNET = sys.argv[1:7]
STEPS, BATCH, INPUT, WIDTH = 3, 16, 12, 8


def load(path, name="authors"):
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def function(path, name, **scope):
  """One function of a file that cannot be imported, in a scope of ours."""
  with open(path) as f:
    tree = ast.parse(f.read())
  nodes = [n for c in ast.walk(tree) for n in ast.iter_child_nodes(c)]
  node = next(n for n in nodes if getattr(n, "name", None) == name)
  node.returns = None
  for argument in node.args.args:
    argument.annotation = None
  scope = dict(torch=torch, np=np, F=F) | scope
  exec(compile(ast.Module([node], []), path, "exec"), scope)
  return scope[name]


class Encoder(nn.Module):
  """A layer."""

  def __init__(self, width=INPUT):
    super().__init__()
    self.body = nn.Linear(width, WIDTH)

  def forward(self, x):
    return torch.relu(self.body(x.flatten(1)))


def mlp(*widths, out_norm=False):
  layers = []
  for i, (a, b) in enumerate(zip(widths, widths[1:])):
    last = i == len(widths) - 2
    layers.append(nn.Linear(a, b))
    if not last or out_norm:
      layers.append(nn.BatchNorm1d(b))
    if not last:
      layers.append(nn.ReLU())
  return nn.Sequential(*layers)


class Model(nn.Module):
  def __init__(self, projector, predictor=None, width=INPUT):
    super().__init__()
    self.encoder, self.projector = Encoder(width), projector
    self.predictor = predictor

  def forward(self, x):
    return self.projector(self.encoder(x))


def drawn(shape, seed=0, share=1.0):
  """Views that resemble each other: [steps b v ...]."""
  rng = np.random.default_rng(seed)
  one = rng.normal(size=(*shape[:2], 1, *shape[3:]))
  return (share * one + 0.3 * rng.normal(size=shape)).astype("float32")


def store(arrays, prefix, module):
  for name, value in module.state_dict().items():
    if "num_batches" not in name:
      arrays[f"{prefix}/{name}"] = value.numpy().copy()


def train(arrays, name, model, loss_fn, views, after=None, adam=False):
  arrays[f"{name}/views"] = views
  model = model.double()
  for p in model.parameters():  # as float32 stores them
    p.data = p.data.float().double()
  store(arrays, f"{name}/start", model)
  options = dict(lr=0.1, momentum=0.9, weight_decay=1e-3)
  make = torch.optim.SGD
  if adam:
    make, options = torch.optim.Adam, dict(lr=3e-3, weight_decay=1e-3, eps=1e-6)
  optimizer = make(model.parameters(), **options)
  losses = []
  for step, x in enumerate(torch.from_numpy(views).double()):
    loss = loss_fn(x, step)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if after:
      after()
  arrays[f"{name}/losses"] = np.array(losses)
  store(arrays, f"{name}/end", model)


def features(arrays, name, loss_fn, shape, seed=0):
  """The loss of drawn features, and its gradients."""
  x = drawn((1, *shape), seed)[0]
  z = torch.from_numpy(x).double().requires_grad_()
  loss = loss_fn(z)
  loss.backward()
  arrays[f"{name}/z"] = x
  arrays[f"{name}/loss"] = loss.item()
  arrays[f"{name}/grad"] = z.grad.numpy()


def nnclr(arrays):
  """solo-learn's loss, look-up and queue; lightly's module agrees on these."""
  misc = types.ModuleType("solo.utils.misc")
  misc.gather, misc.get_rank = lambda x: x, lambda: 0
  with mock.patch.dict(
    sys.modules,
    {"solo": misc, "solo.utils": misc, "solo.utils.misc": misc},
  ):
    loss_of = load(f"{SOLO}/solo/losses/nnclr.py").nnclr_loss_func
  find = function(f"{SOLO}/solo/methods/nnclr.py", "find_nn")
  enqueue = function(
    f"{SOLO}/solo/methods/nnclr.py", "dequeue_and_enqueue", gather=lambda x: x
  )
  model = Model(mlp(WIDTH, 10, 10, 6, out_norm=True), mlp(6, 9, 6))
  state = types.SimpleNamespace(queue_size=32, queue_ptr=torch.zeros(1).long())
  state.queue = F.normalize(torch.randn(32, 6), dim=1).double()
  state.queue_y = torch.zeros(32).long()
  arrays["nnclr/queue_start"] = state.queue.numpy().astype("float32")
  state.queue = torch.from_numpy(arrays["nnclr/queue_start"]).double()
  lightly = nearest_of_lightly()

  def step(x, _):
    z, p = [], []
    for view in x.unbind(1):
      z.append(model(view))
      p.append(model.predictor(z[-1]))
    z = [F.normalize(v, dim=-1) for v in z]
    near = [find(state, v)[1] for v in z]
    for v, n in zip(z, near):
      assert torch.allclose(lightly(v, state.queue), n)
    loss = sum(
      loss_of(near[i], p[1 - i], temperature=0.2) / 2 for i in range(2)
    )
    enqueue(state, z[0].detach(), torch.zeros(BATCH).long())
    return loss

  train(arrays, "nnclr", model, step, drawn((STEPS, BATCH, 2, INPUT)))
  arrays["nnclr/queue_end"] = state.queue.numpy()


def mocov2plus(arrays):
  """solo-learn's loss, queues and momentum."""
  loss_of = load(f"{SOLO}/solo/losses/mocov2plus.py").mocov2plus_loss_func
  momentum = load(f"{SOLO}/solo/utils/momentum.py")
  enqueue = function(
    f"{SOLO}/solo/methods/mocov2plus.py", "_dequeue_and_enqueue"
  )
  head = lambda: nn.Sequential(
    nn.Linear(WIDTH, 10), nn.ReLU(), nn.Linear(10, 6)
  )
  model, teacher = Model(head()), Model(head()).double()
  state = types.SimpleNamespace(queue_size=32, queue_ptr=torch.zeros(1).long())
  queue = F.normalize(torch.randn(2, 6, 32), dim=1).float()
  arrays["mocov2plus/queue_start"] = queue.numpy().copy()
  state.queue = queue.double()
  updater = momentum.MomentumUpdater(0.8, 0.95)

  def step(x, i):
    if i == 0:
      momentum.initialize_momentum_params(model, teacher)
    q = [F.normalize(model(view), dim=-1) for view in x.unbind(1)]
    with torch.no_grad():
      k = [F.normalize(teacher(view), dim=-1) for view in x.unbind(1)]
    queue = state.queue.clone().detach()
    loss = (
      loss_of(q[0], k[1], queue[1], 0.2) + loss_of(q[1], k[0], queue[0], 0.2)
    ) / 2
    enqueue(state, torch.stack(k))
    steps.append(i)
    return loss

  steps = []

  def after():  # `on_train_batch_end` of methods/base.py
    updater.update(model, teacher)
    updater.update_tau(cur_step=len(steps), max_steps=STEPS)

  views = drawn((STEPS, BATCH, 2, INPUT))
  train(arrays, "mocov2plus", model, step, views, after)
  arrays["mocov2plus/queue_end"] = state.queue.numpy()
  store(arrays, "mocov2plus/teacher", teacher)


def nearest_of_lightly():
  """`NNMemoryBankModule.forward`, given a bank."""
  folder = os.path.dirname(importlib.util.find_spec("lightly").origin)
  bank = {}
  parent = types.SimpleNamespace(
    forward=lambda output, update: (output, bank["queue"].t())
  )
  forward = function(
    f"{folder}/models/modules/nn_memory_bank.py",
    "forward",
    NNMemoryBankModule=None,
    super=lambda *_: parent,
  )

  def of(z, queue):
    bank["queue"] = queue
    return forward(None, z)

  return of


def dcl(arrays):
  authors = load(f"{DCL}/loss/dcl.py")
  losses = {
    "dcl": authors.DCL(temperature=0.1),
    "dclw": authors.DCLW(sigma=0.5, temperature=0.1),
  }
  for name, one_way in losses.items():

    def both(z1, z2, one_way=one_way):
      z1, z2 = F.normalize(z1, dim=-1), F.normalize(z2, dim=-1)
      return one_way(z1, z2) + one_way(z2, z1)

    features(
      arrays, f"{name}/features", lambda z, f=both: f(*z.unbind(1)), (12, 2, 8)
    )
    torch.manual_seed(1)
    model = Model(mlp(WIDTH, 10, 6))
    step = lambda x, _, m=model, f=both: f(*(m(v) for v in x.unbind(1)))
    train(arrays, name, model, step, drawn((STEPS, BATCH, 2, INPUT)))


def wmse(arrays):
  whitening = load(f"{WMSE}/methods/whitening.py").Whitening2d
  distance = load(f"{WMSE}/methods/norm_mse.py").norm_mse_loss
  for views in (2, 3):
    name = f"wmse{views}"
    model = Model(mlp(WIDTH, 10, 4))
    pairs = views * (views - 1) // 2
    permutations = []

    def permuted(n, permutations=permutations):
      permutations.append(torch.randperm(n))
      return permutations[-1]

    recording = mock.MagicMock(wraps=torch)
    recording.randperm = permuted
    forward = function(f"{WMSE}/methods/w_mse.py", "forward", torch=recording)
    authors = types.SimpleNamespace(
      model=model.encoder,
      head=model.projector,
      whitening=whitening(4, eps=0, track_running_stats=False),
      loss_f=distance,
      w_iter=2,
      w_size=16,
      num_pairs=pairs,
    )
    # Their batches go to a GPU as they come.
    with mock.patch.object(torch.Tensor, "cuda", lambda x, **_: x):
      step = lambda x, _, f=forward, a=authors: f(a, list(x.unbind(1)))
      train(
        arrays,
        name,
        model,
        step,
        drawn((STEPS, 2 * BATCH, views, INPUT)),
        adam=True,
      )
    arrays[f"{name}/permutations"] = np.stack(permutations).reshape(
      STEPS, 2, 2 * BATCH
    )
  sample = lambda z: distance(*(whitening(4, eps=0.1)(v) for v in z.unbind(1)))
  features(arrays, "wmse/features", sample, (12, 2, 4))


def lejepa(arrays):
  sys.path.insert(0, LEJEPA)
  slicing = load(f"{LEJEPA}/lejepa/multivariate/slicing.py")
  package = types.ModuleType("univariate")
  package.__path__ = [f"{LEJEPA}/lejepa/univariate"]
  sys.modules["univariate"] = package
  test = importlib.import_module("univariate.epps_pulley").EppsPulley
  torch.set_default_dtype(torch.float64)
  sigreg = slicing.SlicingUnivariateTest(test(n_points=17), num_slices=20)
  sigreg.double()
  directions = []

  def of(z, step):
    # What the identity projects to are the directions.
    same = slicing.SlicingUnivariateTest(lambda x: x, 20, reduction=None)
    for module in (same, sigreg):
      module.global_step.fill_(step)
    directions.append(same(torch.eye(z.shape[-1])))
    return sigreg(z)

  features(arrays, "lejepa/features", lambda z: of(z[:, 0], 7), (12, 1, 6))
  arrays["lejepa/features/directions"] = directions.pop().numpy()
  model = Model(mlp(WIDTH, 10, 9, 6))

  # MINIMAL.md: all views in one pass.
  def step(x, i):
    b, v = x.shape[:2]
    z = model(x.flatten(0, 1)).reshape(b, v, -1).transpose(0, 1)
    inv_loss = (z.mean(0) - z).square().mean()
    return of(z, i) * 0.1 + inv_loss * 0.9

  train(arrays, "lejepa", model, step, drawn((STEPS, BATCH, 3, INPUT)))
  arrays["lejepa/directions"] = torch.stack(directions).numpy()


def supcon(arrays):
  loss = load(f"{SUPCON}/losses.py").SupConLoss(temperature=0.1)
  labels = np.random.default_rng(3).integers(0, 4, (STEPS, BATCH))
  labels[0, :3] = 4, 5, 6  # alone in their classes
  of = lambda z, y: loss(F.normalize(z, dim=2), torch.from_numpy(y))
  features(arrays, "supcon/features", lambda z: of(z, labels[0]), (16, 2, 8))
  arrays["supcon/features/labels"] = labels[0]
  head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 6))
  model = Model(head)

  def step(x, i):
    # main_supcon.py: all first views, then all second, in one pass.
    z = model(torch.cat(x.unbind(1)))
    return of(torch.stack(z.chunk(2), dim=1), labels[i])

  train(arrays, "supcon", model, step, drawn((STEPS, BATCH, 2, INPUT)))
  arrays["supcon/labels"] = labels


def supervised(arrays):
  """`train` of main_ce.py; its classifier is a linear layer."""
  labels = np.random.default_rng(4).integers(0, 5, (STEPS, BATCH))
  model = Model(nn.Linear(WIDTH, 5))
  criterion = nn.CrossEntropyLoss()
  step = lambda x, i: criterion(model(x[:, 0]), torch.from_numpy(labels[i]))
  train(arrays, "supervised", model, step, drawn((STEPS, BATCH, 1, INPUT)))
  arrays["supervised/labels"] = labels


def rotation(arrays):
  rotate = function(f"{ROTNET}/dataloader.py", "rotate_img")
  model = Model(nn.Linear(WIDTH, 4), width=25)
  criterion = nn.CrossEntropyLoss()

  def step(x, _):
    # `_load_function` and `_collate_fun`: four rotations of each image.
    turned = [
      np.stack([rotate(image, turn) for turn in (0, 90, 180, 270)])
      for image in x[:, 0].numpy()
    ]
    labels = torch.arange(4).repeat(len(turned))
    return criterion(model(torch.from_numpy(np.concatenate(turned))), labels)

  train(arrays, "rotation", model, step, drawn((STEPS, BATCH, 1, 5, 5, 1)))


def main():
  arrays = {}
  for make in (
    nnclr,
    dcl,
    wmse,
    supcon,
    supervised,
    rotation,
    lejepa,  # sets torch's default to float64
    mocov2plus,
  ):
    torch.manual_seed(0)
    make(arrays)
  folder = os.path.dirname(os.path.abspath(__file__))
  path = os.path.join(folder, "contrastive.npz")
  np.savez_compressed(path, **arrays)
  print(path, os.path.getsize(path))
  for name in arrays:
    if name.endswith(("loss", "losses")):
      print(name, arrays[name])


if __name__ == "__main__":
  main()
