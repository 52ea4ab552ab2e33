"""What happens before an epoch: in the trainer, and resumed to the bit."""

import os
import shutil

import jax
import numpy as np
import pytest

from ssljax import config as config_lib
from ssljax import run as run_lib
from ssljax import train
from ssljax.data import stream

CONFIG = """
from ssljax import config as config_lib

def get_config(arg=None):
  config = config_lib.base()
  config.data.name = "digits"
  config.batch_size = 240  # five steps an epoch of 1437
  config.steps = 12
  config.log_every = 1
  config.augment = dict(name="deepcluster", area=(0.5, 1.0))
  config.encoder = dict(name="vit", variant="Mu/2", depth=1)
  config.method = dict(name="deepcluster", num_clusters=12, kmeans_iterations=4)
  config.optimizer = dict(
    name="sgd",
    learning_rate=0.05,
    momentum=0.9,
    groups=(dict(match="^head/", momentum=0.0),),
  )
  config.checkpoint = dict(every_steps=1, keep=20)
  config.eval.last = False
  config.monitor.every_steps = 0
  return config_lib.finish(config, arg)
"""

DEEPCLUSTER_V2 = [
  "--config.augment.views=2",
  "--config.method.name=deepcluster_v2",
  "--config.method.num_prototypes=12",
  "--config.method.out_dim=16",
  "--config.method.hidden_dim=16",
]


def load(name, folder):
  path = folder / "config.py"
  text = CONFIG
  if name == "deepcluster_v2":
    text = text.replace("num_clusters=12, ", "").replace("^head/", "^proj")
  path.write_text(text)
  flags = DEEPCLUSTER_V2 if name == "deepcluster_v2" else []
  return config_lib.load(str(path), ["--config.mesh.data=1", *flags])


@pytest.mark.parametrize(
  "name",
  [pytest.param("deepcluster", marks=pytest.mark.slow), "deepcluster_v2"],
)
def test_resumed_at_and_off_an_epochs_edge_is_the_same_to_the_bit(
  name, tmp_path
):
  config = load(name, tmp_path)
  whole = str(tmp_path / "whole")
  figures = train.train(config, whole)
  assert figures["compiles"] == 1
  for last in (5, 7):  # the first step of an epoch, and one within
    workdir = str(tmp_path / f"killed{last}")
    shutil.copytree(whole, workdir)
    for step in range(last + 1, 13):
      shutil.rmtree(os.path.join(workdir, "checkpoints", str(step)))
    again = train.train(config, workdir)
    assert again["resumed_from"] == last and again["compiles"] == 1
    assert again["state_sha256"] == figures["state_sha256"]


def test_a_refresh_is_before_each_epoch_and_its_weights_are_drawn_by(
  tmp_path, monkeypatch
):
  config = load("deepcluster", tmp_path)
  refreshed, streams = [], []
  make_refresh, batches = run_lib.make_refresh, stream.batches

  def watched(run):
    refresh = make_refresh(run)

    def call(state):
      after = refresh(state)
      weights = np.asarray(after.method_state["sampling_weights"])
      refreshed.append((int(state.step), weights))
      same = jax.tree.map(
        lambda a, b: np.array_equal(a, b), state.params, after.params
      )
      assert all(jax.tree.leaves(same["encoder"]))
      assert not same["head"]["kernel"]
      return after

    return call

  def seen(*args, **options):
    streams.append(options)
    return batches(*args, **options)

  monkeypatch.setattr(run_lib, "make_refresh", watched)
  monkeypatch.setattr(stream, "batches", seen)
  train.train(config, str(tmp_path / "run"))
  assert [step for step, _ in refreshed] == [0, 5, 10]
  assert [(s["start_step"], s["stop_step"]) for s in streams] == [
    (0, 5),
    (5, 10),
    (10, 12),
  ]
  for (_, weights), options in zip(refreshed, streams):
    np.testing.assert_array_equal(options["weights"], weights)
    assert len(set(weights)) > 1


def test_read_gives_each_example_and_fixed_shapes(tmp_path):
  config = load("deepcluster", tmp_path)
  run = run_lib.build(config)
  indices, views = [], {}

  def look(params, method_state, read, *, rng):
    for train_views in (False, True):
      pairs = list(read(lambda batch: batch["views"], train=train_views))
      assert len({v.shape for _, v in pairs}) == 1
      indices.append(np.concatenate([index for index, _ in pairs]))
      views[train_views] = pairs[0][1]
    return params, method_state

  run = run._replace(method=run.method._replace(refresh=look))
  state = run_lib.init_state(run)
  after = run_lib.make_refresh(run)(state)
  assert after.params is not None
  expected = np.arange(240 * 6) % 1437
  np.testing.assert_array_equal(indices, [expected, expected])
  assert (views[False] != views[True]).any()


def test_a_refresh_that_changes_shapes_is_refused(tmp_path):
  run = run_lib.build(load("deepcluster", tmp_path))
  wrong = lambda params, method_state, read, *, rng: (params, {})
  run = run._replace(method=run.method._replace(refresh=wrong))
  with pytest.raises(ValueError, match="other arrays"):
    run_lib.make_refresh(run)(run_lib.init_state(run))
