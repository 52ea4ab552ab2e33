"""Views of text, on device: what masked language models do not see."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors

# What each view takes, with BERT's choices.
PRESETS = {
  "mlm": dict(
    rate=0.15,
    mask_part=0.8,
    random_part=0.1,
    probabilistic=False,
    random_special=True,
    span=1,  # tokens in a run of hidden ones
    whole_word=False,  # hide whole words
    copies=None,  # of static masks; None is a new one each epoch
    most=None,  # tokens of a row that may be hidden; None is room for all
  ),
  "none": {},
}
_KINDS = dict(
  rate=float,
  mask_part=float,
  random_part=float,
  probabilistic=bool,
  random_special=bool,
  span=int,
  whole_word=bool,
  copies=int | None,
  most=int | None,
)


def pair(
  name: str, source, *, seed: int = 0, **overrides
) -> tuple[Callable, Callable]:
  """Returns the training view and the evaluation view, `batch -> batch`.

  "mlm" gives what `hide` does, by (seed, epoch, index); "none", for causal
  models, and evaluation take the rows as they are.

  Args:
    name: of a preset.
    source: a `data.texts.TextSource`, of which this takes the tokenizer and the
      length of the rows.
    seed: of the masks.
    **overrides: keys of the preset.

  Raises:
    UserError: an unknown preset or key, or a tokenizer without a mask token.
  """
  if name not in PRESETS:
    raise errors.UserError(
      f"unknown augment {name!r} for text: choose among {', '.join(PRESETS)}"
    )
  errors.refuse_unknown(f"augment {name!r}", overrides, PRESETS[name])
  errors.refuse_kinds(f"augment {name!r}", overrides, _KINDS)
  if name == "none":
    return _same, _same
  options = {**PRESETS[name], **overrides}
  tokenizer = source.tokenizer
  if tokenizer.mask is None or tokenizer.pad is None:
    raise errors.UserError(
      f"augment {name!r} needs a tokenizer with a mask and a padding token: "
      "give data.tokenizer=bert or roberta, or a tokenizer.json of such"
    )
  copies, whole_word = options.pop("copies"), options.pop("whole_word")
  length = source.example["tokens"][0][0]
  room = int(options["rate"] * length) + options["span"]
  if options["most"] is None:
    options["most"] = room
  elif options["span"] > 1 and options["most"] < room:  # the last would go
    raise errors.UserError(
      f"config.augment.most={options['most']}: runs of {options['span']} may "
      f"need {room}, give as many or leave it out"
    )
  special = (tokenizer.pad,) + tuple(
    i for i in tokenizer.special if i != tokenizer.pad
  )
  goes_on = tokenizer.goes_on
  if whole_word and not np.delete(~goes_on, special).any():
    raise errors.UserError(
      "config.augment.whole_word: no token of this tokenizer says that it "
      "begins a word; give whole_word=False"
    )
  if copies is not None and copies < 1:
    raise errors.UserError(f"config.augment.copies={copies}: give 1 or more")
  if whole_word and options["span"] > 1:
    raise errors.UserError(
      "config.augment.whole_word and span: tokens are hidden by whole words or "
      "in runs, give one of them"
    )
  if not 0 < options["rate"] < 1:
    raise errors.UserError(
      f"config.augment.rate={options['rate']}: give a part between 0 and 1"
    )
  if options["mask_part"] + options["random_part"] > 1:
    raise errors.UserError(
      f"config.augment.mask_part={options['mask_part']} and random_part="
      f"{options['random_part']} are more than the whole: lower one"
    )

  def augment(batch):
    tokens, index = batch["tokens"], batch["index"]
    word = None
    if whole_word:
      word = jnp.cumsum(~jnp.asarray(goes_on)[tokens], axis=1)
      word = jnp.minimum(word, tokens.shape[1] - 1)
    keys = example_keys(
      seed, batch.get("epoch", jnp.zeros_like(index)), index, copies
    )
    return batch | hide(
      keys,
      tokens,
      mask_token=tokenizer.mask,
      vocab=tokenizer.vocab,
      special=special,
      word=word,
      **options,
    )

  return augment, _same


def _same(batch):
  return batch


def hide(
  keys: jax.Array,
  tokens: jax.Array,
  *,
  mask_token: int,
  vocab: int,
  special: tuple[int, ...],
  most: int,
  rate: float = 0.15,
  mask_part: float = 0.8,
  random_part: float = 0.1,
  probabilistic: bool = False,
  random_special: bool = True,
  span: int = 1,
  word: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Chooses tokens, and replaces most of them.

  Devlin et al. 2018, section 3.1, as `create_masked_lm_predictions` of
  google-research/bert `create_pretraining_data.py` has it: of a row of n
  tokens, special ones counted, but not padding, max(1, round(rate * n)) are
  chosen among those that are not special; 80 percent of the chosen become the
  mask token, 10 percent a random one, 10 percent stay. With `probabilistic`
  and without `random_special` as RoBERTa's, facebookresearch/fairseq
  `mask_tokens_dataset.py`, which rounds rate * n up or down by chance and draws
  no special token; that one also chooses among special tokens, this does not.

  Args:
    keys: [b]; the same key hides the same places.
    tokens: int32 [b t].
    mask_token: stands for what is hidden.
    vocab: random tokens are below it.
    special: tokens that are never hidden; the first is padding.
    most: m, how many tokens of a row may be hidden.
    rate: part of a row's tokens.
    mask_part: part of the chosen that becomes the mask token.
    random_part: part of the chosen that becomes a random one.
    probabilistic: round by chance.
    random_special: whether a random token may be a special one.
    span: tokens are chosen in runs of so many, which may overlap: rate * n /
      span runs, rounded by chance, as `mask_multiple_length` of fairseq's
      `mask_tokens_dataset.py`, which data2vec takes; special ones in a run are
      left as they are.
    word: int32 [b t], the number of each token's word in its row, below t; with
      it whole words are chosen, as many, in random order, as fit into the
      count. None chooses tokens.

  Returns:
    `tokens` [b t] with the chosen replaced, `places` int32 [b m] of the chosen,
    `targets` int32 [b m], what was there, and `weights` int32 [b m], 0 where a
    row has fewer. A row of special tokens alone has none.
  """
  t = tokens.shape[1]
  never = jnp.asarray(special)
  # Ordinary tokens, from which random ones are drawn where asked for.
  ordinary = jnp.setdiff1d(
    jnp.arange(vocab), never, size=vocab - len(set(special))
  )

  def one(key, tokens, word):
    count_key, order_key, kind_key, random_key = jax.random.split(key, 4)
    free = ~jnp.isin(tokens, never)
    wanted = rate * (tokens != special[0]).sum()
    if probabilistic:
      count = jnp.floor(wanted + jax.random.uniform(count_key)).astype(int)
    else:
      count = jnp.maximum(1, jnp.round(wanted).astype(int))
    count = jnp.minimum(count, min(most, t))
    noise = jax.random.uniform(order_key, (t,))
    if span > 1:
      n = (tokens != special[0]).sum()
      runs = jnp.floor(wanted / span + jax.random.uniform(count_key))
      starts = jnp.where(jnp.arange(t) < n, noise, jnp.inf)
      begins = jnp.argsort(jnp.argsort(starts)) < runs
      covered = sum(jnp.roll(begins, i).at[:i].set(False) for i in range(span))
      chosen = free & (covered > 0)
    elif word is None:
      rank = jnp.argsort(jnp.argsort(jnp.where(free, noise, jnp.inf)))
      chosen = free & (rank < count)
    else:
      chosen = free & _whole_words(noise, jnp.where(free, word, t), count)[word]
    places = jnp.argsort(~chosen)[:most]  # the chosen first, in their order
    weights = chosen[places]
    targets = tokens[places]
    kind = jax.random.uniform(kind_key, places.shape)
    if random_special:
      drawn = jax.random.randint(random_key, places.shape, 0, vocab)
    else:
      drawn = jax.random.choice(random_key, ordinary, places.shape)
    replaced = jnp.where(
      kind < mask_part,
      mask_token,
      jnp.where(kind < mask_part + random_part, drawn, targets),
    )
    replaced = jnp.where(weights, replaced, targets).astype(tokens.dtype)
    return {
      "tokens": tokens.at[places].set(replaced),
      "places": places.astype(jnp.int32),
      "targets": targets,
      "weights": weights.astype(jnp.int32),
    }

  return jax.vmap(one, in_axes=(0, 0, None if word is None else 0))(
    keys, tokens, word
  )


def _whole_words(noise, word, count):
  """Which words [t] are chosen: in random order, those that still fit."""
  t = len(noise)
  sizes = jnp.zeros(t + 1, int).at[word].add(1)[:t]
  order = jnp.argsort(noise)

  def visit(total, size):
    takes = (size > 0) & (total + size <= count)
    return total + size * takes, takes

  _, takes = jax.lax.scan(visit, 0, sizes[order])
  return jnp.zeros(t, bool).at[order].set(takes)


def example_keys(
  seed: int, epoch: jax.Array, index: jax.Array, copies: int | None = None
) -> jax.Array:
  """Keys [b] from the epoch and the example alone, whatever the batch.

  Args:
    seed: of the masks.
    epoch: int32 [b] or [].
    index: int32 [b], the example's place in its source.
    copies: BERT's static masks: epochs share them modulo so many. None is a
      mask of its own for each epoch, RoBERTa's.
  """
  epoch = jnp.broadcast_to(epoch, index.shape)
  if copies is not None:
    epoch = epoch % copies
  fold = lambda e, i: jax.random.fold_in(
    jax.random.fold_in(jax.random.key(seed), e), i
  )
  return jax.vmap(fold)(epoch, index)
