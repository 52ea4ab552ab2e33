"""The page of a run: whole, safe and true to the run; and its users' errors."""

import base64
import html.parser
import json
import os
import re
import shutil
import sys

import cv2
import jax
import numpy as np
import pytest

from ssljax import cli
from ssljax import config as config_lib
from ssljax import errors
from ssljax import evaluate
from ssljax import report
from ssljax import train
from ssljax.models import vit
from ssljax.report import arrays
from ssljax.report import charts
from ssljax.report import facts
from ssljax.report import markup
from ssljax.report import record

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NASTY = "<script>alert(\"1\") & '2'"
METHOD = """
from ssljax.methods import simclr

def make(encoder, *, title):
  def show(params, method_state, batch):
    assert batch["key"].shape == batch["views"].shape[:1]
    x = batch["views"][:, 0]
    return {"as it is": x, title: x[:, ::-1]}
  return simclr.make(encoder, out_dim=8)._replace(show={"upside_down": show})
"""
ACCURACIES = dict(knn=0.625, raw_knn=0.9472, random_knn=0.6111)


def short(*overrides):
  path = os.path.join(ROOT, "configs", "simclr_vit_fashion_mnist.py:quick")
  few = ["--config.steps=4", "--config.mesh.data=1"]
  return config_lib.load(path, [*few, *overrides])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
  """A run on digits with an evaluation, and its page."""
  workdir = str(tmp_path_factory.mktemp("runs") / "labelled")
  # The statistics must be undone in the pictures.
  config = short("--config.seed=3")
  with config.unlocked():
    config.augment.update(mean=(0.3,), std=(0.35,))
    config.encoder.pool = "mean"
  train.train(config, workdir)
  os.makedirs(os.path.join(workdir, "eval"))
  for step, knn in ((2, 0.111), (4, ACCURACIES["knn"])):
    figures = ACCURACIES | {"knn": knn, "step": step, "dataset": "digits"}
    with open(os.path.join(workdir, "eval", f"{step}.json"), "w") as f:
      json.dump(figures | {"protocol": {"knn": "knn/1 k=20"}}, f)
  return workdir, report.report([workdir])


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
  """A run of a user's own method on a folder without labels or evaluation, with
  names that would break a page."""
  root = tmp_path_factory.mktemp("bare")
  folder = root / NASTY / "train"
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i in range(40):
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    cv2.imwrite(str(folder / f"{i}.png"), image)
  (root / "report_lab").mkdir()
  (root / "report_lab" / "flip.py").write_text(METHOD)
  config = short("--config.batch_size=16", "--config.eval.last=False")
  with config.unlocked():
    config.data.update(name=f"folder:{root / NASTY}", channels=3)
    config.method = dict(name="report_lab.flip", title=NASTY)
    config.encoder.update(scan=True, pool="cls")
    config.eval.update(train_split="", test_split="")
  sys.path.insert(0, str(root))
  workdir = str(root / "run")
  train.train(config, workdir)
  yield workdir, report.report([workdir])
  sys.path.remove(str(root))


class Parser(html.parser.HTMLParser):
  """Tags that are closed in order, headings, attributes and pictures."""

  def __init__(self, text):
    super().__init__()
    self.open, self.headings, self.addresses, self.tags = [], [], [], set()
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.addresses += [v for k, v in attrs if k in ("src", "href")]
    assert all(k == k.strip("\"'<>") for k, _ in attrs), attrs
    if tag not in ("meta", "img", "br", "wbr"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] == ["h2"]:
      self.headings.append(data)


def read(figures):
  with open(figures["report"], encoding="utf-8") as f:
    text = f.read()
  assert figures["bytes"] == len(text.encode()) < 5e6
  assert "http://" not in text and "https://" not in text
  page = Parser(text)
  assert all(a.startswith("data:image/") for a in page.addresses)
  assert not page.tags & {"script", "link", "iframe"}
  return text, page


def pictures(text, section):
  """The pictures of a section, as OpenCV reads them."""
  part = text.split(f"<h2>{section}</h2>")[1].split("<h2>")[0]
  found = re.findall(r'<img src="data:image/\w+;base64,([^"]+)"', part)
  decode = lambda data: cv2.imdecode(
    np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED
  )
  return [decode(data) for data in found]


