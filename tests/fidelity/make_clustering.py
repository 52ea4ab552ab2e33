"""Writes clustering.npz: SwAV, DeepCluster v2 and DeepCluster: assignments,
clusters, and steps of training.

Run where torch, scipy and faiss-cpu are installed, with checkouts
of the authors' code, facebookresearch/swav and deepcluster:

  python tests/fidelity/make_clustering.py SWAV DEEPCLUSTER

In float64, but for faiss. The networks are the authors' heads on one layer,
which sees the first nine of a crop's numbers; small crops have no more. What
they do on a GPU is done on the CPU; apex is not needed, as its LARC is held to
in moco.npz and SGD takes its place here. DeepCluster's loop is put together
anew, for `main.py` is not valid in today's Python.
"""

import argparse
import importlib.machinery
import importlib.util
import os
import sys
import types

import faiss
import numpy as np
import torch
from torch import nn

SWAV, DEEPCLUSTER = sys.argv[1:3]
BATCH, WIDTH, HIDDEN, DIM, PROTOTYPES = 16, 8, 10, 6, 7

torch.Tensor.cuda = lambda self, **unused: self
# Imported by the authors, and not needed for what is done here.
for name in (
  "apex",
  "apex.parallel",
  "apex.parallel.LARC",
  "pandas",
  "torchvision",
  "torchvision.datasets",
  "torchvision.transforms",
):
  sys.modules[name] = importlib.util.module_from_spec(
    importlib.machinery.ModuleSpec(name, None)
  )
sys.modules["apex.parallel.LARC"].LARC = None
sys.modules["torchvision.datasets"].ImageFolder = object
sys.path[:0] = [SWAV, DEEPCLUSTER]


def load(*path):
  spec = importlib.util.spec_from_file_location("authors", os.path.join(*path))
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


resnet = load(SWAV, "src", "resnet50.py")


class Network(resnet.ResNet):
  """Their `forward` and heads, behind one layer."""

  def __init__(self, prototypes):
    nn.Module.__init__(self)
    self.body = nn.Linear(9, WIDTH)
    self.projection_head = nn.Sequential(
      nn.Linear(WIDTH, HIDDEN),
      nn.BatchNorm1d(HIDDEN),
      nn.ReLU(),
      nn.Linear(HIDDEN, DIM),
    )
    self.l2norm = True
    if isinstance(prototypes, list):
      self.prototypes = resnet.MultiPrototypes(DIM, prototypes)
    else:
      self.prototypes = nn.Linear(DIM, prototypes, bias=False)

  def forward_backbone(self, x):
    return torch.relu(self.body(x[:, :9]))


def store(arrays, prefix, module):
  for name, value in module.state_dict().items():
    arrays[f"{prefix}/{name}"] = value.numpy().copy()


def crops(rng, steps):
  """Large [steps b 2 12] and small [steps b 2 9] crops."""
  x = rng.normal(size=(steps, BATCH, 1, 12))
  large = x + 0.3 * rng.normal(size=(steps, BATCH, 2, 12))
  small = x[..., :9] + 0.5 * rng.normal(size=(steps, BATCH, 2, 9))
  return large.astype("float32"), small.astype("float32")


def listed(large, small):
  both = [torch.from_numpy(x).double() for x in (large, small)]
  return [crop for x in both for crop in x.unbind(1)]


class Loader(list):
  """Batches, with the attributes of a DataLoader that the authors read."""

  dataset = range(0)


class Parallel:
  """In the place of DistributedDataParallel."""

  def __init__(self, model):
    self.module = model
    self.train, self.named_parameters = model.train, model.named_parameters

  def __call__(self, inputs):
    return self.module(inputs)


def training(model):
  optimizer = torch.optim.SGD(
    model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3
  )
  return Parallel(model), optimizer


def recorded(authors):
  """The losses that the authors' meter is given."""
  losses = []

  class Meter:
    val = avg = 0.0

    def update(self, value, n=1):
      if n == BATCH:
        losses.append(value)

  authors.AverageMeter = Meter
  return losses


