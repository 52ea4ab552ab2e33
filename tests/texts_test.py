"""Sources of text, and what a run does with them."""

import json
import os

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from ssljax import config as config_lib
from ssljax import errors
from ssljax import held_out
from ssljax import run as run_lib
from ssljax.augment import text as text_views
from ssljax.data import stream
from ssljax.data import texts

pytest.importorskip("tokenizers")

OPTIONS = dict(tokenizer="bert", vocab=120, length=12)


@pytest.fixture
def folder(tmp_path):
  """Two classes in two splits; one file is not UTF-8."""
  for split, n in (("train", 6), ("test", 3)):
    for kind, words in (("bird", "a bird sings"), ("fish", "a fish swims")):
      (tmp_path / split / kind).mkdir(parents=True)
      for i in range(n):
        path = tmp_path / split / kind / f"{i}.txt"
        path.write_text(f"{words} {'and again ' * i}{'!' * i * i}")
  (tmp_path / "train" / "bird" / "0.txt").write_bytes(b"a bird\xff sings")
  return tmp_path


def open_folder(folder, **options):
  name = f"folder:{folder}"
  return texts.make(name, **({"split": "train"} | OPTIONS | options))


def test_suffixes_are_taken_in_any_case(folder):
  path = folder / "train" / "fish" / "0.txt"
  path.rename(path.with_suffix(".TXT"))
  assert open_folder(folder).texts[6] == "a fish swims "


def test_a_folder_of_texts(folder, caplog):
  source = open_folder(folder, labels=True)
  assert "1 documents are not UTF-8" in caplog.text
  assert len(source) == 12 and source.num_classes == 2
  assert source.class_names == ["bird", "fish"]
  batch = source.read(np.array([0, 11]))
  np.testing.assert_array_equal(batch["label"], [0, 1])
  np.testing.assert_array_equal(batch["index"], [0, 11])
  assert source.texts[11] == "a fish swims " + "and again " * 5 + "!" * 25
  assert source.decode(7) == "a fish swims and again!"
  assert source.texts[0] == "a bird\ufffd sings"
  assert "of 12 documents are longer" in caplog.text


def test_the_tokenizer_is_kept_beside_the_data(folder):
  source = open_folder(folder)
  (path,) = folder.glob("tokenizer-bert-120-*.json")
  assert path.read_text() == source.files["tokenizer"]
  path.write_text(path.read_text().replace('"lowercase": true', ""))
  with pytest.raises(errors.UserError, match="give a tokenizer.json"):
    open_folder(folder)
  path.write_text(source.files["tokenizer"])
  again = open_folder(folder, split="test", tokenizer=str(path), vocab=None)
  assert again.files == source.files


def test_texts_that_are_replaced_have_a_tokenizer_of_their_own(folder):
  first = open_folder(folder).files
  replaced = [*(folder / "train").rglob("*.txt")]
  before = {file: file.read_bytes() for file in replaced}
  for file in replaced:
    file.write_text("zyzzyva quux " * 9)
  for split in ("test", "train"):
    assert '"zyzzyva"' in open_folder(folder, split=split).files["tokenizer"]
  for file, data in before.items():
    file.write_bytes(data)
  assert open_folder(folder).files == first
  assert len([*folder.glob("tokenizer-*")]) == 2


def test_what_is_refused_leaves_no_tokenizer(folder):
  for options in (dict(length=2), dict(rows="columns")):
    with pytest.raises(errors.UserError, match="no room|choose one"):
      open_folder(folder, **options)
  assert not [*folder.glob("tokenizer-*")]


def test_the_tokenizer_is_of_the_training_split_whichever_is_first(folder):
  for file in (folder / "test" / "bird").iterdir():
    file.write_text("zyzzyva quux " * 9)
  first = open_folder(folder, split="test")
  assert "zyzzyva" not in first.files["tokenizer"]
  assert open_folder(folder).files == first.files


def test_the_tokenizer_is_of_all_classes_one_of_them_named_train(tmp_path):
  for kind in ("bird", "train"):
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "a.txt").write_text(f"a {kind} whistles " * 9)
  tokenizer = open_folder(tmp_path, split="all").files["tokenizer"]
  assert "bird" in tokenizer and "train" in tokenizer


