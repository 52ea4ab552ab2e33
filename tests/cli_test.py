"""The command line misused: one line that names the mend, and status 2."""

import json
import os
import re
import sys

import pytest

import ssljax
from ssljax import cli
from ssljax import config as config_lib
from ssljax import errors
from ssljax import named
from ssljax import quickstart
from ssljax import run as run_lib
from ssljax import train
from ssljax.data import prepare
from ssljax.models import resnet
from ssljax.models import vit

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
QUICK = f"{ROOT}/configs/simclr_resnet18_fashion_mnist.py:quick"


@pytest.fixture
def mistake(capsys, tmp_path):
  """`mistake(*argv) -> the one line on stderr`; `train` has what it needs."""

  def run(*argv):
    if argv[0] == "train":
      more = {"config": QUICK, "workdir": tmp_path / "run"}
      given = [a.partition("=")[0] for a in argv]
      missing = [k for k in more if f"--{k}" not in given]
      argv = [*argv, *(f"--{k}={more[k]}" for k in missing)]
    assert cli.main(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [x for x in lines if x.startswith("ssljax: ")]
    return line

  return run


@pytest.mark.parametrize(
  "text, value",
  [
    ("false", False),
    ("True", True),
    ("TRUE", True),
    ("none", None),
    ("None", None),
    ("0.5", 0.5),
    ("(1, 2)", (1, 2)),
    ("falsey", "falsey"),
  ],
)
def test_an_option_that_the_file_left_out_is_read(text, value):
  flag = f"--config.optimizer.nesterov={text}"
  found = config_lib.load(QUICK, [flag]).optimizer.nesterov
  assert found == value and type(found) is type(value)


def test_decay_exclude_is_no_single_word(mistake):
  line = mistake("train", "--config.optimizer.decay_exclude=bias")
  assert "decay_exclude='bias' is not tuple[str, ...]: give ('bias',)" in line


def test_an_option_that_no_json_holds_is_told(mistake, tmp_path):
  path = tmp_path / "scheduled.py"
  path.write_text(
    f"from ssljax import config\n\n"
    f"def get_config(arg=None):\n"
    f"  c = config.load({QUICK!r}, [])\n"
    f"  with c.unlocked():\n"
    f"    c.method = dict(name='simclr', temperature=lambda step: 0.5)\n"
    f"  return config.finish(c, arg)\n"
  )
  line = mistake("train", f"--config={path}")
  assert "config.method.temperature=<function" in line
  assert "cannot be kept in config.json" in line
  assert not (tmp_path / "run").exists()


def test_what_is_not_finite_is_null_in_the_last_line(monkeypatch, capsys):
  figures = {"loss": float("inf"), "of": [float("nan"), 1.5, {"a": "b"}]}
  monkeypatch.setitem(cli._COMMANDS, "loss", lambda argv: figures)
  assert cli.main(["loss"]) == 0
  said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
  assert said == {"loss": None, "of": [None, 1.5, {"a": "b"}]}


def test_a_misspelt_variant_is_told(mistake):
  line = mistake("train", f"--config={QUICK}k")
  assert (
    "unknown variant 'quickk': choose among multi_view, fast, quick" in line
  )


_BASE = """from ssljax import config

def get_config():
  c = config.base().unlock()
"""


@pytest.mark.parametrize(
  "text, says",
  [
    ("Not *Python*.\n", r"config\.py is not Python \(invalid syntax"),
    ("x = 1\n", r"config\.py has no get_config"),
    ("def get_config(arg=None):\n  pass\n", "returns a ConfigDict"),
    (_BASE + "  del c.eval\n  return c\n", r"no section config\.eval: begin"),
    (_BASE + "  c.mesh = None\n  return c\n", r"no section config\.mesh: be"),
    (_BASE + "  c.data = None\n  return c\n", r"data\.modality=None: begin"),
  ],
)
def test_a_file_that_is_no_config_is_told(mistake, tmp_path, text, says):
  (tmp_path / "config.py").write_text(text)
  line = mistake("train", f"--config={tmp_path / 'config.py'}")
  assert re.search(says, line), line


def test_what_a_config_file_lacks_is_as_in_the_base(tmp_path):
  path = tmp_path / "config.py"
  lacks = "  c.eval = dict(last=False)\n  del c.steps, c.seed\n"
  path.write_text(f"{_BASE}{lacks}  return c\n")
  found = config_lib.load(str(path), ["--config.steps=3"])
  assert (found.eval.last, found.eval.batch_size) == (False, 500)
  assert (found.seed, found.steps) == (0, 3)


@pytest.mark.parametrize(
  "text, says",
  [
    ("def get_config():\n  raise ValueError('a bug')\n", "line 2: Val.*"),
    ("import os\n\nos.nothing\n", "line 3: Attr.*"),
    ("import sys\n\nsys.exit('a bug')\n", "line 3: SystemExit"),
    ("def get_config():\n  raise SystemExit('a bug')\n", "line 2: SystemExit"),
  ],
)
def test_a_config_with_a_bug_shows_where(mistake, tmp_path, text, says):
  path = tmp_path / "config.py"
  path.write_text(text)
  line = mistake("train", f"--config={path}")
  says = rf"config\.py, {says} \((a bug|.*nothing.*)\): mend the config"
  assert re.search(says, line), line


def test_what_a_config_file_tells_is_left_as_it_is(mistake, tmp_path):
  path = tmp_path / "config.py"
  raises = "raise errors.UserError('the reason')\n"
  for text in (raises, f"def get_config():\n  {raises}"):
    path.write_text(f"from ssljax import errors\n{text}")
    assert mistake("train", f"--config={path}") == "ssljax: the reason"


WRONG = {
  "batch_size=0": "batch_size=0: give 1 or more",
  "batch_size=-64": "batch_size=-64: give 1 or more",
  "accumulate=0": "accumulate=0: give 1 or more",
  "log_every=0": "log_every=0: give 1 or more",
  "checkpoint.every_steps=0": "every_steps=0: give 1 or more",
  "eval.batch_size=0": "eval.batch_size=0: give 1 or more",
  "augment.views=0": "augment.views=0: give 1 or more",
  "encoder.width=0": "encoder.width=0: give 1 or more",
  "encoder.bn_groups=0": "encoder.bn_groups=0: give 1 or more",
  "method.num_layers=0": "method.num_layers=0: give 1 or more",
  "method.temperature=0": "method.temperature=0.0: give more than 0",
  "optimizer.eps=0": "optimizer.eps=0: give more than 0",
  "method.temperature=inf": "temperature=inf: give more than 0",
  "augment.gray_p=1.5": "augment.gray_p=1.5: give from 0 to 1",
  "augment.area=(0.2,1.5)": "area=(0.2, 1.5): give from 0 to 1",
  "eval.every_epochs=-1": "every_epochs=-1.0: give 0 or more",
  "eval.every_epochs=nan": "every_epochs=nan: give 0 or more",
  "schedule.end=-1": "schedule.end=-1: give 0 or more",
  "data.size=32": "config.data.size=(32,): give two whole numbers above 0, as "
  "'(32, 32)'",
  "augment.size=32": "config.augment.size=32: give two whole numbers",
  "augment.size=(8.5,8)": "size=(8.5, 8): give two whole numbers",
  "augment.area=0.3": "config.augment.area=(0.3,): give two numbers",
  "augment.local_size=(0,4)": "local_size=(0, 4): give two whole numbers",
  "augment.views=1": "takes 2 or more views, and the augmentation gives 1",
  "augment.name=mae": "takes 2 or more views, and the augmentation gives 1",
  "augment.local_views=2": "the method takes no small crops",
  "augment.jitter=(0.4,0.4,'a',0.1)": "jitter=(0.4, 0.4, 'a', 0.1) is not",
  "augment.gray_p={}": "gray_p={} is not float",
  "augment.mean=(0.5,0.5)": "mean=(0.5, 0.5): the images have 1 channels",
  "augment.std=(0.0,)": "std=(0.0,): give numbers above 0",
  "augment.size=(64,2)": "blur_kernel=7 is too wide for views of 2 pixels",
  "augment.interpolation=nearest": "choose bilinear or bicubic",
  "method.out_dim=abc": "simclr: out_dim='abc' is not int",
  "method.hidden_dim=abc": "simclr: hidden_dim='abc' is not int | None",
  "encoder.bn_groups=x": "resnet: bn_groups='x' is not int",
  "encoder.bn_groups=2.5": "resnet: bn_groups=2.5 is not int",
  "encoder.parent=3": "resnet has no 'parent'",
  "encoder.axis_name=x": "axis_name is for steps of your own in pmap",
  "encoder={'widht':16}": "resnet has no 'widht': did you mean 'width'?",
  "mesh={'date':1}": "unknown key config.mesh.date: did you mean config.mesh.",
  "mesh=8": "config.mesh is a section: give --config.mesh.data=",
  "augment.flip_p=often": "augment 'simclr': flip_p='often' is not float",
  "augment.blur_p=(1.0,0.1,0.5)": "blur_p=(1.0, 0.1, 0.5) is not of 2 views",
  "augment.blur_kernel=8": "blur_kernel=8: give an odd number of taps",
  "augment.eval_crop=most": "simclr: eval_crop='most' is not float",
  "augment.eval_crop=1.5": "eval_crop=1.5: give a part, above 0 and up to 1",
  "augment.eval_crop=0": "eval_crop=0: give a part, above 0 and up to 1",
  "optimizer.freeze=encoder": "freeze='encoder': give dicts of match and steps",
  "optimizer.groups=encoder": "groups='encoder' is not tuple[dict, ...]",
  "optimizer.groups=3": "groups=3 is not tuple[dict, ...]",
  "optimizer.groups=({'match':'encoder','lr_mult':None},)": "optimizer.groups: "
  "lr_mult=None is not float",
  "optimizer.groups={'match':'encoder','lr_mult':0.1}": "groups=lr_mult: 0.1 "
  "match: encoder is not tuple",
  "optimizer.nesterov": "nesterov has no value: give --config.optimizer.nest",
  "optimizer.freeze=3": "freeze=3: give dicts of match and steps",
  "optimizer.nesterov=no": "sgd: nesterov='no' is not bool",
  "optimizer.dampening=0.1": "optimizer sgd has no 'dampening'",
  "optimizer.moment_dtype=bf16": "moment_dtype='bf16': give 'bfloat16'",
  "optimizer.learning_rate=-1.0": "learning_rate=-1.0: give 0 or more",
  "optimizer.momentum=-1.0": "momentum=-1.0: give 0 or more, below 1",
  "schedule.factor=-1.0": "schedule.factor=-1.0: give 0 or more",
  "optimizer.clip_global_norm=-1": "clip_global_norm=-1: give more than 0",
  "optimizer.weight_decay_end=abc": "sgd: weight_decay_end='abc' is not float",
  "optimizer.layer_decay=0.5": "for encoders of blocks, and this one has none",
  "optimizer.weight_decya=0.1": "did you mean 'weight_decay'?",
  "optimizer.lr=0.1": "choose among name, learning_rate, weight_decay, ",
  "optimizer.lr_scailing=sqrt": "did you mean 'lr_scaling'?",
  "optimizer.freeze=({'match':'encoder','steps':1,'epochs':1},)": "freeze has "
  "steps and epochs: give one",
  "optimizer.freeze=({'match':'encoder'},)": "give match and steps",
  "schedule.warmup_epoch=5": "did you mean 'warmup_epochs'?",
  "augment.evalcrop=0.9": "did you mean 'eval_crop'?",
  "augment.sise=(8,8)": "did you mean 'size'?",
  "augment.size=(-1,8)": "numbers above 0, as '(224, 224)'",
  "augment.jitter=(-1.0,0.0,0.0,0.0)": "jitter=(-1.0, 0.0, 0.0, 0.0): give 0",
  "data.channels=-3": "data.channels=-3: give 1 or more",
  "checkpoint.keep=0": "checkpoint.keep=0: give 1 or more",
  "schedule.total_steps=5": "cosine: total_steps is told by the run itself",
  "encoder.dtype=bfloat16": "resnet: dtype is told by the run itself",
  "epochs=inf": "epochs=inf: give a number",
  "seed=4294967296": "seed=4294967296: give 32 bits",
  "eval.protocols=knn,linear": "eval.protocols=('knn,linear',): give a tuple",
  "method.name=.foo": "config.method.name='.foo' is no name of a module: choose"
  " among aim,",
  "encoder.name=": "config.encoder.name='' is no name of a module: choose among"
  " bert,",
  "method.name=distillation": "ssljax.methods.distillation has no `make`",
  "encoder.name=heads": "ssljax.models.heads has no `make`",
}


OTHERS = {
  "ibot_vit": {
    "augment.views=1": "takes 2 or more views",
    "method.mask_ratio=0.5": "mask_ratio=0.5 is not tuple[float, float]",
    "method.ema=1.5": "method.ema=1.5: give from 0 to 1",
  },
  "swav_resnet18": {"method.crops_for_assign=3": "takes 3 or more views"},
  "moco_resnet18": {"method.queue_size=0": "queue_size=0: give a multiple of"},
  "mocov2plus_resnet18": {"method.queue_size=0": "give a multiple of"},
  "nnclr_resnet18": {"method.queue_size=0": "give a multiple of the batch"},
  "vicreg_resnet18": {"method.features=()": "features=(): give 1 or more"},
  "cpc_resnet18": {"method.rows=()": "rows=(): give 1 or more"},
  "mae_vit": {
    "encoder.class_token=True": "gives the decoder the class token of",
    "encoder.registers=2.0": "vit: registers=2.0 is not int",
    "encoder.img_size=9": "does not divide encoder.img_size=9",
    "encoder.drop_path=1.0": "drop_path=1.0: give 0 or more, below 1",
    "method.decoder_dim=30": "multiple of 4, not 30",
  },
  "lejepa_resnet18": {"method.knots=1": "method.knots=1: give 2 or more"},
}


@pytest.mark.parametrize(
  "name, flag", [(name, flag) for name in OTHERS for flag in OTHERS[name]]
)
def test_a_wrong_value_of_another_method_is_told(mistake, name, flag):
  config = f"{ROOT}/configs/{name}_fashion_mnist.py:quick"
  line = mistake("train", f"--config={config}", f"--config.{flag}")
  assert OTHERS[name][flag] in line


@pytest.mark.parametrize(
  "line, says",
  [
    ("acumulate = 4", "did you mean config.accumulate"),
    ("eval.batchsize = 3", "did you mean config.eval.batch_size"),
    ("data.modality = 'sound'", "has config.data.modality='sound'"),
    ("encoder.width = 4", "config.encoder.name is missing"),
  ],
)
def test_a_misspelt_key_of_a_file_is_told(mistake, tmp_path, line, says):
  path = tmp_path / "config.py"
  path.write_text(f"""from ssljax import config as config_lib
def get_config(arg=None):
  config = config_lib.base()
  config.encoder = {{}}
  config.{line}
  return config
""")
  assert says in mistake("train", f"--config={path}")


def test_a_key_and_its_value_are_one_word(mistake):
  line = mistake("train", "--config.steps", "5")
  assert "unexpected '5'" in line and "one word, as --config.steps=5" in line


def test_numbers_may_name_a_resnet():
  assert resnet.make(variant=18).variant == "18"
  with pytest.raises(errors.UserError, match="unknown vit variant 16"):
    vit.make(variant=16)


@pytest.mark.parametrize("flag", WRONG)
def test_a_wrong_value_is_told(mistake, flag):
  assert WRONG[flag] in mistake("train", f"--config.{flag}")


@pytest.mark.parametrize("command", [["embed"], ["replay", "--step=1"]])
def test_arrays_go_to_a_file_of_the_name_that_is_given(mistake, command):
  name, *flags = command
  line = mistake(name, "--workdir=W", "--out=features", *flags)
  assert "--out=features: give a name that ends with .npz" in line


def test_an_empty_workdir_is_none(mistake):
  assert "--workdir=... is missing" in mistake("train", "--workdir=")


@pytest.mark.parametrize(
  "config, method, words",
  [
    ("bert_mini_wordnet", {"name": "simclr"}, "takes views of images, and"),
    (
      "mae_vit_fashion_mnist",
      {"name": "data2vec_text", "top_k": 2},
      "takes tokens, and",
    ),
  ],
)
def test_a_method_of_other_data_is_told(mistake, config, method, words):
  flags = [f"--config.method={method}", "--config.eval.last=False"]
  path = f"--config={ROOT}/configs/{config}.py:quick"
  line = mistake("train", path, *flags)
  assert words in line and "a batch has " in line


@pytest.mark.parametrize("flag", ["kills", "flips"])
def test_a_test_that_does_nothing_is_refused(mistake, flag):
  line = mistake("selftest", "resume", f"--{flag}=0")
  assert f"--{flag}=0 is not a number from 1 on" in line


@pytest.mark.parametrize("flag", ["steps=99999999999", "epochs=1e300"])
def test_more_steps_than_are_counted_are_refused(mistake, flag):
  assert "below 2 to the 31" in mistake("train", f"--config.{flag}")


def test_a_topology_of_no_devices_is_told(mistake):
  line = mistake("plan", f"--config={QUICK}", "--topology=cpu:0")
  assert "unknown --topology=cpu:0" in line


def test_a_config_of_a_run_may_have_null_where_the_base_has_a_word(tmp_path):
  path = tmp_path / "config.json"
  path.write_text(_IMAGES + '"eval": {"test_split": null, "last": null}}')
  assert config_lib.restore(path).eval.test_split is None


_IMAGES = '{"data": {"modality": "image"}, '


@pytest.mark.parametrize(
  "text",
  [
    *("", '{"seed": 0,', "[]", '{"seed": 0}'),
    *(_IMAGES + more for more in ('"mesh": null}', '"eval": {"last": "x"}}')),
    *(_IMAGES + more for more in ('"batch_size": "8"}', '"encoder": []}')),
  ],
)
@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_damaged_config_of_a_run_is_told(mistake, tmp_path, command, text):
  (tmp_path / "config.json").write_text(text)
  (tmp_path / "checkpoints" / "10").mkdir(parents=True)  # else none has begun
  line = mistake(command, f"--workdir={tmp_path}")
  assert f"{tmp_path / 'config.json'} is damaged" in line


@pytest.mark.parametrize("command", cli._COMMANDS)
def test_each_command_tells_its_usage(capsys, command):
  said = set()
  for argv in (
    [command, "--help"],
    [command, "--workdir=W", "-h"],
    ["--help", command],
    ["help", command],
  ):
    assert cli.main(argv) == 0
    said.add(capsys.readouterr().out)
  (usage,) = said
  assert usage.startswith(f"usage: ssljax {command} ")
  others = [c for c in cli._COMMANDS if c != command]
  assert not any(re.search(rf"^  {c} ", usage, re.M) for c in others)
  assert "Exit status" not in usage


def test_help_and_version(capsys, mistake):
  assert cli.main(["--help"]) == 0
  assert "\n  train " in capsys.readouterr().out
  assert cli.main(["--version"]) == 0
  assert capsys.readouterr().out == f"ssljax {ssljax.__version__}\n"
  assert "unknown command 'trian'" in mistake("trian", "--help")


@pytest.mark.parametrize(
  "argv",
  [
    ["train", "steps=5"],
    ["train", "--config.steps", "5"],
    ["evaluate", "--workdir=W", "knn"],
    ["plan", f"--config={QUICK}", "--topology=cpu:1", "largest"],
    ["import", "steps=5"],
  ],
)
def test_arguments_without_dashes_are_refused(mistake, argv):
  assert f"unexpected {argv[-1]!r}: flags begin with --" in mistake(*argv)


def test_arguments_without_dashes_are_names_where_meant(mistake, tmp_path):
  assert "did you mean 'resume'" in mistake("selftest", "resum")
  runs = [f"--workdir={tmp_path / 'one'}", str(tmp_path / "two")]
  assert "no run in" in mistake("report", *runs)


def test_hints_name_what_is_near_or_what_there_is():
  near = errors.hint("SIMCLRR", ["byol", "simclr"])
  assert near == ": did you mean 'simclr'?"
  assert errors.hint("temperature", ["ema"]) == ": choose among ema"
  assert errors.hint("x", [f"option{i}" for i in range(99)]) == ""
  with pytest.raises(errors.UserError, match="byol has no 'temp': choose amo"):
    errors.refuse_unknown("byol", ["temp"], ["ema"])


@pytest.mark.parametrize(
  "flag, says",
  [
    ("method.name=simclrr", "'simclrr': did you mean 'simclr'?"),
    ("method.name=SimCLR", "'SimCLR': did you mean 'simclr'?"),
    ("encoder.name=ResNet", "'ResNet': did you mean 'resnet'?"),
    ("encoder.name=zzz", "'zzz': choose among bert, gpt, resnet, vit"),
    ("encoder.name=lab.zzz", "'lab.zzz': Python does not find it from here"),
    ("encoder.name=norm", "no `make`: choose among bert, gpt, resnet, vit"),
    ("method=mae", "method is a section: give --config.method.name=mae"),
    ("eval=no", "eval is a section: give --config.eval.batch_size=..."),
    ("eval.zzz=1", "unknown key config.eval.zzz: choose among eval.batch_size"),
    ("zzz=1", "unknown key config.zzz: choose among accumulate, augment"),
    ("eval.lasst=1", "unknown key config.eval.lasst: did you mean config.ev"),
    ("temperature=1", "did you mean config.method.temperature?"),
    ("monitr.examples=1", "did you mean config.monitor.examples?"),
    ("Batch_Size=1", "did you mean config.batch_size?"),
  ],
)
def test_a_wrong_name_is_told_with_what_is_near(mistake, flag, says):
  assert says in mistake("train", f"--config.{flag}")


def test_none_takes_an_option_out_but_names_none_itself():
  flags = ["--config.optimizer.weight_decay=none", "--config.augment.name=none"]
  config = config_lib.load(QUICK, flags)
  assert named.options(config.optimizer).keys() == {
    *("name", "learning_rate", "lr_scaling", "momentum")
  }
  assert config.augment.name == "none"


def test_how_long_a_run_is_follows_the_flag():
  duration = lambda *flags: run_lib.duration(
    config_lib.load(QUICK, [f"--config.{flag}" for flag in flags]), 10
  )
  assert duration() == 40
  assert duration("epochs=3") == 30
  assert duration("examples=640") == 10
  assert duration("epochs=3", "steps=7") == 7
  assert duration("steps=none", "epochs=2") == 20
  assert config_lib.load(QUICK, ["--config.data.size=none"]).data.size is None


def test_variants_are_given_where_there_are_some(mistake, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text("def get_config():\n  pass\n")
  assert "it has no variants" in mistake("train", f"--config={path}:quick")
  path.write_text("def get_config(arg):\n  pass\n")
  assert "mine.py:VARIANT" in mistake("train", f"--config={path}")


def test_a_small_variant_leaves_an_encoder_of_ones_own():
  config = config_lib.base()
  config.encoder = dict(name="our_lab.encoder", width=3)
  config_lib.finish(config, "quick")
  assert config.encoder.to_dict() == dict(name="our_lab.encoder", width=3)
  assert config.data.name == "digits"


@pytest.mark.parametrize(
  "error, status",
  [
    (errors.UserError("the reason"), 2),
    (errors.SafeStop("the reason"), 3),
    (KeyboardInterrupt(), 130),
  ],
)
def test_the_quickstart_tells_mistakes(monkeypatch, capsys, error, status):
  def ends(*_):
    raise error

  monkeypatch.setattr(cli, "use_huge_pages", lambda: None)
  monkeypatch.setattr(prepare, "prepare", lambda *_: None)
  monkeypatch.setattr(train, "train", ends)
  monkeypatch.chdir(ROOT)
  assert quickstart.main() == status
  told = str(error) or "interrupted"
  assert capsys.readouterr().err.splitlines() == [f"ssljax: {told}"]


def test_a_section_may_be_a_dict():
  flag = "--config.monitor={'every_steps': 0}"
  monitor = config_lib.load(QUICK, [flag]).monitor
  assert monitor.every_steps == 0 and monitor.examples == 256
  flag = "--config.encoder={'width': 8, 'norm': 'layer'}"
  encoder = config_lib.load(QUICK, [flag]).encoder.to_dict()
  assert encoder["width"] == 8 and encoder["norm"] == "layer"
  assert encoder["variant"] == "6"
  flag = "--config.encoder={'name': 'vit', 'variant': 'Mu/2'}"
  encoder = config_lib.load(QUICK, [flag]).encoder.to_dict()
  assert encoder == {"name": "vit", "variant": "Mu/2"}


def test_what_a_config_can_name_is_listed():
  methods = named.names("ssljax.methods")
  assert {"simclr", "mae", "bert", "gpt"} <= set(methods)
  assert not {"joint_embedding", "distillation"} & set(methods)


def test_modules_of_the_current_folder_are_found(
  mistake, tmp_path, monkeypatch
):
  (tmp_path / "our_lab").mkdir()
  (tmp_path / "our_lab" / "vicreg.py").write_text("")
  elsewhere = [p for p in sys.path if p not in ("", str(tmp_path))]
  monkeypatch.setattr(sys, "path", list(elsewhere))
  monkeypatch.chdir(tmp_path)
  for _ in range(2):
    line = mistake("train", "--config.method.name=our_lab.vicreg")
    assert "our_lab.vicreg has no `make`: give it one" in line
  assert sys.path == [str(tmp_path), *elsewhere]


@pytest.mark.parametrize("flag", ["processes=2", "process=0", "heartbeat=9"])
def test_several_processes_need_a_coordinator(mistake, flag):
  line = mistake("train", f"--{flag}")
  assert line.startswith(f"ssljax: --{flag.partition('=')[0]} is of several")
  assert "give --coordinator=HOST:PORT" in line


def test_a_bracket_in_the_workdir_is_refused(mistake, tmp_path):
  assert "has a bracket" in mistake("train", f"--workdir={tmp_path}/lr[0.1]")


@pytest.mark.parametrize("address", ["foo", ":8000", "host:port"])
def test_a_coordinator_has_a_port(mistake, address):
  flags = [f"--coordinator={address}", "--processes=2", "--process=0"]
  line = mistake("train", *flags)
  assert f"--coordinator={address}: give HOST:PORT" in line
