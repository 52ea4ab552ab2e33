"""Sources of text: documents of TFDS or of a folder, as rows of tokens.

Everything is held in memory as tokens. What an example is, one document, a
piece of several, or a pair, is said by `rows`.
"""

import codecs
import hashlib
import itertools
import json
import os
import re
import uuid

import numpy as np
from absl import logging

from ssljax import errors
from ssljax import files
from ssljax.data import folders
from ssljax.data import rows as rows_lib
from ssljax.data import sources
from ssljax.data import tokens

_SUFFIXES = (".txt", ".jsonl")
_NAMED = 10  # documents that are not UTF-8
_FEW = 16  # wrong characters of a file that may be of another code
_STEP = 16  # rows of a batch that is cut are a multiple of it long


class TextSource(sources.Source):
  """Rows of tokens; see `rows.Rows` for their arrays.

  Args:
    rows: of the documents.
    name: for messages.
    tokenizer: that made them.
    tokens_per_byte: of the documents, each one's end a token and a byte.
    labels: int [n], or None.
    num_classes: of the labels.
    class_names: by label, or None.
    texts: the documents, where each is a row, else None.

  Attributes:
    tokenizer: as given.
    texts: as given.
    tokens_per_byte: as given.
  """

  modality = "text"
  unit = "tokens"

  def __init__(
    self,
    rows: rows_lib.Rows,
    *,
    name: str,
    tokenizer: tokens.Tokenizer,
    tokens_per_byte: float,
    labels=None,
    num_classes=None,
    class_names=None,
    texts=None,
  ):
    self._arrays = dict(rows.arrays)
    n = len(self._arrays["tokens"])
    self._arrays["index"] = np.arange(n, dtype=np.int32)
    self._lengths = self._arrays["mask"].sum(axis=1)
    self.per_example = float(self._lengths.mean()) if n else 0.0
    self.name, self.tokenizer, self.texts = name, tokenizer, texts
    self.tokens_per_byte = tokens_per_byte
    self.files = {"tokenizer": tokenizer.to_json()}
    self.num_classes, self.class_names = None, class_names
    if labels is not None:
      self._arrays["label"] = np.asarray(labels, np.int32)
      self.num_classes = num_classes or int(np.max(labels)) + 1

  @property
  def example(self):
    return {
      k: (v.shape[1:], v.dtype)
      for k, v in self._arrays.items()
      if k not in ("index", "label")
    }

  @property
  def identity(self):
    tokens = np.ascontiguousarray(self._arrays["tokens"])
    return hashlib.sha256(tokens).hexdigest()

  def __len__(self):
    return len(self._arrays["tokens"])

  def check(self, encoder):
    if not hasattr(encoder, "vocab"):
      raise errors.UserError(
        f"{type(encoder).__name__} takes images, and {self.name} is text: give "
        "config.encoder.name=bert or gpt"
      )
    t, vocab = self._arrays["tokens"].shape[1], self.tokenizer.vocab
    if vocab > encoder.vocab:
      raise errors.UserError(
        f"the tokenizer has {vocab} tokens, more than the encoder: give "
        f"--config.encoder.vocab={vocab} or more"
      )
    if t > encoder.positions:
      raise errors.UserError(
        f"rows of {t} tokens, but config.encoder.positions="
        f"{encoder.positions}: give a lower --config.data.length"
      )

  def order(self):
    return np.argsort(self._lengths, kind="stable")

  def read(self, indices):
    return {k: v[indices] for k, v in self._arrays.items()}

  def cut(self, batch, indices):
    """Behind the longest row, to a multiple of 16 tokens."""
    longest = -(-int(self._lengths[indices].max()) // _STEP) * _STEP
    return {
      key: array[:, :longest] if np.ndim(array) == 2 else array
      for key, array in batch.items()
    }

  def labels(self):
    return self._arrays["label"]

  def decode(self, i) -> str:
    """A row as text."""
    row = self._arrays["tokens"][i][: self._lengths[i]]
    return self.tokenizer.decode(row, special=False)


def make(
  name: str,
  *,
  split: str,
  tokenizer: str,
  vocab: int | None = None,
  rows: str = "one",
  length: int = 128,
  label_length: int | None = None,
  feature: str = "text",
  labels: bool | None = False,
  data_dir: str | None = None,
) -> TextSource:
  """Opens a source.

  Args:
    name: a TFDS name, prepared where it is missing; "folder:PATH", with .txt
      files, a document each, and .jsonl files, a document a line; or
      "descriptions", the paragraphs of scikit-learn's descriptions of its
      datasets, the class being the dataset, of which every fifth is for test.
    split: of TFDS, slices included; of a folder, a subfolder, or "all".
    tokenizer: a tokenizer.json; or "bert", "roberta" or "gpt" for one that is
      trained on the split "train" (of a folder without splits, on all of it)
      and kept beside the data, in a folder for as long as these texts stay.
    vocab: of a tokenizer that is trained.
    rows: "one" document a row; "packed", several in a row that do not see each
      other; "joined", all as one text; or "pairs", with the next-sentence task:
      there a line is a sentence and a blank line ends a document, as in the
      input of BERT's authors.
    length: tokens a row.
    label_length: where there are labels, documents are cut to so many; None is
      `length`.
    feature: of the TFDS dataset, or key of the lines, that holds the text.
    labels: whether batches have `label`; each document is then a row. None is
      where there are any.
    data_dir: TFDS' root.

  Raises:
    UserError: no such dataset, split, folder or file; an empty file, or one of
      another code than UTF-8; a tokenizer that lacks what the rows need.
  """
  if not name:
    raise errors.UserError("data.name is not given: a TFDS name or folder:PATH")
  documents = _open(name, split, feature, data_dir)
  known = documents.num_classes is not None
  if documents.odd_label and (known if labels is None else labels):
    raise errors.UserError(
      f"{documents.odd_label}: labels are whole numbers from 0 on, or -1 where "
      "unknown; mend it, or give --config.data.labels=False"
    )
  labels = sources.check(documents, name, split, labels=labels)
  texts = documents.texts
  if documents.broken:
    count = len(documents.broken)
    logging.warning(
      "%s: %d documents are not UTF-8; what is wrong was replaced: %s%s",
      name,
      count,
      ", ".join(documents.broken[:_NAMED]),
      f" and {count - _NAMED} more" if count > _NAMED else "",
    )
  coder, path = _tokenizer(
    name,
    tokenizer,
    vocab,
    feature,
    data_dir,
    documents if _trains(name, split) else None,
  )
  kind, size = rows, length
  if labels:
    kind, size = "one", length if label_length is None else label_length
  encoded = _sentences(texts, coder) if kind == "pairs" else coder.encode(texts)
  made = rows_lib.of(kind, encoded, size, coder)
  _keep(coder, path)  # now that there are rows
  if made.cut:
    logging.warning(
      "%s/%s: %d of %d documents are longer than a row and lost their ends",
      name,
      split,
      made.cut,
      len(texts),
    )
  pieces = itertools.chain(*encoded) if kind == "pairs" else encoded
  total = sum(map(len, pieces)) + len(texts)
  return TextSource(
    made,
    name=name,
    tokenizer=coder,
    tokens_per_byte=total / (sum(len(t.encode()) + 1 for t in texts)),
    labels=documents.labels if labels else None,
    num_classes=documents.num_classes,
    class_names=documents.class_names,
    texts=texts if kind == "one" else None,
  )


def _sentences(texts, coder):
  """Of each document the sentences as tokens; see `rows` of `make`."""
  documents = [
    [line for line in part.split("\n") if line.strip()]
    for text in texts
    for part in re.split(r"\n\s*\n", text)
  ]
  encoded = iter(coder.encode(itertools.chain(*documents)))
  return [[next(encoded) for _ in document] for document in documents]


def tokenizer_of(
  name: str,
  tokenizer: str,
  vocab: int | None = None,
  feature: str = "text",
  data_dir: str | None = None,
  documents=None,
) -> tokens.Tokenizer:
  """The tokenizer of a dataset: read, or trained and kept beside the data.

  Args:
    name, tokenizer, vocab, feature, data_dir: as for `make`.
    documents: to train on; None is those of the split "train".
  """
  made, path = _tokenizer(name, tokenizer, vocab, feature, data_dir, documents)
  _keep(made, path)
  return made


def _tokenizer(name, tokenizer, vocab, feature, data_dir, documents):
  """As `tokenizer_of`, not kept yet; and where to, or None if nowhere."""
  if tokenizer.endswith(".json"):
    return tokens.load(tokenizer), None
  if not vocab:
    raise errors.UserError(
      f"data.tokenizer={tokenizer!r} is trained: give data.vocab as well, or a "
      "tokenizer.json"
    )

  def to_train_on():
    if documents is not None:
      return documents
    try:
      return _open(name, "train", feature, data_dir)
    except errors.UserError as e:
      raise errors.UserError(
        f"data.tokenizer={tokenizer!r} is trained on the split 'train': {e}; "
        "or give data.tokenizer=FILE.json"
      ) from e

  folder, path = _folder_of(name, data_dir), None
  of = "" if feature == "text" else "-" + re.sub(r"\W", "_", feature)
  if name.startswith("folder:"):  # whose files may be replaced
    documents = to_train_on()
    of += "-" + documents.digest()
  if folder is not None:
    path = os.path.join(folder, f"tokenizer-{tokenizer}-{vocab}{of}.json")
    if os.path.exists(path):
      return tokens.load(path), None
  texts = to_train_on().texts
  return tokens.train(texts, kind=tokenizer, vocab=vocab), path


def _keep(tokenizer, path):
  if path is None:
    return
  try:
    # Hosts that share a folder share pids.
    with files.whole(path, draft=f"{path}.{uuid.uuid4().hex}") as f:
      f.write(tokenizer.to_json())
  except OSError as e:
    raise errors.UserError(
      f"the tokenizer cannot be kept at {path} ({e.strerror}): make the folder "
      "writable, or give data.tokenizer=FILE.json"
    ) from e


def _trains(name, split):
  """Whether a split is what a tokenizer is trained on: "train", or "all" of a
  folder that has no splits."""
  folder = os.path.expanduser(name.removeprefix("folder:"))
  whole = name.startswith("folder:") and split == "all"
  return split == "train" or (whole and not folders.has_splits(folder))


def _folder_of(name, data_dir):
  """Where the data lies; None if in a package."""
  if name == "descriptions":
    return None
  if name.startswith("folder:"):
    return os.path.expanduser(name.removeprefix("folder:"))
  from ssljax.data import prepare  # TFDS is imported where it is used

  return prepare.prepare(name, data_dir=data_dir)


def _open(name, split, feature, data_dir):
  if name == "descriptions":
    return _Descriptions(split)
  if name == "digits":
    raise errors.UserError(
      "digits are images, and the run is of texts: give a TFDS name, "
      "folder:PATH or descriptions"
    )
  if name.startswith("folder:"):
    return _Files(name.removeprefix("folder:"), split, feature)
  return _Tfds(name, split, feature, data_dir)


class _Documents:
  """`texts`, `labels` (-1 is unknown), `num_classes` and `class_names`, or
  None, `broken`: the names of texts that were not UTF-8, `replaced`: characters
  of theirs, and `odd_label`: the first that is no label, and its place."""

  def __init__(self, num_classes, class_names):
    self.texts, self.labels, self.odd_label = [], [], None
    self.broken, self.replaced = [], 0
    self.num_classes, self.class_names = num_classes, class_names

  def __len__(self):
    return len(self.texts)

  def digest(self) -> str:
    """Of the texts, short, for the name of a file."""
    digest = hashlib.sha256()
    for text in self.texts:
      digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:12]

  def _decode(self, data, name):
    text = data.decode("utf-8", errors="replace")
    if text.encode() != data:
      self.broken.append(name)
      self.replaced += text.count("\ufffd")
    return text

  def _add(self, text, label):
    self.texts.append(text)
    self.labels.append(label)


