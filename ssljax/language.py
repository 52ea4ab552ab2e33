"""What a language model says: `ssljax generate` and `ssljax fill`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import errors
from ssljax import evaluate
from ssljax import run as run_lib


def generate(
  workdir: str,
  *,
  prompt: str,
  tokens: int | None = None,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  seed: int = 0,
  step: int | None = None,
) -> dict:
  """Goes on with a text, by a run of the method `gpt`.

  Args:
    workdir: of the run.
    prompt: what to go on with.
    tokens: how many to add; None is 128, or what the context has room for.
    temperature: of the distribution; 0 takes the likeliest token.
    top_k: draw among the k likeliest; None among all.
    top_p: draw among the likeliest that make up this probability (Holtzman et
      al. 2019, arXiv:1904.09751); None among all.
    seed: of the draws.
    step: of the checkpoint; None is the latest.

  Returns:
    `text`, the prompt and what was added, an end of a document as a line's end;
    of a run whose rows join no documents nothing after the first; `tokens`, how
    many were added; `step`.

  Raises:
    UserError: no such run, a run of another method, a prompt that leaves no
      room in the context, is empty or not UTF-8, or numbers out of range.
  """
  _require_utf8("prompt", prompt)
  run, state = evaluate.restore(workdir, step, examples=False)
  decoder = _model(run, "gpt", workdir)
  tokenizer = run.source.tokenizer
  (given,) = tokenizer.encode([prompt])
  start = np.concatenate([first_tokens(run), given]).astype(np.int32)
  if not len(start):
    raise errors.UserError(
      "the tokenizer has no token to start with: give a --prompt"
    )
  room = context(run, decoder) - len(start)
  tokens = min(128, max(room, 1)) if tokens is None else tokens
  if tokens < 1:
    raise errors.UserError(f"--tokens={tokens}: give 1 or more")
  if room < tokens:
    raise errors.UserError(
      f"a prompt of {len(start)} tokens and {tokens} more do not fit the "
      f"context of {room + len(start)} that was trained: shorten --prompt, or "
      "give a lower --tokens"
    )
  if (
    not temperature >= 0
    or not (top_k is None or top_k > 0)
    or not (top_p is None or 0 < top_p <= 1)
    or not 0 <= seed < 1 << 32
  ):
    raise errors.UserError(
      "give --temperature from 0, --top_k from 1, --top_p in (0, 1] and --seed "
      "below 2 to the 32"
    )
  added = sample(
    decoder,
    state.params["encoder"],
    jnp.asarray(start)[None],
    jax.random.key(seed),
    tokens=tokens,
    vocab=tokenizer.vocab,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
  )
  added = up_to_untrained(run, np.asarray(added[0]))
  return {
    "text": lines(tokenizer, [*given, *added]),
    "tokens": len(added),
    "step": int(state.step),
  }


def first_tokens(run) -> list[int]:
  """What stands before a document in the run's rows: a token, or none."""
  tokenizer = run.source.tokenizer
  joined = run.config.data.rows == "joined"
  first = tokenizer.end if joined else tokenizer.start
  return [] if first is None else [first]


def up_to_untrained(run, tokens):
  """Tokens [n] up to the end of a document, if nothing learns what follows."""
  ends = np.flatnonzero(np.asarray(tokens) == run.source.tokenizer.end)
  if run.config.data.rows == "joined" or not len(ends):
    return tokens
  return tokens[: ends[0] + 1]


def context(run, decoder) -> int:
  """The positions of a GPT that its run has trained: a row but for its end."""
  return min(decoder.positions, run.source.example["tokens"][0][0] - 1)


def _require_utf8(name, text):
  try:
    text.encode()
  except UnicodeError as e:
    raise errors.UserError(f"--{name} is not UTF-8: {text!r}") from e


def lines(tokenizer, tokens) -> str:
  """The text of tokens, a line for each document."""
  ends = np.flatnonzero(np.asarray(tokens) == tokenizer.end)
  documents = np.split(np.asarray(tokens), ends)
  text = "\n".join(tokenizer.decode(d, special=False) for d in documents)
  return text.rstrip("\n")