def swav(arrays):
  authors = load(SWAV, "main_swav.py")
  authors.args = argparse.Namespace(
    epsilon=0.05, sinkhorn_iterations=3, world_size=1
  )
  rng = np.random.default_rng(0)
  for name, shape, scale in (("wide", (24, 10), 1.0), ("tall", (9, 31), 0.5)):
    logits = scale * rng.uniform(-1, 1, size=shape).astype("float32")
    arrays[f"sinkhorn/{name}/logits"] = logits
    out = authors.distributed_sinkhorn(torch.from_numpy(logits).double())
    arrays[f"sinkhorn/{name}/out"] = out.numpy()
  epochs, steps = 2, 4
  large, small = crops(rng, epochs * steps)
  arrays["swav/views"], arrays["swav/local_views"] = large, small
  authors.args = argparse.Namespace(
    epsilon=0.05,
    sinkhorn_iterations=3,
    world_size=1,
    crops_for_assign=[0, 1],
    nmb_crops=[2, 2],
    temperature=0.1,
    use_fp16=False,
    freeze_prototypes_niters=2,
    rank=1,
  )
  losses, model = recorded(authors), Network(PROTOTYPES).double()
  with torch.no_grad():  # so that the file says with what it begins
    weight = model.prototypes.weight
    weight.copy_(nn.functional.normalize(weight, dim=1))
  store(arrays, "swav/start", model)
  call, optimizer = training(model)
  queue = None
  for epoch in range(epochs):
    loader = Loader(
      listed(large[i], small[i])
      for i in range(epoch * steps, (epoch + 1) * steps)
    )
    if epoch == 1:  # as main() does
      queue = torch.zeros(2, 2 * BATCH, DIM).double()
    _, queue = authors.train(loader, call, optimizer, epoch, [0.1] * 8, queue)
  arrays["swav/losses"] = np.array(losses)
  with torch.no_grad():  # as the next step would
    weight.copy_(nn.functional.normalize(weight, dim=1))
  store(arrays, "swav/end", model)
  arrays["swav/queue"] = queue.numpy()


def deepcluster_v2(arrays):
  authors = load(SWAV, "main_deepclusterv2.py")
  authors.args = argparse.Namespace(
    nmb_prototypes=[PROTOTYPES] * 3,
    crops_for_assign=[0, 1],
    nmb_crops=[2, 2],
    feat_dim=DIM,
    world_size=1,
    temperature=0.1,
    freeze_prototypes_niters=300000,
    rank=0,
  )
  authors.logger = types.SimpleNamespace(info=lambda *unused: None)
  rng = np.random.default_rng(1)
  epochs, steps = 2, 3
  n = BATCH * steps
  large, small = crops(rng, epochs * steps)
  order = np.stack([rng.permutation(n) for _ in range(epochs)])
  memory = rng.normal(size=(2, n, DIM))
  memory /= np.linalg.norm(memory, axis=2, keepdims=True)
  memory = memory.astype("float32")
  arrays |= {
    "deepcluster_v2/views": large,
    "deepcluster_v2/local_views": small,
    "deepcluster_v2/order": order,
    "deepcluster_v2/memory": memory,
  }
  losses = recorded(authors)
  model = Network([PROTOTYPES] * 3).double()
  store(arrays, "deepcluster_v2/start", model)
  call, optimizer = training(model)
  optimizer.optim = optimizer  # for their log
  index, embeddings = torch.arange(n), torch.from_numpy(memory).double()
  randperm, cluster, starts, found = (
    torch.randperm,
    authors.cluster_memory,
    [],
    [],
  )

  def clustered(model, index, *args):
    def drawn(size):
      places = randperm(size)
      starts.append(index[places[:PROTOTYPES]].numpy().copy())
      return places

    torch.randperm = drawn
    assignments = cluster(model, index, *args)
    torch.randperm = randperm
    found.append(assignments.numpy().copy())
    heads = [
      p.detach().numpy().copy() for p in model.module.prototypes.parameters()
    ]
    arrays[f"deepcluster_v2/prototypes{len(found) - 1}"] = np.stack(heads)
    return assignments

  authors.cluster_memory = clustered
  for epoch in range(epochs):
    loader = Loader()
    loader.dataset = range(n)
    for i in range(steps):
      places = torch.from_numpy(order[epoch, i * BATCH : (i + 1) * BATCH])
      step = epoch * steps + i
      loader.append((places, listed(large[step], small[step])))
    _, index, embeddings = authors.train(
      loader, call, optimizer, epoch, [0.1] * 6, index, embeddings
    )
  arrays["deepcluster_v2/starts"] = np.stack(starts)
  arrays["deepcluster_v2/assignments"] = np.stack(found)
  arrays["deepcluster_v2/losses"] = np.array(losses)
  store(arrays, "deepcluster_v2/end", model)
  by_index = torch.empty_like(embeddings)
  by_index[:, index] = embeddings
  arrays["deepcluster_v2/memory_end"] = by_index.numpy()