class _Tfds(_Documents):
  """The texts of a TFDS dataset."""

  def __init__(self, name, split, feature, data_dir):
    from ssljax.data import tfds_records

    records = tfds_records.Records(name, split, data_dir, feature)
    super().__init__(records.num_classes, records.class_names)
    for first in range(0, len(records), 1000):
      some = range(first, min(first + 1000, len(records)))
      for i, (data, label) in zip(some, records.parsed(some, feature)):
        if data is None:
          raise errors.UserError(
            f"{records.name(i)} is corrupt: remove the dataset, prepare it anew"
          )
        self._add(self._decode(data, records.name(i)), label)


class _Descriptions(_Documents):
  """Paragraphs of the descriptions that scikit-learn ships."""

  def __init__(self, split):
    if split not in ("train", "test"):
      raise errors.UserError(
        f"descriptions has no split {split!r}: train or test"
      )
    folder = os.path.join(sources.sklearn_datasets(), "descr")
    files = sorted(f for f in os.listdir(folder) if f.endswith(".rst"))
    names = [name.removesuffix(".rst") for name in files]
    super().__init__(len(files), names)
    for label, file in enumerate(files):
      with open(os.path.join(folder, file), encoding="utf-8") as f:
        paragraphs = f.read().split("\n\n")
      for i, text in enumerate(p for p in paragraphs if len(p) > 20):
        if (i % 5 == 4) == (split == "test"):
          self._add(text, label)


