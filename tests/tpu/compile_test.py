"""Every config's own step compiles for a TPU: `make test-tpu`.

And one of each family for GPUs. No chip is needed, but libtpu and jax' CUDA
plugin. AIM of 600M parameters needs more memory than four v5e have.
"""

import glob
import os
import subprocess
import sys

import pytest

from ssljax import config as config_lib
from ssljax import plan
from ssljax import run as run_lib
from ssljax.plan import hardware
from ssljax.plan import source as source_lib

pytest.importorskip("libtpu")
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
CONFIGS = sorted(glob.glob(os.path.join(ROOT, "configs", "*.py")))
# What is whitened, and KoLeo's groups, must part the batch.
BATCHES = {"wmse": 256, "dinov2": 64}
EXAMPLES = {
  "folder:imagenet100": 126_689,
  "bible": 7_249,
  "wordnet_glosses": 16_784,
}


def test_a_second_process_plans_at_the_same_time():
  program = (
    "from ssljax.plan import hardware\n"
    "print(len(hardware.devices('v5e:2x2')[0]), flush=True)\n"
    "input()"
  )
  with subprocess.Popen(
    [sys.executable, "-c", program],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as other:
    assert other.stdout.readline() == "4\n"
    devices, _ = hardware.devices("v5e:2x2")
    assert len(devices) == 4
    other.communicate("\n")


def compile_for(topology, path):
  config = config_lib.load(path, [])
  # A batch of 8 examples a chip shows what a large one would, and sooner.
  batch = BATCHES.get(config.method.name, 32)
  config = plan.changed(config, batch_size=batch * config.accumulate)
  if config.data.modality == "text" and config.steps is None:
    config = plan.changed(config, steps=1000)
  examples = EXAMPLES.get(config.data.name)
  encoder = run_lib.make_encoder(config)
  source = source_lib.of(config, encoder, examples, 100)
  devices, chip = hardware.devices(topology)
  run = run_lib.build(config, source=source, devices=devices)
  with plan.effort_of("O0"):
    return plan.compile_step(run, chip)


@pytest.mark.parametrize(
  "path", CONFIGS, ids=lambda p: os.path.basename(p)[:-3]
)
def test_compiles(path):
  name = "v5p:2x2x1" if "aim_vit_imagenet" in path else "v5e:2x2"
  compiled = compile_for(name, path)
  assert compiled.peak > 0 and compiled.program is not None
  assert compiled.program.collectives["all-reduce"]["count"] > 0


FAMILIES = (
  "simclr_resnet50_imagenet",
  "swav_resnet50_imagenet",
  "dinov2_vit_imagenet",
  "mae_vit_imagenet",
  "bert_base_wikipedia",
  "gpt_124m_webtext",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_compiles_for_gpus_of_two_hosts(name):
  pytest.importorskip("jax_cuda12_plugin")
  compiled = compile_for(
    "h100:2x2", os.path.join(ROOT, "configs", f"{name}.py")
  )
  assert compiled.peak > 0 and compiled.program.hbm_bytes > 0
  assert compiled.program.collectives["all-reduce"]["count"] > 0


@pytest.mark.parametrize("kind", ["a100", "h200", "b200"])
def test_compiles_for_other_gpus(kind):
  pytest.importorskip("jax_cuda12_plugin")
  path = os.path.join(ROOT, "configs", "simclr_resnet18_fashion_mnist.py")
  assert compile_for(f"{kind}:2", f"{path}:quick").peak > 0
