"""Generating and filling, and the cache that makes it fast."""

import os
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import cli
from ssljax import config as config_lib
from ssljax import errors
from ssljax import evaluate
from ssljax import language
from ssljax import report
from ssljax import run as run_lib
from ssljax import train
from ssljax.models import gpt

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Workdirs of two steps of GPT, BERT and data2vec."""
  root, found = tmp_path_factory.mktemp("runs"), {}
  names = "gpt_mini_bible", "bert_mini_wordnet", "data2vec_text_mini_wordnet"
  for name in names:
    flags = ["--config.mesh.data=1", "--config.steps=2"]
    flags += ["--config.schedule.warmup_steps=1"]
    config = config_lib.load(f"configs/{name}.py:quick", flags)
    found[name[:4].rstrip("_")] = workdir = str(root / name)
    train.train(config, workdir)
  return found


def small():
  decoder = gpt.make(variant="Mu", vocab=50, positions=32, dropout=0.0)
  prompt = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 5)))
  init = jax.jit(lambda key: decoder.init(key, prompt, train=False)["params"])
  params = init(jax.random.key(1))
  # Larger weights, so that the likeliest token is far from the next.
  return decoder, jax.tree.map(lambda x: 5 * x, params), prompt


@pytest.mark.slow
def test_the_cache_gives_what_the_whole_text_gives():
  decoder, params, prompt = small()
  drawn = language.sample(
    decoder, params, prompt, jax.random.key(0), tokens=12, temperature=0
  )
  text = np.asarray(prompt)
  for _ in range(12):
    out = decoder.apply({"params": params}, text, train=False)["tokens"]
    logits = out[:, -1] @ params["token_embed"]["embedding"].T
    text = np.concatenate([text, logits.argmax(-1)[:, None]], axis=1)
  np.testing.assert_array_equal(drawn, text[:, 5:])
  assert len(np.unique(drawn)) > 2


def test_draws_are_of_the_seed():
  decoder, params, prompt = small()
  run = lambda seed: np.asarray(
    language.sample(decoder, params, prompt, jax.random.key(seed), tokens=20)
  )
  np.testing.assert_array_equal(run(0), run(0))
  assert (run(0) != run(1)).any()


def test_no_token_beyond_the_tokenizers_is_drawn():
  decoder, params, prompt = small()
  draws = lambda **options: np.asarray(
    language.sample(
      decoder, params, prompt, jax.random.key(0), tokens=20, **options
    )
  )
  assert draws().max() >= 20 > draws(vocab=20).max()


def test_draws_have_the_asked_distribution():
  p = np.array([0.4, 0.3, 0.2, 0.1])
  logits = jnp.log(jnp.tile(p, (20000, 1)))

  def shares(**options):
    tokens = language.draw(logits, jax.random.key(0), **options)
    return np.bincount(tokens, minlength=4) / 20000

  np.testing.assert_allclose(shares(), p, atol=0.02)
  np.testing.assert_allclose(shares(top_k=2), [4 / 7, 3 / 7, 0, 0], atol=0.02)
  np.testing.assert_allclose(
    shares(top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0], atol=0.02
  )
  np.testing.assert_allclose(shares(top_p=0.01), [1, 0, 0, 0])
  np.testing.assert_allclose(shares(temperature=0), [1, 0, 0, 0])
  turned = language.draw(logits[:, ::-1], jax.random.key(0), temperature=1e-38)
  assert set(np.asarray(turned)) == {3}
  cold = p**2 / (p**2).sum()
  np.testing.assert_allclose(shares(temperature=0.5), cold, atol=0.02)


def test_an_end_of_a_document_is_a_line():
  from ssljax.data import tokens

  tokenizer = tokens.train(["a b", "c d"] * 9, kind="gpt", vocab=270)
  a, b = tokenizer.encode(["a b", "c d"])
  row = np.concatenate([a, [tokenizer.end], b, [tokenizer.end]])
  assert language.lines(tokenizer, row) == "a b\nc d"
  assert language.lines(tokenizer, a) == "a b"


@pytest.mark.parametrize("rows", ["one", "packed", "joined"])
def test_a_text_begins_and_ends_as_the_rows_do(rows):
  tokenizer = types.SimpleNamespace(start=1, end=2)
  data = types.SimpleNamespace(rows=rows)
  run = types.SimpleNamespace(
    config=types.SimpleNamespace(data=data),
    source=types.SimpleNamespace(tokenizer=tokenizer),
  )
  joined = rows == "joined"  # where only ends lie between documents
  assert language.first_tokens(run) == [2 if joined else 1]
  drawn = np.array([5, 2, 6, 2])
  kept = language.up_to_untrained(run, drawn).tolist()
  assert kept == [5, 2, 6, 2] if joined else kept == [5, 2]
  assert language.up_to_untrained(run, drawn[:1]).tolist() == [5]
  tokenizer.start = tokenizer.end = None
  assert language.first_tokens(run) == []


def test_generate_stops_where_a_document_ends(runs, monkeypatch):
  run, state = evaluate.restore(runs["gpt"], examples=False)
  monkeypatch.setattr(evaluate, "restore", lambda *_, **options: (run, state))
  end = run.source.tokenizer.end
  drawn = lambda *_, tokens, **options: np.full((1, tokens), end)
  monkeypatch.setattr(language, "sample", drawn)
  for rows, tokens in (("joined", 9), ("one", 1)):
    run.config.data.rows = rows
    figures = language.generate(runs["gpt"], prompt="The data", tokens=9)
    assert (figures["text"], figures["tokens"]) == ("The data", tokens)


def test_generate_goes_on_with_the_prompt(runs):
  say = lambda **options: language.generate(
    runs["gpt"], prompt="The data", tokens=9, **options
  )
  figures = say()
  assert figures["text"].startswith("The data")
  assert (figures["tokens"], figures["step"]) == (9, 2)
  assert figures == say() and figures != say(seed=1)


def test_generate_fills_the_context_that_was_trained(runs):
  figures = language.generate(runs["gpt"], prompt="The data")
  run, _ = evaluate.restore(runs["gpt"], examples=False)
  length = run.source.example["tokens"][0][0]
  (prompt,) = run.source.tokenizer.encode(["The data"])
  assert 1 + len(prompt) + figures["tokens"] == length - 1 < 64


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_a_tokenizer_without_a_start_will_do(kind, runs, monkeypatch):
  restore = evaluate.restore

  def without(*args, **options):
    run, state = restore(*args, **options)
    run.source.tokenizer.start = run.source.tokenizer.end = None
    return run, state

  monkeypatch.setattr(evaluate, "restore", without)
  if kind == "bert":
    assert language.fill(runs["bert"], text="a [MASK]")["masks"]
    return
  run, _ = restore(runs["gpt"], examples=False)
  monkeypatch.setattr(language, "lines", lambda tokenizer, tokens: len(tokens))
  figures = language.generate(runs["gpt"], prompt="The", tokens=3)
  assert figures["text"] == len(run.source.tokenizer.encode(["The"])[0]) + 3
  with pytest.raises(errors.UserError, match="no token to start with"):
    language.generate(runs["gpt"], prompt="")


def test_fill_names_the_likeliest(runs):
  figures = language.fill(
    runs["bert"], text="a [MASK] of the <mask> data", top=3
  )
  assert [len(m) for m in figures["masks"]] == [3, 3]
  for found in figures["masks"]:
    p = [q for _, q in found]
    assert p == sorted(p, reverse=True) and 0 < p[0] < 1
  assert "data" in figures["text"] and "[" not in figures["text"]


def test_neither_opens_the_texts(runs, monkeypatch):
  def opened(*unused, **unused_too):
    raise AssertionError("the texts were opened")

  monkeypatch.setattr(run_lib, "open_source", opened)
  assert language.generate(runs["gpt"], prompt="The", tokens=2)["tokens"] == 2
  assert language.fill(runs["bert"], text="a [MASK]")["masks"]
  run, _ = evaluate.restore(runs["bert"], examples=False)
  assert run.source.like == {} and len(run.source) > 64


@pytest.mark.parametrize(
  "command, words",
  [
    ("generate gpt --prompt=x --tokens=70", "fit the context of 47 that was"),
    ("generate gpt --prompt=x --tokens=0", "--tokens=0: give 1 or more"),
    ("generate gpt --prompt=x --seed=4294967296", "--seed below 2 to the 32"),
    ("generate gpt --prompt=\udcff", "--prompt is not UTF-8"),
    ("fill bert --text=[MASK]\udcff", "--text is not UTF-8"),
    ("generate gpt --prompt=x --tokens=5 --top_k=0", "--top_k from 1"),
    ("generate gpt --prompt=x --temperature=-1", "not a number from 0 on"),
    ("generate bert --prompt=x", "give one of gpt"),
    ("fill gpt --text=[MASK]", "give one of bert or roberta"),
    ("generate gpt --prompt=x --tokens=5 --top_k=-1", "number from 0 on"),
    ("fill data --text=[MASK]", "data2vec_text, which cannot do that"),
    ("fill bert --text=[MASK] --top=0", "--top=0 is not a number from 1 on"),
    ("fill bert --text=[MASK] --top=401", "--top=401: give 1 to 400"),
    ("fill bert --text=x", "no [MASK] in"),
    (f"fill bert --text=[MASK]{'x' * 99}", "99 tokens, and rows"),
  ],
)
def test_mistakes_end_with_2_and_a_line(runs, capsys, command, words):
  name, kind, *flags = command.split(" ")
  status = cli.main([name, f"--workdir={runs[kind]}", *flags])
  said = capsys.readouterr().err.splitlines()[-1]
  if "99" in words:
    words = "and rows of 48 were trained"
  assert status == 2 and words in said


def test_the_report_shows_what_was_learned(runs, tmp_path):
  out = str(tmp_path / "page.html")
  figures = report.report([runs["gpt"], runs["bert"]], out)
  assert figures["runs"] == 2
  with open(out) as f:
    page = f.read()
  for title in ("Samples", "What is hidden", "Map of the embeddings"):
    assert f"<h2>{title}</h2>" in page
  # The descriptions' test paragraphs are among the neighbours.
  assert "breast_cancer: " in page and page.count("<circle") >= 2 * 38
  assert "src=" not in page  # a page of texts has no pictures


def test_a_run_whose_split_for_evaluation_is_not_there_has_a_report(tmp_path):
  (tmp_path / "texts").mkdir()
  for i in range(40):
    path = tmp_path / "texts" / f"{i}.txt"
    path.write_text(f"In the beginning was the word, and it was {i}. " * 9)
  flags = ["--config.mesh.data=1", "--config.steps=2"]
  flags += [f"--config.data.name=folder:{tmp_path / 'texts'}"]
  flags += ["--config.data.split=all", "--config.eval.train_split="]
  flags += ["--config.schedule.warmup_steps=1", "--config.batch_size=8"]
  workdir = str(tmp_path / "run")
  config = config_lib.load("configs/gpt_mini_bible.py:quick", flags)
  train.train(config, workdir)
  report.report([workdir], out := str(tmp_path / "page.html"))
  with open(out) as f:
    assert "documents of the split all" in f.read().lower()


def test_a_run_keeps_its_tokenizer_and_goes_on_with_it(runs, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(runs["gpt"], workdir)
  kept = workdir / "data" / "tokenizer.json"
  text = kept.read_text()
  kept.write_text(text.replace("Ġthe", "Ġteh"))
  config = config_lib.restore(workdir / "config.json").unlock()
  mend = f"is not the tokenizer .* give --config.data.tokenizer={kept},"
  with pytest.raises(errors.UserError, match=mend):
    train.train(config, str(workdir))
  kept.write_text(text)  # and now the prepared one may be another
  own = config.data.tokenizer
  for config.data.tokenizer in (os.path.relpath(kept), own):
    assert train.train(config, str(workdir))["resumed_from"] > 0
