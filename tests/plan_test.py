"""Plans: counts against published ones, programs, what does not fit."""

import glob
import json
import os
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import cli
from ssljax import config as config_lib
from ssljax import errors
from ssljax import plan as plan_lib
from ssljax import run as run_lib
from ssljax import train
from ssljax.data import sources
from ssljax.models import resnet
from ssljax.models import vit
from ssljax.plan import flops
from ssljax.plan import hardware
from ssljax.plan import hlo
from ssljax.plan import loader
from ssljax.plan import source as source_lib
from ssljax.plan import table

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QUICK = os.path.join(ROOT, "configs", "mae_vit_fashion_mnist.py:quick")


_COMPILED, _compile_step = {}, plan_lib.compile_step


@pytest.fixture(autouse=True)
def each_program_once(monkeypatch):
  """A chip's figures change no program: one of a config and its devices."""

  def compile_step(run, chip):
    key = repr(config_lib.to_dict(run.config)), run.mesh.devices.shape
    if key not in _COMPILED:
      _COMPILED[key] = _compile_step(run, chip)
    return _COMPILED[key]

  monkeypatch.setattr(plan_lib, "compile_step", compile_step)


def forward_flops(encoder, size):
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  init = lambda x: encoder.init(jax.random.key(0), x, train=False)
  variables = jax.eval_shape(init, x)
  apply = lambda v, x: encoder.apply(v, x, train=False)["pooled"]
  return flops.count(apply, variables, x)


@pytest.mark.parametrize(
  "encoder, macs",
  [
    # Without their classifiers, of 768 and 2048 x 1000.
    (vit.make(variant="B/16", scan=True), 17.58e9),
    (vit.make(variant="B/16"), 17.58e9),
    (resnet.make(variant="50"), 4.09e9),
  ],
  ids=["vit-scan", "vit", "resnet50"],
)
def test_flops_of_a_forward_pass_are_the_published(encoder, macs):
  found = forward_flops(encoder, 224) / 2
  np.testing.assert_allclose(found, macs, rtol=0.02)


