"""Generation with the key-value cache and without: speed, and the same logits.

`python -m benchmarks.generate`: 256 tokens from a prompt of 16, GPT-mini with
4,096 tokens, one row, float32. Without the cache the whole text goes through
the decoder for each token, padded to its final length, so that one program
serves all. Prints one JSON object.
"""

import functools
import json
import time

from ssljax import cli

cli.set_up()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from ssljax import language  # noqa: E402
from ssljax.models import gpt  # noqa: E402

_PROMPT, _TOKENS, _REPEATS = 16, 256, 5


def main():
  decoder = gpt.make(variant="mini", vocab=4096, positions=512, dropout=0.0)
  rng = np.random.default_rng(0)
  prompt = jnp.asarray(rng.integers(0, 4096, (1, _PROMPT)), jnp.int32)
  init = jax.jit(functools.partial(decoder.init, train=False))
  params = init(jax.random.key(0), prompt)["params"]
  # Larger weights than a new model's, whose logits are nearly all the same.
  params = jax.tree.map(lambda x: 3 * x, params)
  cached = lambda: language.sample(
    decoder, params, prompt, jax.random.key(0), tokens=_TOKENS, temperature=0
  )
  whole = lambda: _without(decoder, params, prompt)
  a, (b, logits) = cached(), whole()
  figures = {
    "tokens": _TOKENS,
    "same_tokens": int((a == b).sum()),
    "largest_difference_of_logits": _difference(
      decoder, params, a, logits, prompt
    ),
  }
  times = {"cached_s": [], "uncached_s": []}
  for _ in range(_REPEATS):
    for name, run in (("cached_s", cached), ("uncached_s", whole)):
      start = time.perf_counter()
      jax.block_until_ready(run())
      times[name].append(time.perf_counter() - start)
  figures |= {k: round(float(np.median(v)), 4) for k, v in times.items()}
  figures["ratio"] = round(figures["uncached_s"] / figures["cached_s"], 1)
  print(json.dumps(figures))


@functools.partial(jax.jit, static_argnames="decoder")
def _without(decoder, params, prompt):
  """The likeliest tokens [1 n] and their logits [n vocab]."""
  table = params["token_embed"]["embedding"]

  def body(text, place):
    out = decoder.apply({"params": params}, text, train=False)["tokens"]
    logits = jax.lax.dynamic_index_in_dim(out[0], place - 1, 0, False) @ table.T
    token = logits.argmax().astype(jnp.int32)
    text = jax.lax.dynamic_update_slice(text, token[None, None], (0, place))
    return text, logits

  text = jnp.pad(prompt, ((0, 0), (0, _TOKENS)))
  places = jnp.arange(_PROMPT, _PROMPT + _TOKENS)
  text, logits = jax.lax.scan(body, text, places)
  return text[:, _PROMPT:], logits


def _difference(decoder, params, drawn, logits, prompt):
  """The largest difference of the logits, each token through the cache."""

  @jax.jit
  def step(token, cache):
    out = decoder.apply({"params": params}, token, train=False, cache=cache)
    return out["tokens"][0, -1] @ params["token_embed"]["embedding"].T, out[
      "cache"
    ]

  cache = decoder.init_cache(1, _PROMPT + _TOKENS)
  row, cache = step(prompt, cache)
  largest = 0.0
  for i in range(_TOKENS):
    largest = max(largest, float(abs(row - logits[i]).max()))
    row, cache = step(drawn[:, i : i + 1], cache)
  return largest


if __name__ == "__main__":
  main()
