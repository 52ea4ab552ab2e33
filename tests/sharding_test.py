"""Where arrays lie: what is cut over devices, and what is not."""

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import config as config_lib
from ssljax import errors
from ssljax import evaluate
from ssljax import run as run_lib
from ssljax import sharding
from ssljax import train
from ssljax import workdir as workdir_lib

P = jax.P
QUICK = "configs/mae_vit_fashion_mnist.py:quick"


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_arrays_are_cut_along_the_longest_dimension_that_divides():
  mesh = sharding.make_mesh(2, 4)
  assert mesh.shape == {"data": 2, "fsdp": 4}
  tree = {
    "kernel": shape(64, 128),
    "stack": shape(12, 130, 64),
    "bias": shape(8192),
    "small": shape(16, 16),
    "odd": shape(129, 33),
    "queue": shape(4096, 64),
  }
  specs = jax.tree.map(
    lambda x: x.spec, sharding.by_array(mesh, tree, "queue|center")
  )
  assert specs == {
    "kernel": P(None, "fsdp"),
    "stack": P(None, None, "fsdp"),
    "bias": P(),
    "small": P(),
    "odd": P(),
    "queue": P(),
  }
  whole = sharding.by_array(sharding.make_mesh(), tree)
  assert all(x.spec == P() for x in jax.tree.leaves(whole))


@pytest.mark.parametrize(
  "sizes, message",
  [
    ((16, 1), "8 devices"),
    ((-1, 3), "fsdp=3 does not divide 8"),
    ((-1, 0), "fsdp=0 does not divide 8"),
    ((4, 4), "data=4 x config.mesh.fsdp=4, and there are 8"),
    ((0, 1), "give 1 to 8"),
  ],
)
def test_a_mesh_that_cannot_be_is_told(sizes, message):
  with pytest.raises(errors.UserError, match=message):
    sharding.make_mesh(*sizes)


_TWO_PROCESSES = """
import sys
import jax
import numpy as np
from ssljax import errors
from ssljax import sharding
address, process = sys.argv[1:]
sharding.connect(address, 2, int(process))
# As TPUs lie in a mesh: a process's devices are not side by side.
devices = np.array(jax.devices())[[0, 2, 3, 1]]
mesh = jax.sharding.Mesh(devices.reshape(2, 2), ("data", "fsdp"))
try:
  sharding.make_mesh(1, 1)
  raise AssertionError("a process has no device")
except errors.UserError as e:
  assert "leaves processes without a device" in str(e)

def fails():
  raise errors.SafeStop("all are damaged")

for function, first in ((lambda: 7, 7), (fails, None)):
  try:
    assert sharding.by_first(function) == (None, first)[process == "0"]
    assert first
  except errors.SafeStop as e:
    said = ("the first process stopped", "all are damaged")[process == "0"]
    assert said in str(e) and function is fails, e
rows = sharding.rows(mesh, 8)
assert rows.tolist() == [[0, 1, 6, 7], [2, 3, 4, 5]][int(process)], rows
whole = np.arange(8) * 10
x = sharding.put_parts(whole[rows], sharding.by_example(mesh))
assert sharding.gather(x).tolist() == whole.tolist(), sharding.gather(x)
mine = int(process) + np.arange(3, dtype=np.float32)
first = sharding.of_first({"step": -1 - int(process), "a": [mine], "x": x})
assert first["step"] == -1 and first["a"][0].tolist() == [0, 1, 2], first
assert first["a"][0].dtype == np.float32 and first["x"] is x
"""


def in_two_processes(script, *arguments):
  """Runs it in two, with two devices each, to which these are given as well."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  flags = "--xla_force_host_platform_device_count=2"
  both = [
    subprocess.Popen(
      [sys.executable, "-c", script, address, process, *arguments],
      env=os.environ | {"XLA_FLAGS": flags},
    )
    for process in "01"
  ]
  assert [process.wait(120) for process in both] == [0, 0]


def test_a_process_has_the_rows_that_its_devices_have():
  in_two_processes(_TWO_PROCESSES)


_EACH_ITS_OWN = """
import sys
import numpy as np
from ssljax import config as config_lib
from ssljax import evaluate
from ssljax import run as run_lib
from ssljax import sharding
address, process, quick, out = sys.argv[1:]
sharding.connect(address, 2, int(process))
run = run_lib.build(config_lib.load(quick, []))

class Counted:
  def __init__(self, source):
    self.source, self.rows = source, 0

  def __len__(self):
    return len(self.source)

  def __getattr__(self, name):
    return getattr(self.source, name)

  def read(self, indices):
    self.rows += len(indices)
    return self.source.read(indices)

def refresh(params, method_state, read, *, rng):
  places = [index for index, _ in read(lambda batch: batch["views"])]
  assert sorted(set(np.concatenate(places))) == list(range(len(source)))
  assert source.rows == len(places) * run.config.batch_size // 2, source.rows
  mine = np.full_like(method_state["prototypes"], 3 + int(process))
  return params, method_state | {"prototypes": mine}