def clusters(arrays):
  """DeepCluster's whitening and its k-means, both by faiss."""
  authors = load(DEEPCLUSTER, "clustering.py")
  pca = faiss.PCAMatrix  # which takes no names any more
  faiss.PCAMatrix = lambda d, dim, eigen_power: pca(d, dim, eigen_power)
  pca.apply_py = pca.apply
  array = faiss.vector_to_array
  faiss.vector_to_array = lambda v: v if isinstance(v, list) else array(v)
  stats = lambda self: self.iteration_stats
  faiss.Clustering.obj = property(
    lambda self: [stats(self).at(i).obj for i in range(stats(self).size())]
  )
  faiss.StandardGpuResources = lambda: None
  faiss.GpuIndexFlatConfig = types.SimpleNamespace
  faiss.GpuIndexFlatL2 = lambda resources, dim, config: faiss.IndexFlatL2(dim)
  rng = np.random.default_rng(2)
  x = rng.normal(size=(240, 12)) @ rng.normal(size=(12, 12))
  x = x.astype("float32")
  whitened = authors.preprocess_features(x, pca=5)
  np.random.seed(0)
  seed = np.random.randint(1234)
  np.random.seed(0)
  assignments, inertia = authors.run_kmeans(whitened, 10)
  start = faiss.Clustering(5, 10)
  start.seed, start.niter, start.max_points_per_centroid = seed, 0, 10000000
  start.train(whitened, faiss.IndexFlatL2(5))
  first = faiss.vector_to_array(start.centroids).reshape(10, 5)
  distances = np.square(first[:, None] - whitened).sum(2)
  assert np.allclose(distances.min(1), 0)
  arrays |= {
    "clusters/x": x,
    "clusters/gram": whitened[:40] @ whitened.T,
    "clusters/start": distances.argmin(1),
    "clusters/assignments": np.array(assignments),
    "clusters/inertia": inertia,
  }
  model = load(DEEPCLUSTER, "models", "alexnet.py").alexnet(sobel=True)
  images = rng.normal(size=(2, 5, 6, 3)).astype("float32")
  out = model.sobel.double()(
    torch.from_numpy(images).double().permute(0, 3, 1, 2)
  )
  arrays["sobel/images"] = images
  arrays["sobel/out"] = out.permute(0, 2, 3, 1).numpy()


def deepcluster(arrays):
  """Two epochs of their `train`: a new head and a new optimiser for it."""
  rng = np.random.default_rng(3)
  epochs, steps = 2, 3
  x = rng.normal(size=(epochs * steps, BATCH, 1, 9)).astype("float32")
  labels = rng.integers(0, PROTOTYPES, (epochs, BATCH * steps))
  order = rng.integers(0, BATCH * steps, (epochs * steps, BATCH))
  body = nn.Linear(9, WIDTH).double()
  arrays |= {
    "deepcluster/views": x,
    "deepcluster/labels": labels,
    "deepcluster/order": order,
  }
  store(arrays, "deepcluster/start", body)
  optimizer = torch.optim.SGD(
    body.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3
  )
  losses = []
  for epoch in range(epochs):
    head = nn.Linear(WIDTH, PROTOTYPES).double()
    nn.init.normal_(head.weight, 0, 0.01)
    nn.init.zeros_(head.bias)
    store(arrays, f"deepcluster/head{epoch}", head)
    of_head = torch.optim.SGD(head.parameters(), lr=0.1, weight_decay=1e-3)
    for step in range(epoch * steps, (epoch + 1) * steps):
      target = torch.from_numpy(labels[epoch][order[step]])
      inputs = torch.from_numpy(x[step, :, 0]).double()
      loss = nn.CrossEntropyLoss()(head(torch.relu(body(inputs))), target)
      optimizer.zero_grad()
      of_head.zero_grad()
      loss.backward()
      optimizer.step()
      of_head.step()
      losses.append(loss.item())
  arrays["deepcluster/losses"] = np.array(losses)
  store(arrays, "deepcluster/end", body)
  store(arrays, "deepcluster/head_end", head)


def main():
  torch.distributed.init_process_group(
    "gloo", init_method="tcp://127.0.0.1:29519", rank=0, world_size=1
  )
  torch.set_default_dtype(torch.float64)
  torch.manual_seed(0)
  arrays = {}
  for part in (swav, deepcluster_v2, clusters, deepcluster):
    part(arrays)
  folder = os.path.dirname(os.path.abspath(__file__))
  path = os.path.join(folder, "clustering.npz")
  np.savez_compressed(path, **arrays)
  print(path, os.path.getsize(path))
  for name in arrays:
    if name.endswith("losses"):
      print(name, arrays[name])


if __name__ == "__main__":
  main()