class _Files(_Documents):
  """The texts of a folder; classes are its subfolders, or "label" of lines."""

  def __init__(self, path, split, key):
    folder = folders.Folder(path, split, _SUFFIXES, "texts")
    super().__init__(folder.num_classes, folder.class_names)
    for file in folder.paths:
      try:
        with open(file, "rb") as f:
          data = f.read().removeprefix(codecs.BOM_UTF8)
      except OSError as e:
        raise errors.UserError(
          f"{file} cannot be read ({e.strerror}): mend or remove it"
        ) from e
      if not data.strip():
        raise errors.UserError(f"{file} is empty: fill or remove it")
      before = self.replaced
      if b"\0" in data:
        raise _of_another_code(file, "it has NUL bytes")
      if file.lower().endswith(".txt"):
        self._add(self._decode(data, file), folder.label(file))
      else:
        for number, line in enumerate(data.splitlines()):
          if line.strip():
            place = f"{file}:{number + 1}"
            self._add_line(place, line, key, folder.label(file))
      if self.replaced - before > max(_FEW, len(data) / 4):
        raise _of_another_code(file, "more than a quarter of it is wrong there")
    if max(self.labels) >= (self.num_classes or 0):
      self.num_classes, self.class_names = max(self.labels) + 1, None

  def _add_line(self, place, line, key, label):
    try:
      row = json.loads(self._decode(line, place))
      # JSON may hold what UTF-8 may not: "\ud83d", the half of a character.
      text = row[key].encode("utf-8", errors="replace").decode()
    except (ValueError, TypeError, KeyError, AttributeError) as e:
      raise errors.UserError(
        f"{place} is no JSON object with a text {key!r} ({e}): mend it, or "
        "give --config.data.feature=KEY"
      ) from e
    except RecursionError as e:
      raise errors.UserError(f"{place} is too deep to be read") from e
    if text != row[key] and place not in self.broken[-1:]:
      self.broken.append(place)
    if "label" in row:
      label = row["label"]
      self.class_names = None  # numbers, and not of the folders
    if type(label) is not int or not -1 <= label < 1 << 31:
      self.odd_label = self.odd_label or f"{place} has label {label!r}"
      label = -1
    self._add(text, label)


def _of_another_code(file, why):
  return errors.UserError(
    f"{file} is not text in UTF-8 ({why}): convert it, as by iconv -f CODE -t "
    "UTF-8, or remove it"
  )