def test_page(labelled):
  workdir, figures = labelled
  assert figures["report"] == os.path.join(workdir, "report", "index.html")
  assert figures["runs"] == 1 and figures["seconds"] > 0
  text, page = read(figures)
  assert page.headings == [
    "Curves",
    "Augmented views",
    "Map of the embeddings",
    "Nearest neighbours",
    "Attention",
    "Speed",
    "Versions and config",
  ]
  for said in (
    ">0.625<",  # of the last evaluation
    "1.4 points above",
    "32.2 points below",
    ">loss<",
    ">learning rate<",
    ">gradient norm<",
    ">contrast accuracy<",
    ">kNN accuracy<",
    "class 7",
    "goodput",
    jax.__version__,
    "&quot;decay_exclude&quot;",
  ):
    assert said in text, said
  assert "0.111" not in text


def test_pictures_are_those_of_the_run(labelled):
  workdir, figures = labelled
  text, _ = read(figures)
  run, _ = evaluate.restore(workdir)
  views = pictures(text, "Augmented views")
  assert len(views) == 8 * 3
  places = np.linspace(0, len(run.source) - 1, 8).round().astype(int)
  original = run.source.read(places)["image"][..., 0]
  np.testing.assert_array_equal(views[::3], original)
  assert not np.array_equal(views[1], views[2])
  # The scale of the views is undone to the bit.
  view = run.view_for_eval
  images = run.source.read(places)["image"]
  visible = arrays._visible(view, 1)
  seen = view(arrays._batch(images))["views"]
  assert abs(np.asarray(seen)).max() > 1.5
  np.testing.assert_array_equal(visible(seen)[:, 0], images)


def test_labels_of_neighbours(labelled):
  text, _ = read(labelled[1])
  # Ten classes of eight neighbours; a frame for each, and their count.
  frames = re.findall(r'class="px (same|other)"', text)
  assert len(frames) == 80
  counts = [int(n) for n in re.findall(r"(\d) of 8</small>", text)]
  assert len(counts) == 10 and sum(counts) == frames.count("same") > 0


def test_without_labels_and_escaped(bare):
  text, page = read(bare[1])
  assert page.headings == [
    "Curves",
    "Augmented views",
    "Map of the embeddings",
    "Nearest neighbours",
    "Upside down",
    "Attention",
    "Speed",
    "Versions and config",
  ]
  assert "&lt;script&gt;alert" in text and "Not evaluated" in text
  assert "same label" not in text
  shown = np.array(pictures(text, "Upside down"))
  assert len(shown) == 2 * 8
  np.testing.assert_array_equal(shown[1::2], shown[::2, ::-1])


def test_two_runs(labelled, bare, tmp_path):
  out = str(tmp_path / "new" / "two.html")
  figures = report.report([labelled[0], bare[0]], out)
  assert figures["report"] == out and figures["runs"] == 2
  text, page = read(figures)
  assert "Differences of the configs" in page.headings
  assert text.count("Pictures below: the checkpoint of step 4.") == 2
  part = text.split("<h2>Differences of the configs</h2>")[1].split("<h2>")[0]
  assert "method.name" in part and "report_lab.flip" in part
  assert "optimizer.name" not in part
  # Both in each chart; what one has alone is told of that one.
  assert text.count(">loss<") == 1
  assert text.split(">loss<")[1].split("</svg>")[0].count("<polyline") == 2
  part = text.split("<h2>Upside down</h2>")[1].split("<h2>")[0]
  assert part.count("<h3>") == 1


def test_command(monkeypatch):
  calls = []
  take = lambda workdirs, out: calls.append((workdirs, out)) or {}
  monkeypatch.setattr(report, "report", take)
  assert cli.main(["report", "--workdir=a", "b", "--out=c"]) == 0
  assert cli.main(["report", "--workdir=a", "--workdir=b"]) == 0
  assert calls == [(["a", "b"], "c"), (["a", "b"], None)]