def test_flops_of_a_strided_convolution_and_its_gradients():
  x, w = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))

  def loss(x, w):
    y = jax.lax.conv_general_dilated(
      x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.square(y).sum()

  forward = 2 * 2 * 4 * 4 * 4 * 27
  assert flops.count(loss, x, w) == forward
  assert flops.count(jax.value_and_grad(loss, argnums=1), x, w) == 2 * forward
  both = jax.value_and_grad(loss, argnums=(0, 1))
  assert flops.count(both, x, w) == 3 * forward


def test_flops_of_a_step_are_those_of_the_method_whatever_remat():
  path = os.path.join(ROOT, "configs", "mae_vit_fashion_mnist.py:quick")
  counts = {}
  for kind in ("none", "full"):
    config = config_lib.load(path, [f"--config.encoder.remat={kind}"])
    counts[kind] = plan_lib.model_flops(run_lib.build(config))
  assert counts["none"] == counts["full"] > 0


def test_a_teacher_has_forward_passes_alone():
  """SimSiam's two views go forward and back, BYOL's forward once more."""
  counts = {}
  for name in ("simsiam", "byol"):
    path = f"configs/{name}_resnet18_fashion_mnist.py:quick"
    run = run_lib.build(config_lib.load(os.path.join(ROOT, path), []))
    forward = plan_lib.model_flops(run, forward=True)
    counts[name] = (plan_lib.model_flops(run) - forward) / forward
  assert 1.95 < counts["simsiam"] <= 2  # none to the image itself
  assert 0.95 < counts["byol"] < 1


TEXT = """
HloModule jit_step, is_scheduled=true

%fused_update (p0: f32[12,64], p1: f32[1,64]) -> f32[12,64] {
  %p0 = f32[12,64]{1,0} parameter(0)
  %p1 = f32[1,64]{1,0:T(1,128)} parameter(1)
  %zero = s32[] constant(0)
  ROOT %put = f32[12,64]{1,0} dynamic-update-slice(%p0, %p1, %zero, %zero)
}

%body (state: (s32[], f32[64], f32[12,64])) -> (s32[], f32[64], f32[12,64]) {
  %state = (s32[], f32[64]{0}, f32[12,64]{1,0}) parameter(0)
  %x = f32[64]{0:T(128)} get-tuple-element(%state), index=1
  %all-reduce.1 = f32[64]{0:T(128)} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
  %near = f32[64]{0:T(128)S(1)} negate(%all-reduce.1)
  %row = f32[1,64]{1,0} bitcast(%all-reduce.1)
  %kept = f32[12,64]{1,0} get-tuple-element(%state), index=2
  %stack = f32[12,64]{1,0} fusion(%kept, %row), kind=kLoop, calls=%fused_update
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %next = (s32[], f32[64]{0}, f32[12,64]{1,0}) tuple(%i, %near, %stack)
}

%cond (state: (s32[], f32[64], f32[12,64])) -> pred[] {
  %state = (s32[], f32[64]{0}, f32[12,64]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(12)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[64], b: f32[12,64]) -> f32[512] {
  %a = f32[64]{0} parameter(0)
  %b = f32[12,64]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[64]{0}, f32[12,64]{1,0}) tuple(%zero, %a, %b)
  %loop = (s32[], f32[64]{0}, f32[12,64]{1,0}) while(%start), condition=%cond, body=%body
  %y = f32[64]{0} get-tuple-element(%loop), index=1
  %gather = (f32[64]{0}, f32[512]{0}) all-gather-start(%y), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %g = f32[512]{0} all-gather-done(%gather)
  %part = bf16[64]{0} reduce-scatter(%g), replica_groups={}, dimensions={0}, to_apply=%add
  ROOT %out = f32[512]{0} copy(%g)
}
"""  # noqa: E501


# As the TPU's compiler writes FSDP over 2 x 4 chips: a sum that is cut at once,
# and a gather whose start, middle and end are fusions of their own.
FSDP = """
%all-reduce-scatter (p0: f32[512]) -> f32[128] {
  %p0 = f32[512]{0} parameter(0)
  %sum = f32[512]{0} all-reduce(%p0), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=1] {'axis_1'}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %mine = f32[128]{0} dynamic-slice(%sum, %zero), dynamic_slice_sizes={128}
}

%start (p0: f32[128]) -> f32[512] {
  %p0 = f32[128]{0} parameter(0)
  ROOT %whole = f32[512]{0} all-gather(%p0), channel_id=8, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
}

%done (p0: f32[128]) -> f32[512] {
  %p0 = f32[128]{0} parameter(0)
  ROOT %whole = f32[512]{0} all-gather(%p0), channel_id=8, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
}

ENTRY %main (a: f32[512], b: f32[128]) -> f32[128] {
  %a = f32[512]{0} parameter(0)
  %b = f32[128]{0} parameter(1)
  %s = f32[512]{0} fusion(%b), kind=kCustom, calls=%start
  %d = f32[512]{0} fusion(%b), kind=kCustom, calls=%done
  ROOT %part = f32[128]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter
}
"""  # noqa: E501


def test_a_program_of_fsdp_is_read():
  program = hlo.read(FSDP, 8)
  assert program.collectives == {
    "all-gather": {"count": 1, "bytes": 2048},
    "reduce-scatter": {"count": 1, "bytes": 2048},
  }
  assert program.wire_bytes == 2 * 2048 * 3 / 4
  # Devices that are not in order are listed, in any form.
  for listed in ("([4,2]T(1,0))", "(0,2,4,6)", "([8])"):
    form = FSDP.replace("] {'axis_1'}", f"], device_ids={listed} {{'axis_1'}}")
    assert form != FSDP and hlo.read(form, 8) == program
  # A collective that stands for itself may have the number of a fused one.
  other = FSDP.replace("%s = f32[512]{0} fusion", """%other = f32[64]{0} \
all-reduce(%b), channel_id=7, replica_groups={}, to_apply=%add
  %s = f32[512]{0} fusion""")
  found = hlo.read(other, 8).collectives
  assert found["reduce-scatter"] == program.collectives["reduce-scatter"]
  assert found["all-reduce"] == {"count": 1, "bytes": 256}
  odd = FSDP.replace("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", "tree[3]")
  with pytest.raises(ValueError, match="not known: .*tree"):
    hlo.read(odd, 8)


def test_a_program_is_read_with_its_loops():
  program = hlo.read(TEXT, 8)
  assert program.collectives == {
    "all-reduce": {"count": 12, "bytes": 12 * 256},
    "all-gather": {"count": 1, "bytes": 2048},
    "reduce-scatter": {"count": 1, "bytes": 8 * 128},
  }
  wire = 12 * 2 * 256 * 3 / 4 + 2048 * 7 / 8 + 1024 * 7 / 8
  assert program.wire_bytes == wire
  # Of the loop its sum and the row that is put; what is on the chip is not.
  arguments, loop = 256 + 12 * 256, 12 * (256 + 256)
  entry, result = 2048 + 128, 2048  # the last is not read again
  assert program.hbm_bytes == arguments + 2 * (loop + entry) + result


# As the GPUs' compiler writes it: what a start gives begins with its operands.
GPU = """
ENTRY %main (a: f32[8,128], b: bf16[64,64]) -> f32[64,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %b = bf16[64,64]{1,0} parameter(1)
  %gather = ((f32[8,128]{1,0}, f32[8,2]{1,0}), (f32[64,128]{1,0}, f32[64,2]{1,0})) all-gather-start(%a, %a), channel_id=1, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}
  %both = (f32[64,128]{1,0}, f32[64,2]{1,0}) all-gather-done(%gather)
  %g = f32[64,128]{1,0} get-tuple-element(%both), index=0
  %scatter = ((f32[64,128]{1,0}), f32[8,128]{1,0}) reduce-scatter-start(%g), channel_id=2, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}, to_apply=%add
  %part = f32[8,128]{1,0} reduce-scatter-done(%scatter)
  %swap = ((f32[8,128]{1,0}), (f32[8,128]{1,0})) collective-permute-start(%part), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %other = f32[8,128]{1,0} collective-permute-done(%swap)
  %dot = (bf16[64,64]{1,0}, s8[4194304]{0}) custom-call(%b, %b), custom_call_target="__cublas$lt$matmul"
  %d = bf16[64,64]{1,0} get-tuple-element(%dot), index=0
  ROOT %out = f32[64,128]{1,0} custom-call(%d, %other), custom_call_target="mine"
}
"""  # noqa: E501


def test_a_program_of_a_gpu_is_read():
  program = hlo.read(GPU, 8)
  whole, part = 64 * 128 * 4, 8 * 128 * 4
  pair = whole + 64 * 2 * 4
  assert program.collectives == {
    "all-gather": {"count": 1, "bytes": pair},
    "reduce-scatter": {"count": 1, "bytes": whole},
    "collective-permute": {"count": 1, "bytes": part},
  }
  assert program.wire_bytes == (pair + whole) * 7 / 8 + part
  # Without the bytes that cuBLAS works in.
  arguments, product = part + 64 * 64 * 2, 64 * 64 * 2
  written = pair + 2 * part + product
  assert program.hbm_bytes == arguments + 2 * written + whole


def test_results_are_written_and_not_read():
  text = """
%update (p: f32[64], g: f32[64]) -> (f32[64], f32[64]) {
  %p = f32[64]{0} parameter(0)
  %g = f32[64]{0} parameter(1)
  %m = f32[64]{0} add(%p, %g)
  ROOT %both = (f32[64]{0}, f32[64]{0}) tuple(%m, %g)
}

ENTRY %main (a: f32[64], b: f32[64]) -> (f32[64], f32[64], f32[64]) {
  %a = f32[64]{0} parameter(0)
  %b = f32[64]{0} parameter(1)
  %g = f32[64]{0} negate(%b)
  %two = (f32[64]{0}, f32[64]{0}) fusion(%a, %g), kind=kLoop, calls=%update
  %one = f32[64]{0} get-tuple-element(%two), index=0
  ROOT %out = (f32[64]{0}, f32[64]{0}, f32[64]{0}) tuple(%one, %b, %one)
}
"""
  # Two are read; g and the second of the fusion are written and read, its first
  # is written.
  assert hlo.read(text, 1).hbm_bytes == 256 * (2 + 2 * 2 + 1)


def quick_plan(*flags, topologies=("cpu:8",), **options):
  config = config_lib.load(QUICK, list(flags))
  return plan_lib.plan(config, topologies, **options)


def test_bytes_of_the_state_are_those_of_the_real_one():
  figures = quick_plan()
  run = run_lib.build(config_lib.load(QUICK, []))
  state = run_lib.init_state(run)
  nbytes = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  for part, size in figures["state_bytes"].items():
    assert size == nbytes(getattr(state, part))
  row = figures["topologies"]["cpu:8"]
  assert row["state_bytes"] == nbytes(state)
  on_chip = lambda x: x.addressable_shards[0].data.nbytes
  run = run_lib.build(config_lib.load(QUICK, ["--config.mesh.fsdp=8"]))
  state = run_lib.init_state(run)
  sharded = quick_plan("--config.mesh.fsdp=8")["topologies"]["cpu:8"]
  held = sum(map(on_chip, jax.tree.leaves(state)))
  assert sharded["state_bytes"] == held < row["state_bytes"]
  # Gradients are summed either way; what is cut is gathered too.
  assert set(row["collectives"]) == {"all-reduce"}
  assert "all-gather" in sharded["collectives"]


def test_what_does_not_fit_is_told_with_needed_and_available(
  monkeypatch, capsys
):
  chip = hardware.Chip(2, 1e12, 2.0**20, 1e9, 1e9)
  real = hardware.devices
  monkeypatch.setattr(hardware, "devices", lambda name: (real(name)[0], chip))
  command = ["plan", f"--config={QUICK}", "--topology=cpu:8"]
  assert cli.main(command) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert re.search(r"cpu:8: .*needs 0\.\d+ GiB and has 0\.00", line), line


def largest_of(monkeypatch, needs, hbm, most=10**9, told=True, run=None):
  """(the largest batch, those that were compiled) by bytes `needs(batch)`.

  More than `most` are refused; `told` is whether the compiler says what one
  needs that does not fit.
  """
  run = run or run_lib.build(config_lib.load(QUICK, ["--config.mesh.data=2"]))
  tried = []

  def compile_step(run, chip):
    n = run.config.batch_size
    tried.append(n)
    if n > most:
      raise errors.UserError("a queue that it does not divide")
    fits = needs(n) <= chip.hbm
    return plan_lib.Compiled(needs(n) if told or fits else 7, fits or None)

  monkeypatch.setattr(plan_lib, "compile_step", compile_step)
  chip = hardware.Chip(2, 1e12, hbm, 1e9, 1e9)
  found = plan_lib._largest(run, chip, compile_step(run, chip))
  assert len(tried) == len(set(tried))
  return found, tried


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("hbm", [6e6, 1e7, 2e7])
def test_the_largest_batch_fits_and_an_eighth_more_does_not(
  monkeypatch, hbm, told
):
  needs = lambda n: 5_000_000 + 12_345 * n
  largest, tried = largest_of(monkeypatch, needs, hbm, told=told)
  assert largest % 2 == 0
  assert needs(largest) <= hbm < needs(largest + largest // 8 + 2)
  # As few as the line through the state and a first batch makes them.
  assert len(tried) <= (4 if hbm > 6e6 else 7), tried


def test_the_largest_batch_where_memory_is_no_line(monkeypatch):
  needs = lambda n: 4_000_000 + 9_000 * n + (6_000_000 if n > 300 else 0)
  for told in (True, False):
    largest, tried = largest_of(monkeypatch, needs, 1e7, told=told)
    assert 266 <= largest <= 300 and len(tried) <= 9, (largest, tried)
  square = lambda n: 4_000_000 + 20 * n * n
  largest, tried = largest_of(monkeypatch, square, 1e7)
  assert square(largest) <= 1e7 < square(largest + largest // 8 + 2)
  assert len(tried) <= 9, tried


def test_the_largest_batch_that_the_method_takes(monkeypatch):
  needs = lambda n: 5_000_000 + 12_345 * n
  assert largest_of(monkeypatch, needs, 1e7, most=64)[0] == 64
  assert largest_of(monkeypatch, needs, 1e6)[0] == 0
  # All of the data fit.
  run = run_lib.build(config_lib.load(QUICK, ["--config.mesh.data=2"]))
  monkeypatch.setattr(type(run.source), "__len__", lambda self: 1000)
  largest, _ = largest_of(monkeypatch, needs, 1e9, run=run)
  assert 888 <= largest <= 1000


def test_the_warm_up_does_not_limit_the_largest_batch(monkeypatch):
  # Of smaller batches an epoch has more steps, and so has the warm-up.
  schedule = {"name": "cosine", "warmup_epochs": 1.5}
  config = config_lib.load(QUICK, ["--config.mesh.data=2"])
  config = plan_lib.changed(config, steps=40, batch_size=64)
  with config.unlocked():
    config.schedule = schedule | {"warmup_steps": None}  # by `none`
  needs = lambda n: 5_000_000 + 12_345 * n
  found, _ = largest_of(
    monkeypatch, needs, needs(20), run=run_lib.build(config)
  )
  assert 16 <= found <= 20


def test_what_lacks_room_is_told_with_what_was_asked_for():
  row = {"peak_bytes": 3 << 30, "memory_bytes": 2 << 30}
  assert plan_lib._lacks(row) == "a chip needs 3.00 GiB and has 2.00"
  row |= {"remat": {"full": 1 << 29}, "largest_batch": 48}
  line = plan_lib._lacks(row)
  assert "with config.encoder.remat=full 0.50, the largest batch is 48" in line


@pytest.mark.parametrize(
  "bound, chip",
  [
    ("flops", hardware.Chip(2, 1e9, 2**34, 1e12, 1e12)),
    ("hbm", hardware.Chip(2, 1e15, 2**34, 1e9, 1e12)),
  ],
)
def test_floors_and_chip_hours(monkeypatch, bound, chip):
  real = hardware.devices
  monkeypatch.setattr(hardware, "devices", lambda name: (real(name)[0], chip))
  figures = quick_plan(topologies=["cpu:2"], mfu=0.5, effort="default")
  row = figures["topologies"]["cpu:2"]
  floors = row["floors_s"]
  np.testing.assert_allclose(floors["flops"], figures["flops"] / 2 / chip.flops)
  assert row["bound"] == bound == max(floors, key=floors.get)
  mfu = {"flops": 0.5, "hbm": 1.0}[bound]  # of memory all is counted on
  np.testing.assert_allclose(row["step_s"], floors[bound] / mfu)
  hours = 2 * row["step_s"] * figures["steps"] / 3600
  np.testing.assert_allclose(row["chip_hours"], hours)


def test_the_bound_is_what_the_step_waits_for(monkeypatch):
  """Not a wire that is slower than products at their peak alone."""
  real = hardware.devices
  chip = hardware.Chip(2, 1e9, 2**34, 1e12, 1e12)
  monkeypatch.setattr(hardware, "devices", lambda name: (real(name)[0], chip))
  plan_of = lambda: quick_plan(topologies=["cpu:2"], mfu=0.5)["topologies"]
  floors = plan_of()["cpu:2"]["floors_s"]
  for slower, bound in ((1.5, "flops"), (3, "interconnect")):
    rate = floors["interconnect"] * 1e12 / floors["flops"] / slower
    chip = chip._replace(wire_rate=rate)
    row = plan_of()["cpu:2"]
    assert row["bound"] == bound
    longer = {"flops": 2, "interconnect": 3}[bound]
    np.testing.assert_allclose(row["step_s"], longer * floors["flops"])


CONFIGS = sorted(glob.glob(os.path.join(ROOT, "configs", "*.py")))
EXAMPLES = {
  "folder:imagenet100": (126_689, 100),
  "wordnet_glosses": (100_000, None),
  "bible": (30_000, None),
}


@pytest.mark.parametrize(
  "path", CONFIGS, ids=lambda p: os.path.basename(p)[:-3]
)
def test_every_config_has_a_source_without_its_data(path):
  config = config_lib.load(path, [])
  known = EXAMPLES.get(config.data.name, (None, None))
  encoder = run_lib.make_encoder(config)
  source = source_lib.of(config, encoder, *known)
  run_lib.make_augments(config, source)
  source.check(encoder)
  assert len(source) >= config.batch_size


def test_examples_are_those_of_the_split():
  path = os.path.join(ROOT, "configs", "simclr_resnet18_fashion_mnist.py")
  for split, wanted in (("train", 60_000), ("train[:10%]", 6_000)):
    config = config_lib.load(path, [f"--config.data.split={split}"])
    assert len(source_lib.of(config, None, None, None)) == wanted
  for split in ("all", "test", "train[5shard]", "train+mine"):
    assert source_lib._count(split, 60_000) is None
  config = config_lib.load(path, ["--config.data.split=mine"])
  with pytest.raises(errors.UserError, match="give --examples=N"):
    source_lib.of(config, None, None, None)


def test_what_is_not_known_of_the_data_is_asked_for():
  path = os.path.join(ROOT, "configs", "wmse_resnet18_imagenet100.py")
  config = config_lib.load(path, [])
  encoder = run_lib.make_encoder(config)
  with pytest.raises(errors.UserError, match="give --examples=N"):
    source_lib.of(config, encoder, None, None)
  for name in ("deepcluster_resnet18", "simclr_resnet18"):  # by epochs, both
    path = os.path.join(ROOT, "configs", f"{name}_fashion_mnist.py")
    unknown = ["--config.data.name=folder:mine", "--config.steps=9"]
    unknown += ["--config.data.size=(8,8)", "--config.data.channels=1"]
    config = config_lib.load(path, unknown)
    with pytest.raises(errors.UserError, match="give --examples=N"):
      source_lib.of(config, encoder, None, None)
  path = os.path.join(ROOT, "configs", "supcon_resnet50_imagenet.py")
  config = config_lib.load(path, ["--config.data.name=folder:mine"])
  with pytest.raises(errors.UserError, match="give --classes=N"):
    source_lib.of(config, encoder, 1000, None)


@pytest.mark.parametrize(
  "name",
  [
    "v5e", "v5e:4by4", "cpu:x", "cpu:100000", "tpu:8", "cuda:1", "",
    "h100", "h100:0", "h100:2x2x8", "h100:99999x8", "t4:8",
  ],
)  # fmt: skip
def test_an_unknown_topology_is_told(name):
  with pytest.raises(errors.UserError, match="unknown --topology"):
    hardware.devices(name)


@pytest.mark.parametrize("name", ["v5e:4x4x4", "v6e:4x4x4", "v5p:4x4"])
def test_a_slice_of_other_dimensions_is_told(name):
  with pytest.raises(errors.UserError, match="has [23] dimensions"):
    hardware.devices(name)


def test_what_a_quick_compiler_moves_does_not_bound_the_step(monkeypatch):
  real, chip = hardware.devices, hardware.Chip(2, 1e15, 2**34, 1e9, 1e15)
  monkeypatch.setattr(hardware, "devices", lambda name: (real(name)[0], chip))
  row = quick_plan(topologies=["cpu:2"])["topologies"]["cpu:2"]
  assert row["bound"] != "hbm" and row["step_s"] < row["floors_s"]["hbm"]


@pytest.mark.parametrize("name", ["v5e:4x4", "h100:8", "a100:4x8"])
def test_what_a_topology_lacks_is_told_with_the_extra(name, monkeypatch):
  monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.UserError, match=r"pip install 'ssljax\[plan\]'"):
    hardware.devices(name)


def test_a_gpu_has_the_memory_that_jax_takes(monkeypatch):
  for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
    monkeypatch.delenv(name, raising=False)
  chip = hardware.chip_of_gpu("h100")
  np.testing.assert_allclose(chip.hbm, 0.75 * 84942979072)
  monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", ".9")
  np.testing.assert_allclose(
    hardware.chip_of_gpu("h100").hbm, 0.9 * 84942979072
  )
  for wrong in ("75", "0", "nan", "most"):
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", wrong)
    with pytest.raises(errors.UserError, match=r"FRACTION=.*give a share"):
      hardware.chip_of_gpu("h100")


def test_options_of_the_compiler_for_gpus_that_are_not_here():
  gpu = hardware.chip_of_gpu("a100")
  named = lambda: set(plan_lib._options(gpu))
  with plan_lib.effort_of("O0"):
    assert named() == {"xla_gpu_enable_triton_gemm", "xla_disable_hlo_passes"}
    assert plan_lib._options(hardware.CHIPS["v5e"]) == {}
  with plan_lib.effort_of("default"):
    assert named() == {"xla_gpu_enable_triton_gemm"}
    assert plan_lib._options(gpu._replace(here=True)) == {}
  with plan_lib.effort_of("O0"):
    here = plan_lib._options(gpu._replace(here=True))
    assert set(here) == {"xla_disable_hlo_passes"}
  assert plan_lib._options(None) == {}


@pytest.mark.parametrize(
  "names, stats",
  [
    (["NVIDIA H200"] * 2, {"bytes_limit": 113548197888, "bytes_in_use": 0}),
    (["NVIDIA H200", "NVIDIA B200"], {"bytes_limit": 113548197888}),
    (["Quadro P400"], {"bytes_limit": 113548197888}),
    (["NVIDIA H200"], None),
  ],
)
def test_gpus_that_are_here_have_their_kinds_rates(names, stats, monkeypatch):
  device = lambda name: types.SimpleNamespace(
    device_kind=name, memory_stats=lambda: stats
  )
  found = list(map(device, names))
  monkeypatch.setattr(hardware.jax, "devices", lambda platform: found)
  # More than all of it is managed memory, to jax.
  monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "2")
  devices, chip = hardware.devices("cuda")
  assert devices is found
  monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION")
  if names == ["NVIDIA H200"] * 2:
    kind = hardware.chip_of_gpu("h200")
    assert chip == kind._replace(hbm=113548197888, here=True)
  else:
    assert chip is None


def test_what_a_gpu_moves_bounds_the_step_at_O0_as_well(monkeypatch):
  real = hardware.devices
  chip = hardware.Chip(0, 1e15, 2**34, 1e9, 1e15, gpu=True)
  monkeypatch.setattr(hardware, "devices", lambda name: (real(name)[0], chip))
  figures = quick_plan(topologies=["cpu:2"])
  row = figures["topologies"]["cpu:2"]
  assert row["bound"] == "hbm"
  # In float32 its products are half as many.
  np.testing.assert_allclose(
    row["floors_s"]["flops"], figures["flops"] / 2 / (1e15 / 2)
  )


@pytest.mark.parametrize(
  "flag, message",
  [
    ("--mfu=0", "give an mfu"),
    ("--effort=-1", "an effort among O0, O1, O2, O3, default"),
    ("--remat=some", "unknown encoder.remat='some'"),
  ],
)
def test_a_plan_that_cannot_be_is_told_before_it_compiles(
  flag, message, capsys, monkeypatch
):
  monkeypatch.setattr(plan_lib, "compile_step", None)
  argv = ["plan", f"--config={QUICK}", "--topology=cpu:1", flag]
  assert cli.main(argv) == 2
  assert message in capsys.readouterr().err


def test_losses_in_blocks_count_once():
  path = os.path.join(ROOT, "configs", "gpt_124m_webtext.py:quick")
  counts = set()
  for block in (64, 1 << 20):
    config = config_lib.load(path, [f"--config.method.block={block}"])
    counts.add(plan_lib.model_flops(run_lib.build(config)))
  assert len(counts) == 1


def test_more_devices_than_jax_has_are_told():
  with pytest.raises(errors.UserError, match="device_count=9"):
    hardware.devices("cpu:9")


def test_the_loader_reads_what_the_trainer_would():
  kind = lambda shape, n: sources.ArraySource(
    {"image": np.zeros((n, *shape), np.uint8)}
  )
  small = loader.rate(kind((8, 8, 1), 64), 32)
  assert small > 10_000

  class Large(sources.ImageSource):
    shape = (256, 256, 3)

    def __len__(self):
      return 1_281_167

  assert 10 < loader.rate(Large(), 4096) < small


def test_an_encoder_of_the_users_need_not_know_remat(tmp_path, monkeypatch):
  (tmp_path / "mylab").mkdir()
  (tmp_path / "mylab" / "encoder.py").write_text(
    "from ssljax.models import resnet\n"
    "def make(*, dtype, axis_name=None):\n"
    "  return resnet.make(variant='10', width=8, stem='cifar', dtype=dtype,\n"
    "    axis_name=axis_name)\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  path = "configs/simclr_resnet18_fashion_mnist.py:quick"
  config = config_lib.load(path, ["--config.mesh.data=1"])
  config.encoder = dict(name="mylab.encoder")
  assert plan_lib.model_flops(run_lib.build(config)) > 0


def test_what_goes_through_all_examples_between_steps_is_told():
  path = "configs/deepcluster_resnet18_fashion_mnist.py:quick"
  run = run_lib.build(config_lib.load(path, ["--config.mesh.data=1"]))
  figures = plan_lib._of_run(run)
  assert figures["refreshes"] == -(-run.total_steps // run.steps_per_epoch) > 0
  figures |= {"flops": 1, "loader_per_s": None, "mfu": 0.4, "topologies": {}}
  figures["effort"] = "O0"
  told = f"not counted: {figures['refreshes']} times, between steps"
  assert told in table.table(figures)


def test_the_command_prints_a_table_and_json(capsys, monkeypatch):
  argv = ["plan", f"--config={QUICK}", "--topology=cpu:1,cpu:2"]
  assert cli.main(argv) == 0
  *table, last = capsys.readouterr().out.strip().splitlines()
  figures = json.loads(last)
  assert list(figures["topologies"]) == ["cpu:1", "cpu:2"]
  assert any(line.startswith("| cpu:2 |") for line in table)
  monkeypatch.setattr(plan_lib, "plan", lambda *args, **options: figures)
  assert cli.main([*argv, "--json"]) == 0
  assert json.loads(capsys.readouterr().out) == figures


def test_the_step_that_is_planned_is_the_one_that_trains():
  figures = quick_plan(topologies=["cpu:1"])
  run = run_lib.build(config_lib.load(QUICK, ["--config.mesh.data=1"]))
  compiled = train.compile_step(run).lower(
    run.abstract_state, run_lib.abstract_batch(run), jax.random.key(0)
  )
  m = compiled.compile().memory_analysis()
  peak = figures["topologies"]["cpu:1"]["peak_bytes"]
  least = m.argument_size_in_bytes + m.temp_size_in_bytes
  assert least <= peak <= 1.5 * least