def test_rows_of_lines(tmp_path):
  rows = [{"text": f"row {i}", "label": i % 3} for i in range(6)]
  lines = [json.dumps(row) for row in rows]
  (tmp_path / "a.jsonl").write_text("\n".join([*lines[:3], "", *lines[3:]]))
  source = open_folder(tmp_path, split="all", labels=True)
  assert source.texts == [f"row {i}" for i in range(6)]
  assert source.num_classes == 3
  other = open_folder(tmp_path, split="all", rows="joined", length=9)
  assert other.example["tokens"] == ((9,), np.int32)
  tokens = sum(len(other.tokenizer.encode([t])[0]) + 1 for t in source.texts)
  size = sum(len(t) + 1 for t in source.texts)
  assert other.tokens_per_byte == pytest.approx(tokens / size)


def test_rows_are_of_one_length_and_cut_behind_the_longest(folder):
  source = open_folder(folder, labels=True, length=40)
  rows = [source.read([i]) for i in source.order()]
  assert {row["tokens"].shape for row in rows} == {(1, 40)}
  cut = [source.cut(row, [i]) for row, i in zip(rows, source.order())]
  lengths = [row["tokens"].shape[1] for row in cut]
  assert lengths == sorted(lengths) and set(lengths) == {16, 32, 40}
  for row, whole in zip(cut, rows):
    assert row["mask"].sum() == whole["mask"].sum()
    assert row["label"] == whole["label"]
  # A process that has some of a batch's rows cuts them as the others theirs.
  shortest = source.cut(rows[0], source.order())
  assert shortest["tokens"].shape == (1, 40)


def test_each_feature_has_a_tokenizer_of_its_own(tmp_path):
  lines = [{"en": "a bird sings", "ru": "\u043f\u0442\u0438\u0446\u0430"}]
  path = tmp_path / "train" / "a.jsonl"
  path.parent.mkdir()
  path.write_text("\n".join(map(json.dumps, lines * 20)))
  for feature in ("en", "ru"):
    source = open_folder(tmp_path, feature=feature)
    unknown = source.tokenizer.unknown
    assert not (source.read([0])["tokens"] == unknown).any()


def test_without_a_split_to_train_a_tokenizer_on_it_says_what_to_give(folder):
  os.rename(folder / "train", folder / "training")
  with pytest.raises(errors.UserError, match="'train'.*tokenizer=FILE.json"):
    open_folder(folder, split="training")