def test_user_errors(labelled, tmp_path, capsys):
  def said(*args):
    assert cli.main(["report", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line

  assert "--workdir" in said()
  assert "no run" in said(f"--workdir={tmp_path / 'none'}")
  shutil.copy(os.path.join(labelled[0], "config.json"), tmp_path)
  assert "no checkpoint" in said(f"--workdir={tmp_path}")
  assert os.listdir(tmp_path) == ["config.json"]
  with pytest.raises(errors.UserError, match="no run"):
    report.report([labelled[0], str(tmp_path / "none")])
  (tmp_path / "file").write_text("")
  assert "--out" in said(
    f"--workdir={labelled[0]}", f"--out={tmp_path}/file/x.html"
  )
  assert "is a folder" in said(f"--workdir={labelled[0]}", f"--out={tmp_path}")


def test_record(labelled, tmp_path):
  workdir = str(tmp_path / "labelled")
  shutil.copytree(labelled[0], workdir)
  with open(os.path.join(workdir, "metrics.jsonl"), "a") as f:
    f.write('{"step": 5, "loss": NaN}\n{"step": 6, "lo')  # killed
  (events,) = (tmp_path / "labelled" / "tb").iterdir()
  events.write_bytes(events.read_bytes()[:-7])
  (tmp_path / "labelled" / "environment.json").write_text("[1]")
  one, two = record.read([labelled[0], workdir, workdir])
  assert (one.environment["processes"], two.environment) == (1, {})
  assert one.name != two.name and two.name.endswith("/labelled")
  assert record.last(two.rows, "step") == 5
  assert record.series(two.rows)["loss"] == record.series(one.rows)["loss"]
  assert one.starts == 1 and 0 < two.wall_s <= one.wall_s < 3600
  whole = events.read_bytes()
  record_of = lambda: record.read([workdir])[0].wall_s
  cut = record_of()
  events.write_bytes(whole[: -len(whole) // 4] + bytes(999))  # a power cut
  assert 0 < record_of() <= cut
  events.write_bytes(whole[:-40] + bytes([255]) * 40)
  assert 0 <= record_of() <= cut


def test_an_evaluation_on_other_data_is_shown_where_there_is_no_other(tmp_path):
  def write(name, step, **figures):
    with open(tmp_path / name, "w") as f:
      json.dump({"step": step} | figures, f)

  splits = {"train": "train[:9]", "test": "test"}
  write("8-other-train-test-1234.json", 8, dataset="other", splits=splits)
  measured = record._last_evaluation(str(tmp_path))
  assert measured["dataset"] == "other"
  one = record.Record("a", "a", {}, [], measured, {}, 1, 1.0)
  assert "On other (train[:9], test) after step 8." in facts.evaluation(one)
  write("4.json", 4, dataset="own")
  assert record._last_evaluation(str(tmp_path))["dataset"] == "own"


def test_a_probe_of_several_blocks_says_so():
  figures = {"linear_last4": 0.75, "random_linear_last4": 0.5}
  measured = figures | {"protocol": {"linear_last4": "linear/1"}, "step": 1}
  one = record.Record("a", "a", {}, [], measured, {}, 1, 1.0)
  said = facts.evaluation(one)
  assert "linear probe, last 4 blocks" in said
  assert "25.0 points above" in said and "linear_last4" not in said


def test_an_evaluation_of_one_split_names_it_alone():
  splits = {"train": "", "test": "test"}
  measured = {"step": 8, "dataset": "bible", "splits": splits, "protocol": {}}
  one = record.Record("a", "a", {}, [], measured, {}, 1, 1.0)
  assert "On bible (test) after step 8." in facts.evaluation(one)


def test_a_logarithmic_axis_is_named():
  rows = [{"step": i, "loss": 100.0 / 2**i} for i in range(9)]
  one = record.Record("a", "a", {}, rows, None, {}, 1, 1.0)
  assert "<small>0.3906, log</small>" in facts.curves([one])
  assert "<small>log</small>" in facts.curves([one, one._replace(name="b")])


def test_a_workdir_alone_is_no_list_of_letters(labelled):
  workdir, _ = labelled
  (one,) = record.read(workdir)
  assert one == record.read([workdir])[0]


def test_what_is_equal_is_neither_above_nor_below():
  said = markup.join(*facts._verdict({"": 0.5, "raw_": 0.5, "random_": 0.25}))
  assert "25.0 points above" in said and "equal to the raw input" in said
  assert "below" not in said


def test_updates_that_were_left_out_are_counted():
  rows = [{"step": 1, "loss": 1.0}]
  rows += [{"step": i, "skipped": 1} for i in (2, 3, 4)]
  one = record.Record("a", "a", {"batch_size": 8}, rows, None, {}, 1, 1.0)
  assert "4 steps, the updates of 3 left out" in facts.lead(one)
  assert "skipped" not in facts.curves([one])


def test_configs_of_several_versions_differ_in_what_was_chosen():
  base = config_lib.to_dict(config_lib.base())
  old = {k: v for k, v in base.items() if k != "nonfinite"}
  make = lambda config: record.Record("a", "a", config, [], None, {}, 1, 1.0)
  assert "are the same" in facts.differences([make(base), make(old)])
  other = old | {"batch_size": 7}
  assert "batch_size" in facts.differences([make(base), make(other)])


def test_attention_is_sown_for_those_who_ask():
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
  scanned = vit.make(variant="Mu/2", scan=True, pool="mean")
  variables = jax.jit(lambda k: scanned.init(k, x, train=False))(
    jax.random.key(1)
  )
  assert variables.keys() == {"params"}
  of_scan = arrays._last_attention(scanned, variables["params"], x)
  params = dict(variables["params"])
  blocks = params.pop("blocks")
  for i in range(2):
    params[f"block{i}"] = jax.tree.map(lambda p, i=i: p[i], blocks)

  @jax.jit
  def apply(params, x):
    plain = vit.make(variant="Mu/2", pool="mean")
    out, seen = plain.apply(
      {"params": params}, x, train=False, mutable=["intermediates"]
    )
    return out, seen["intermediates"]["block1"]["attention"][0]

  out, weights = apply(params, x)
  assert out.keys() == {"pooled", "tokens", "layers"}
  assert weights.shape == (2, 2, 16, 16)
  np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
  mean = weights.mean(axis=2).reshape(2, 2, 4, 4)
  np.testing.assert_allclose(of_scan, mean, atol=1e-6)
  # The class token is no patch, and it is what is pooled.
  cls = vit.make(variant="Mu/2", pool="cls")
  token = np.zeros((1, 32), np.float32)
  params |= {"cls_token": token, "cls_pos": token}
  assert (arrays._last_attention(cls, params, x).sum(axis=(2, 3)) < 0.99).all()


def test_neighbours():
  z = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
  z /= np.linalg.norm(z, axis=1, keepdims=True)
  z[3] = z[7]
  found = arrays.nearest(z, np.array([7, 20]))
  assert found.shape == (2, 9) and found[0, :2].tolist() == [7, 3]
  for row in found:
    rest = np.setdiff1d(np.arange(50), row)
    assert (z[row[1:]] @ z[row[0]]).min() >= (z[rest] @ z[row[0]]).max()


def test_map_of_clusters_and_of_collapse():
  rng = np.random.default_rng(0)
  centres = 5 * np.eye(3, 8)
  labels = np.arange(90) % 3
  z = centres[labels] + 0.1 * rng.normal(size=(90, 8))
  points = arrays.tsne(z)
  assert points.min() == 0 and points.max() == 1
  apart = np.linalg.norm(points[:, None] - points, axis=-1)
  np.fill_diagonal(apart, np.inf)
  assert (labels[apart.argmin(axis=1)] == labels).all()
  assert arrays.tsne(np.ones((90, 8)) * 0.3) is None
  assert arrays.tsne(z[:3]) is None
  z[4, 2] = np.nan  # of an encoder that has diverged
  assert arrays.tsne(z) is None
  assert arrays.nearest(z, np.array([0, 4])).shape == (2, 9)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5000])
def test_lines(count, log):
  steps = np.arange(1, count + 1)
  svg = charts.lines([("<a>", 0, steps, 1.0 / steps)], log=log)
  page = Parser(svg)
  assert "nan" not in svg and "inf" not in svg and "<a>" not in svg
  assert len(svg) < 40_000 and {"text", "rect"} <= page.tags
  # The extremes of a long curve are drawn, though it is averaged.
  assert ("polygon" in page.tags) == (count == 5000)


def test_ticks():
  assert charts._ticks(0, 200, 5) == [
    (v, str(v)) for v in (0, 50, 100, 150, 200)
  ]
  assert [t[1] for t in charts._ticks(0, 0.3, 4)] == [
    "0.0",
    "0.1",
    "0.2",
    "0.3",
  ]
  assert len({t[1] for t in charts._ticks(-0.99998, -0.9999, 4)}) == 5
  values = [-0.9999 - 1e-5 * i for i in range(9)]
  svg = charts.lines([("a", 0, range(9), values)])
  assert "a: -0.9999\n" not in svg and "a: -0.99998<" in svg
  assert [t[1] for t in charts._ticks(0, 60000, 3)] == [
    "0", "20k", "40k", "60k",
  ]  # fmt: skip


def test_markup_escapes():
  made = markup.tag("a", "<b>", [1, None], title='"<', data_x=NASTY)
  assert made.startswith('<a title="&quot;&lt;" data-x="&lt;script&gt;')
  assert made.endswith("&lt;b&gt;1</a>")
