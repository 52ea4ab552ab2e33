"""What is seen of a run of text: its map, neighbours, guesses and samples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors
from ssljax import evaluate
from ssljax import language
from ssljax import run as run_lib
from ssljax.data import sources
from ssljax.report import arrays
from ssljax.report import markup
from ssljax.report import pictures

_EMBEDDED = 2000  # documents of the test split, at most
_MAPPED = 700  # of these, points of the map
_NEIGHBOURS = 4
_GUESSED = 8  # rows with what is hidden in them
_SAMPLES, _PROMPT, _ADDED = 6, 6, 60  # texts, and tokens of each
_LONGEST = 240  # characters of a document that are shown


class Words(NamedTuple):
  """What is seen of one run.

  Attributes:
    step: of the checkpoint.
    split: that the documents are of.
    texts: n documents.
    labels: int32 [n]; -1 is unknown.
    class_names: by label, or None.
    mapped: int [m], which of the documents are on the map.
    points: [m 2] in [0, 1], or None where all embeddings are the same or one
      is not finite.
    neighbours: int [q 1 + k]: a document, then those that are nearest.
    guesses: for each row its text and, for each token hidden in it, (what it
      was, the guess, its probability); empty without masks.
    samples: pairs (prompt, what was added); empty where nothing is generated.
  """

  step: int
  split: str
  texts: list[str]
  labels: np.ndarray
  class_names: list[str] | None
  mapped: np.ndarray
  points: np.ndarray | None
  neighbours: np.ndarray
  guesses: list[tuple[str, list[tuple[str, str, float]]]]
  samples: list[tuple[str, str]]


def of(run: run_lib.Run, state) -> Words:
  """What is seen of a run at a state.

  Raises:
    UserError: no such dataset.
  """
  split, test = _documents(run)
  rows = evaluate.embed(run, state, test)
  labels = rows.get("label", np.full(len(test), -1, np.int32))
  z = rows["pooled"].astype(np.float32)
  z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
  mapped = arrays.spread(len(z), _MAPPED)
  return Words(
    step=int(state.step),
    split=split,
    texts=test.texts,
    labels=labels,
    class_names=test.class_names,
    mapped=mapped,
    points=arrays.tsne(z[mapped]),
    neighbours=arrays.nearest(z, arrays.queries(labels))[:, : 1 + _NEIGHBOURS],
    guesses=_guesses(run, state),
    samples=_samples(run, state, test.texts),
  )


def _documents(run):
  """(split, at most _EMBEDDED documents, a row each)."""
  config = run.config
  split = config.eval.test_split or config.data.split
  try:
    source = evaluate.labelled(run, None, split)
  except errors.UserError:  # no labels
    try:
      source = run_lib.open_source(config, split, rows="one")
    except errors.UserError:  # no such split: nobody evaluates this run
      split = config.data.split
      source = run_lib.open_source(config, split, rows="one")
  return split, sources.Part(source, arrays.spread(len(source), _EMBEDDED))


def _guesses(run, state):
  """Of rows of the training set, as the training views hide their tokens."""
  if "logits" not in run.method.show:
    return []
  tokenizer = run.source.tokenizer
  places = arrays.spread(len(run.source), _GUESSED)
  batch = run.source.read(places)
  keys = jax.random.split(jax.random.key(0), len(places))
  batch = arrays.once(run.augment)(batch | {"key": keys})
  logits = np.asarray(
    arrays.once(run.method.show["logits"])(
      state.params, state.method_state, batch
    )
  )
  word = lambda token: (
    tokenizer.decode([token]).strip() or repr(tokenizer.decode([token]))
  )
  rows = []
  for i, place in enumerate(places):
    hidden = []
    for at, target, weight in zip(
      *(np.asarray(batch[k][i]) for k in ("places", "targets", "weights"))
    ):
      if weight:
        p = np.asarray(jax.nn.softmax(jnp.asarray(logits[i, at])))
        hidden.append((word(target), word(p.argmax()), float(p.max())))
    rows.append((run.source.decode(place), hidden))
  return rows


def _samples(run, state, texts):
  if run.config.encoder.name != "gpt":
    return []
  decoder, tokenizer = run_lib.make_encoder(run.config), run.source.tokenizer
  starts = [t[:_PROMPT] for t in tokenizer.encode(texts[:200])]
  starts = [t for t in starts if len(t) == _PROMPT][:_SAMPLES]
  first = language.first_tokens(run)
  room = language.context(run, decoder) - _PROMPT - len(first)
  if not starts or room < 1:
    return []
  prompts = np.stack([[*first, *t] for t in starts])
  added = language.sample(
    decoder,
    state.params["encoder"],
    jnp.asarray(prompts, jnp.int32),
    jax.random.key(0),
    tokens=min(_ADDED, room),
    vocab=tokenizer.vocab,
    temperature=0.8,
    top_p=0.95,
  )
  return [
    (
      tokenizer.decode(a),
      language.lines(tokenizer, language.up_to_untrained(run, b)),
    )
    for a, b in zip(starts, np.asarray(added))
  ]


def sections(seen: Words, side: int) -> dict[str, tuple]:
  """(note, content) by title."""
  del side
  found = {}
  if seen.samples:
    found["Samples"] = _SAMPLE_NOTE.format(split=seen.split), _sampled(seen)
  if seen.guesses:
    found["What is hidden"] = _GUESS_NOTE, _guessed(seen)
  found["Map of the embeddings"] = (
    pictures.map_note(seen),
    None if seen.points is None else pictures.mapped(seen, {}),
  )
  found["Nearest neighbours"] = (
    f"Documents of the split {seen.split}, and the nearest of "
    f"{len(seen.texts):,} by cosine, the nearest first.",
    _near(seen),
  )
  return found


_SAMPLE_NOTE = (
  "The first tokens of documents of the split {split}, in bold, and what the "
  "model goes on with (temperature 0.8, among the likeliest 95 percent)."
)
_GUESS_NOTE = (
  "Rows of the training set; below each the tokens that are hidden in it and "
  "the likeliest guess, with its probability."
)


def _sampled(seen):
  return [
    markup.tag("p", markup.tag("b", prompt), added, class_="text")
    for prompt, added in seen.samples
  ]


def _guessed(seen):
  blocks = []
  for text, hidden in seen.guesses:
    guesses = []
    for was, guess, p in hidden:
      class_ = "up" if was == guess else "down"
      said = was if was == guess else f"{was} → {guess}"
      guesses += [" · ", markup.tag("span", f"{said} {p:.2f}", class_=class_)]
    blocks.append(
      markup.tag(
        "p",
        _short(text),
        markup.tag("br"),
        markup.tag("small", guesses[1:]),
        class_="text",
      )
    )
  return blocks


def _near(seen):
  blocks = []
  for query, *others in seen.neighbours:
    lines = [
      markup.join(
        markup.tag("br"),
        markup.tag(
          "small",
          _label(seen, i),
          _short(seen.texts[i]),
        ),
      )
      for i in others
    ]
    blocks.append(
      markup.tag(
        "p",
        markup.tag("b", _label(seen, query), _short(seen.texts[query])),
        lines,
        class_="text",
      )
    )
  return blocks


def _label(seen, i):
  known = seen.labels[i] >= 0
  return f"{pictures.class_of(seen, seen.labels[i])}: " if known else None


def _short(text):
  return text if len(text) <= _LONGEST else text[:_LONGEST].rstrip() + " …"