class Sayings(tfds.core.GeneratorBasedBuilder):
  """A TFDS set with a text feature of another name."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {"said": tfds.features.Text()}
    features["label"] = tfds.features.ClassLabel(num_classes=2)
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(20):
      yield i, {"said": f"saying {i}", "label": i % 2}


def test_any_tfds_set_with_a_text(tmp_path):
  root = str(tmp_path)
  Sayings(data_dir=root, file_format="array_record").download_and_prepare()
  open_ = lambda **options: texts.make(
    "sayings", **(dict(split="train", data_dir=root) | OPTIONS | options)
  )
  source = open_(feature="said", labels=True)
  assert sorted(source.texts) == sorted(f"saying {i}" for i in range(20))
  label = source.read(np.arange(20))["label"]
  assert [int(t[7:]) % 2 for t in source.texts] == list(label)
  with pytest.raises(errors.UserError, match="no feature 'text', but"):
    open_()
  with pytest.raises(errors.UserError, match="'label' of sayings is not one"):
    open_(feature="label")


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(tokenizer="bert", vocab=None), "give data.vocab"),
    (dict(tokenizer="none.json"), "give a tokenizer.json"),
    (dict(rows="columns"), "choose one, packed, joined or pairs"),
    (dict(split="valid"), "no subfolder 'valid'"),
    (dict(length=2), "no room"),
  ],
)
def test_mistakes_are_named(folder, options, words):
  with pytest.raises(errors.UserError, match=words):
    open_folder(folder, **options)


def test_digits_are_told_to_be_images():
  with pytest.raises(errors.UserError, match="digits are images, .* texts"):
    texts.make("digits", split="train", **OPTIONS)


def test_files_that_cannot_be_read_are_named(tmp_path):
  with pytest.raises(errors.UserError, match="no texts in"):
    open_folder(tmp_path, split="all")
  (tmp_path / "a.txt").write_text(" \n")
  with pytest.raises(errors.UserError, match="a.txt is empty"):
    open_folder(tmp_path, split="all")
  (tmp_path / "a.txt").unlink()
  (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"words": "y"}')
  with pytest.raises(errors.UserError, match="b.jsonl:2 is no JSON object"):
    open_folder(tmp_path, split="all")
  (tmp_path / "b.jsonl").unlink()
  (tmp_path / "c.txt").symlink_to("/nowhere/c")
  with pytest.raises(errors.UserError, match="c.txt cannot be read .No such"):
    open_folder(tmp_path, split="all")


@pytest.mark.parametrize(
  "label", ['"pos"', "null", "0.7", "true", "Infinity", "99999999999", "-2"]
)
def test_what_is_no_label_is_told_where_labels_are_wanted(label, tmp_path):
  rows = ['{"text": "one", "label": 1}', f'{{"text": "two", "label": {label}}}']
  (tmp_path / "a.jsonl").write_text("\n".join(rows))
  source = open_folder(tmp_path, split="all", labels=False)
  assert source.texts == ["one", "two"]
  for labels in (True, None):
    with pytest.raises(errors.UserError, match="a.jsonl:2 has label .* whole"):
      open_folder(tmp_path, split="all", labels=labels)


def test_lines_that_json_or_python_cannot_read_are_told(tmp_path, caplog):
  path = tmp_path / "a.jsonl"
  path.write_text('{"text": "half \\ud83d of one"}')
  source = open_folder(tmp_path, split="all")
  assert source.texts == ["half ? of one"]
  assert "1 documents are not UTF-8" in caplog.text
  path.write_text('{"text": "a"}\n' + "[" * 100_000)
  with pytest.raises(errors.UserError, match="a.jsonl:2 is too deep"):
    open_folder(tmp_path, split="all")


def test_what_is_not_utf8_is_told_and_marks_of_order_are_no_text(
  tmp_path, caplog
):
  (tmp_path / "a.jsonl").write_bytes(b'{"text": "caf\xe9 au lait"}')
  (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfonce upon a time")
  (tmp_path / "c.txt").write_bytes(b"\xe9t\xe9")  # of a short text the half
  source = open_folder(tmp_path, split="all")
  assert "2 documents are not UTF-8" in caplog.text
  texts_ = ["caf\ufffd au lait", "once upon a time", "\ufffdt\ufffd"]
  assert source.texts == texts_


def test_texts_that_are_not_utf8_are_named_up_to_ten(tmp_path, caplog):
  for i in range(13):
    (tmp_path / f"{i:02}.txt").write_bytes(b"caf\xe9 au lait")
  open_folder(tmp_path, split="all")
  assert "13 documents are not UTF-8" in caplog.text
  assert "09.txt and 3 more" in caplog.text and "10.txt" not in caplog.text


@pytest.mark.parametrize(
  "name, data",
  [
    ("a.txt", "once upon a time".encode("utf-16")),
    ("a.txt", ("\u7684\u662f\u4e86" * 20).encode("utf-16")),  # without NUL
    ("a.txt", ("\u0436\u0438\u043b-\u0431\u044b\u043b" * 9).encode("cp1251")),
    ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
    ("a.jsonl", '{"text": "a bird"}'.encode("utf-16")),
    ("a.jsonl", b'{"text": "%s"}' % (b"\xe6\xe8\xeb-\xe1\xfb\xeb" * 9)),
  ],
)
def test_files_of_another_code_are_refused(name, data, tmp_path):
  (tmp_path / "0.txt").write_text("a bird sings")
  (tmp_path / name).write_bytes(data)
  with pytest.raises(errors.UserError, match=f"{name} is not text in UTF-8"):
    open_folder(tmp_path, split="all")


def test_masks_are_of_the_epoch_and_the_example():
  source = texts.make(
    "descriptions", split="train", **(OPTIONS | {"length": 48})
  )
  view, view_for_eval = text_views.pair("mlm", source, seed=3)
  batch = source.read(np.array([4, 9, 4]))
  assert view_for_eval(batch) is batch
  view = jax.jit(view)
  batch["epoch"] = np.array([0, 0, 1], np.int32)
  out = view(batch)
  other = view({k: v[[1, 0]] for k, v in batch.items()})
  np.testing.assert_array_equal(out["places"][:2], other["places"][::-1])
  assert (out["places"][0] != out["places"][2]).any()
  static, _ = text_views.pair("mlm", source, seed=3, copies=1)
  same = jax.jit(static)(batch)["places"]
  np.testing.assert_array_equal(same[0], same[2])
  back = np.array(out["tokens"])
  for row in range(3):
    back[row, out["places"][row]] = out["targets"][row]
  np.testing.assert_array_equal(back, batch["tokens"])


def test_words_of_two_documents_are_two():
  source = texts.make(
    "descriptions",
    split="train",
    **OPTIONS | {"tokenizer": "roberta", "vocab": 300},
  )
  special = source.tokenizer.special
  assert not source.tokenizer.goes_on[list(special)].any()
  view, _ = text_views.pair("mlm", source, whole_word=True, rate=0.2)
  # Two documents of one token that goes on; each is a word of its own.
  token = int(np.flatnonzero(source.tokenizer.goes_on)[0])
  ends = source.tokenizer.start, source.tokenizer.end
  row = np.array([[ends[0], token, ends[1], ends[0], token, ends[1]]], np.int32)
  index = np.arange(40, dtype=np.int32)
  batch = {"tokens": np.repeat(row, 40, axis=0), "index": index}
  out = jax.jit(view)(batch)
  hidden = np.asarray(out["weights"]).sum(axis=1)
  assert (hidden == 1).all()


def test_whole_words_are_hidden_together():
  source = texts.make(
    "descriptions", split="train", **(OPTIONS | {"length": 48})
  )
  view, _ = text_views.pair("mlm", source, whole_word=True, rate=0.3)
  out = jax.jit(view)(source.read(np.arange(30)))
  out = jax.tree.map(np.asarray, out)
  hidden = np.zeros(out["tokens"].shape, bool)
  for row, (places, weights) in enumerate(zip(out["places"], out["weights"])):
    hidden[row, places[weights > 0]] = True
  tokens = source.read(np.arange(30))["tokens"]
  goes_on = source.tokenizer.goes_on[tokens][:, 1:]
  assert goes_on.any() and hidden.any(axis=1).all()
  # What continues a word is hidden where what it continues is.
  same = hidden[:, 1:] == hidden[:, :-1]
  assert same[goes_on].all() and not same.all()


@pytest.mark.parametrize(
  "name, options, words",
  [
    ("mae", {}, "unknown augment 'mae' for text: choose among mlm, none"),
    ("mlm", {"rat": 0.2}, "did you mean 'rate'"),
    ("none", {"rate": 0.2}, "has no 'rate', nor other options"),
    ("mlm", {"whole_word": True, "span": 4}, "by whole words or in runs"),
    ("mlm", {"rate": 0.0}, "rate=0.0: give a part between 0 and 1"),
    ("mlm", {"random_part": 0.3}, "are more than the whole"),
    ("mlm", {"span": 4, "most": 2}, "most=2: runs of 4 may need 5"),
    ("mlm", {"copies": "abc"}, "copies='abc' is not int | None"),
    ("mlm", {"copies": 2.5}, "copies=2.5 is not int | None"),
    ("mlm", {"most": 2.5}, "most=2.5 is not int | None"),
    ("mlm", {"span": 1.5}, "span=1.5 is not int"),
  ],
)
def test_views_that_are_not_there(name, options, words):
  source = texts.make("descriptions", split="train", **OPTIONS)
  with pytest.raises(errors.UserError, match=words):
    text_views.pair(name, source, **options)


def test_masks_need_a_mask_token():
  source = texts.make(
    "descriptions", split="train", tokenizer="gpt", vocab=300, length=12
  )
  with pytest.raises(errors.UserError, match="needs a tokenizer with a mask"):
    text_views.pair("mlm", source)


def test_the_stream_tells_the_epoch():
  source = texts.make("descriptions", split="train", **OPTIONS)
  steps = len(source) // 64
  batches = list(
    stream.batches(
      source, seed=0, start_step=0, stop_step=2 * steps, batch_size=64
    )
  )
  epochs = [batch["epoch"][0] for batch in batches]
  assert epochs == [0] * steps + [1] * steps


def quick(name, *flags):
  path = f"configs/{name}.py:quick"
  return config_lib.load(path, ["--config.mesh.data=1", *flags])


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--config.encoder.vocab=300"], "give --config.encoder.vocab=400"),
    (["--config.data.length=65"], "lower --config.data.length"),
    (["--config.data.label_length=65"], "label_length=65, but config.encoder"),
    (["--config.data.label_length=-1"], "label_length=-1: give 1 or more"),
    (["--config.data.label_length=0"], "label_length=0: give 1 or more"),
    (["--config.data.label_length=2"], "label_length=2: .* no room"),
    (["--config.data.tokenizer=gpt"], "needs a tokenizer with a mask"),
    (["--config.data.modality=sound"], "choose among image, text"),
    (["--config.augment.name=simclr"], "for text: choose among"),
  ],
)
def test_configs_that_do_not_fit_are_refused(flags, words):
  with pytest.raises(errors.UserError, match=words):
    run_lib.build(quick("bert_mini_wordnet", *flags))


def test_what_a_loss_says_of_a_text():
  """Of causal models bits a byte; of data2vec's, which is none of tokens, no
  perplexity."""
  figures = {}
  for name in ("gpt_mini_bible", "data2vec_text_mini_wordnet"):
    run = run_lib.build(quick(name))
    state = run_lib.init_state(run)
    figures[name] = held_out.measure(run, state, None, "test")
  assert set(figures["data2vec_text_mini_wordnet"]) == {"test_loss"}
  gpt = figures["gpt_mini_bible"]
  bits = gpt["test_loss"] / np.log(2)
  source = run_lib.open_source(quick("gpt_mini_bible"), "test")
  assert gpt["test_bits_per_byte"] == pytest.approx(
    bits * source.tokens_per_byte
  )
  assert gpt["test_perplexity"] == pytest.approx(np.exp(gpt["test_loss"]))
  run = run_lib.build(quick("gpt_mini_bible", "--config.method.z_loss=0.1"))
  heavy = held_out.measure(run, run_lib.init_state(run), None, "test")
  assert heavy["test_loss"] > gpt["test_loss"] + 1
  assert heavy["test_perplexity"] == pytest.approx(gpt["test_perplexity"])


def test_encoders_and_data_of_other_kinds_are_refused():
  for name, encoder, words in (
    ("gpt_mini_bible", dict(name="bert", variant="Mu", vocab=400), "looks ahe"),
    ("bert_mini_wordnet", dict(name="resnet", variant="10"), "takes images"),
    ("simclr_vit_fashion_mnist", dict(name="bert", variant="Mu"), "takes text"),
  ):
    config = quick(name)
    config.encoder = encoder | dict(vocab=400) if "bert" in encoder else encoder
    with pytest.raises(errors.UserError, match=words):
      run_lib.build(config)


def test_the_held_out_loss_is_of_all_tokens_at_once():
  """Whatever the batches; the last is smaller."""
  losses = []
  for size in (38, 10):
    config = quick("bert_mini_wordnet", f"--config.batch_size={size}")
    run = run_lib.build(config)
    state = run_lib.init_state(run)
    figures = held_out.measure(run, state, None, "test")
    losses.append(figures["test_loss"])
    # The loss of hidden tokens alone says nothing of all bytes.
    assert figures["test_perplexity"] == pytest.approx(np.exp(losses[-1]))
    assert "test_bits_per_byte" not in figures
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)
  assert losses[0] == pytest.approx(np.log(400), abs=0.1)