@functools.partial(
  jax.jit,
  static_argnames=(
    "decoder", "tokens", "vocab", "temperature", "top_k", "top_p"
  ),
)
def sample(
  decoder,
  params,
  prompt: jax.Array,
  key: jax.Array,
  *,
  tokens: int,
  vocab: int | None = None,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
) -> jax.Array:
  """Draws the next tokens, each seen once through the decoder's cache.

  Args:
    decoder: as `models.gpt` has it.
    params: of the decoder.
    prompt: int32 [b t].
    key: of the draws.
    tokens: n, how many to draw.
    vocab: of the tokenizer, where the table has more rows.
    temperature: 0 takes the likeliest.
    top_k: None draws among all.
    top_p: None draws among all.

  Returns:
    int32 [b n].
  """
  table = params["token_embed"]["embedding"][:vocab]

  def next_token(tokens, cache, key):
    out = decoder.apply({"params": params}, tokens, train=False, cache=cache)
    logits = out["tokens"][:, -1] @ table.T
    drawn = draw(logits, key, temperature=temperature, top_k=top_k, top_p=top_p)
    return drawn, out["cache"]

  def body(carry, key):
    last, cache = carry
    drawn, cache = next_token(last[:, None], cache, key)
    return (drawn, cache), last

  b, t = prompt.shape
  keys = jax.random.split(key, tokens)
  cache = decoder.init_cache(b, t + tokens)
  carry = next_token(prompt, cache, keys[0])
  (last, _), before = jax.lax.scan(body, carry, keys[1:])
  return jnp.concatenate([before.T, last[:, None]], axis=1)


def draw(logits, key, *, temperature=1.0, top_k=None, top_p=None):
  """Tokens int32 [b] of logits [b vocab]; see `generate`."""
  if temperature == 0:
    return logits.argmax(axis=-1).astype(jnp.int32)
  # The likeliest at 0, or a temperature near 0 would overflow.
  logits = (logits - logits.max(axis=-1, keepdims=True)) / temperature
  if top_k is not None:
    k = min(top_k, logits.shape[-1])
    least = jax.lax.top_k(logits, k)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if top_p is not None:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    p = jax.nn.softmax(ordered)
    before = jnp.cumsum(p, axis=-1) - p  # of those likelier
    least = jnp.where(before < top_p, ordered, jnp.inf).min(-1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return jax.random.categorical(key, logits).astype(jnp.int32)


def fill(
  workdir: str, *, text: str, top: int = 5, step: int | None = None
) -> dict:
  """The likeliest tokens for each mask in a text, by a masked language model.

  Args:
    workdir: of the run.
    text: with the tokenizer's mask token, such as "[MASK]" or "<mask>", or
      either of these.
    top: how many for each.
    step: of the checkpoint; None is the latest.

  Returns:
    `masks`: for each a list of (token, probability in [0, 1]); `text`, with the
    likeliest filled in; `step`.

  Raises:
    UserError: no such run, a run of another method, no mask in the text, or a
      text that is longer than the rows of the run, or not UTF-8.
  """
  _require_utf8("text", text)
  run, state = evaluate.restore(workdir, step, examples=False)
  _model(run, "bert", workdir)
  tokenizer = run.source.tokenizer
  if not 0 < top <= tokenizer.vocab:
    raise errors.UserError(
      f"--top={top}: give 1 to {tokenizer.vocab}, the tokens that there are"
    )
  parts = text.replace("<mask>", "[MASK]").split("[MASK]")
  if len(parts) < 2:
    raise errors.UserError(f"no [MASK] in --text={text!r}: put one in")
  # Without the space before a mask: byte-level tokens carry it themselves.
  pieces = tokenizer.encode([p.rstrip(" ") for p in parts[:-1]] + parts[-1:])
  row = [tokenizer.start]
  for piece in pieces:
    row += [*piece, tokenizer.mask]
  row[-1] = tokenizer.end
  row = [token for token in row if token is not None]
  longest = run.source.example["tokens"][0][0]
  if len(row) > longest:
    raise errors.UserError(
      f"--text has {len(row)} tokens, and rows of {longest} were trained: "
      "shorten it"
    )
  tokens = jnp.asarray(row, jnp.int32)[None]
  logits = jax.jit(run.method.show["logits"])(
    state.params, state.method_state, {"tokens": tokens}
  )[0]
  logits = logits[:, : tokenizer.vocab].at[:, tokenizer.special].set(-jnp.inf)
  masks, filled = [], list(row)
  for place in np.flatnonzero(np.asarray(row) == tokenizer.mask):
    p, tokens = jax.lax.top_k(jax.nn.softmax(logits[place]), top)
    filled[place] = int(tokens[0])
    masks.append(
      [
        (tokenizer.decode([t]).strip(), round(float(q), 4))
        for t, q in zip(tokens, p)
      ]
    )
  return {
    "text": tokenizer.decode(filled, special=False),
    "masks": masks,
    "step": int(state.step),
  }


def _model(run, kind, workdir):
  """The encoder of a run of language; UserError where it is another kind."""
  shows = "logits" in run.method.show or kind == "gpt"
  named = run.config.encoder.name == kind
  if not (named and shows and run.source.modality == "text"):
    raise errors.UserError(
      f"{workdir} is a run of {run.config.method.name}, which cannot do that: "
      f"give one of {'gpt' if kind == 'gpt' else 'bert or roberta'}"
    )
  return run_lib.make_encoder(run.config)