source = Counted(run.source)
method = run.method._replace(refresh=refresh)
run = run._replace(source=source, method=method)
state = run_lib.make_refresh(run)(run_lib.init_state(run))
assert (sharding.gather(state.method_state["prototypes"]) == 3).all()
test, size = Counted(evaluate.labelled(run, None, "test")), 100
run.config.eval.batch_size = size
rows = evaluate.embed(run, state, test)
assert test.rows == -(-len(test) // size) * size // 2, test.rows
np.savez(f"{out}{process}.npz", **rows)
"""


def test_each_process_reads_its_own_rows_alone(tmp_path):
  quick = "configs/deepcluster_v2_resnet18_fashion_mnist.py:quick"
  in_two_processes(_EACH_ITS_OWN, quick, f"{tmp_path}/")
  run = run_lib.build(config_lib.load(quick, []))
  source = evaluate.labelled(run, None, "test")
  whole = evaluate.embed(run, run_lib.init_state(run), source)
  assert whole["index"].tolist() == list(range(len(source)))
  for process in "01":
    with np.load(f"{tmp_path}/{process}.npz") as rows:
      assert set(rows) == {"pooled", "index", "label"}
      np.testing.assert_array_equal(rows["index"], whole["index"])
      np.testing.assert_array_equal(rows["label"], whole["label"])
      np.testing.assert_allclose(rows["pooled"], whole["pooled"], atol=1e-5)


@pytest.fixture(name="runs", scope="module")
def fixture_runs():
  """The same run on one device and, its state cut, on 2 x 4."""
  meshes = {"one": (1, 1), "cut": (2, 4)}
  return {
    name: run_lib.build(
      config_lib.load(
        QUICK, [f"--config.mesh.data={d}", f"--config.mesh.fsdp={f}"]
      )
    )
    for name, (d, f) in meshes.items()
  }


def after(run, steps=3):
  state = run_lib.init_state(run)
  losses = []
  for update in train.updates(run, state, train.compile_step(run), stop=steps):
    losses.append(float(update.metrics["loss"]))
  return losses, update.state


def parts(x):
  """Into how many the array is cut on 4 devices; all here divide."""
  return 4 if x.ndim > 1 and x.size >= 4096 else 1


def test_a_state_that_is_cut_trains_as_one_that_is_whole(runs):
  (losses, state), (expected, _) = after(runs["cut"]), after(runs["one"])
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  leaves = jax.tree.leaves(state)
  local = sum(x.addressable_shards[0].data.nbytes for x in leaves)
  assert local == sum(x.nbytes // parts(x) for x in leaves)
  kernel = state.params["encoder"]["block0"]["fc1"]["kernel"]
  assert kernel.sharding.spec == P(None, "fsdp")
  moments = [
    x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape
  ]
  assert moments and all(x.sharding == kernel.sharding for x in moments)


@pytest.mark.parametrize(
  "config, flags",
  [
    (QUICK, ["--config.accumulate=4"]),
    # Its first step is after a refresh: the memory, k-means, prototypes.
    ("configs/deepcluster_v2_resnet18_fashion_mnist.py:quick", []),
  ],
)
def test_cut_it_accumulates_and_refreshes_as_whole(config, flags):
  losses = {}
  for data, fsdp in ((1, 1), (2, 4)):
    mesh = [f"--config.mesh.data={data}", f"--config.mesh.fsdp={fsdp}"]
    run = run_lib.build(config_lib.load(config, [*flags, *mesh]))
    losses[fsdp], state = after(run)
  np.testing.assert_allclose(losses[4], losses[1], rtol=1e-5)
  cut = [x for x in jax.tree.leaves(state) if "fsdp" in x.sharding.spec]
  assert cut and all(parts(x) == 4 for x in cut)


def test_no_device_holds_the_whole_of_what_is_cut(runs):
  memory = {}
  for name, run in runs.items():
    step = train.compile_step(run).lower(
      run.abstract_state, run_lib.abstract_batch(run), jax.random.key(0)
    )
    memory[name] = step.compile().memory_analysis().argument_size_in_bytes
  leaves = jax.tree.leaves(runs["one"].abstract_state)
  bytes_of = lambda x: x.size * x.dtype.itemsize
  saved = sum(bytes_of(x) - bytes_of(x) // parts(x) for x in leaves)
  assert saved > 200_000
  assert memory["cut"] <= memory["one"] - saved


def test_what_stays_whole_must_be_a_regular_expression():
  with pytest.raises(errors.UserError, match="is no regular expression"):
    sharding.by_array(sharding.make_mesh(), {}, "queue(")


@pytest.mark.parametrize(
  "data, fsdp, batch, have",
  [(5, 4, 64, 8), (-1, 16, 64, 8), (-1, 3, 64, 8), (-1, 1, 36, 4)],
)
def test_a_run_of_other_devices_is_restored_on_those_that_are_here(
  tmp_path, data, fsdp, batch, have
):
  flags = [f"mesh.data={data}", f"mesh.fsdp={fsdp}", f"batch_size={batch}"]
  config = config_lib.load(QUICK, [f"--config.{flag}" for flag in flags])
  config_lib.save(config, tmp_path / "config.json")
  mesh = workdir_lib.restore_config(str(tmp_path)).mesh
  assert (mesh.data, mesh.fsdp) == (have, 1)


def test_a_config_of_before_has_the_defaults_of_keys_that_came_since(tmp_path):
  config = config_lib.to_dict(config_lib.load(QUICK, []))
  del config["mesh"]["fsdp"], config["watchdog_s"]
  config["method"] = {"name": "mae"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  restored = config_lib.restore(tmp_path / "config.json")
  assert restored.mesh.fsdp == 1 and restored.watchdog_s is None
  assert restored.method.to_dict() == {"name": "mae"}
