"""BERT's encoder: Devlin et al. 2018, arXiv:1810.04805.

Post-norm, exact GELU, learned positions, as Hugging Face's `BertModel` has it,
without the pooler, which belongs to the next-sentence task. (google-research/
bert `modeling.py` now approximates GELU by tanh, and cuts the normal
distribution of the start at two deviations.) RoBERTa's (Liu et al. 2019,
arXiv:1907.11692) is the same with one kind of segment, positions that start at
2, and another epsilon: the variants "roberta-base" and "roberta-large".
"""

import flax.linen as nn
import jax.numpy as jnp

from ssljax import errors
from ssljax.models import remat
from ssljax.models import text
from ssljax.models import vit

_BERT = dict(vocab=30522, positions=512, kinds=2, epsilon=1e-12)
_ROBERTA = dict(
  vocab=50265, positions=512, first_position=2, kinds=1, epsilon=1e-5
)
# dim, depth, heads: Turc et al. 2019, arXiv:1908.08962; Mu is for tests.
_SIZES = {
  "Mu": (32, 2, 2),
  "tiny": (128, 2, 2),
  "mini": (256, 4, 4),
  "small": (512, 4, 8),
  "medium": (512, 8, 8),
  "base": (768, 12, 12),
  "large": (1024, 24, 16),
}


def make(*, variant: str, **options) -> "Bert":
  """Returns the encoder `variant`: a size, or "roberta-" and a size.

  Options are the fields of `Bert`, those that the variant gives included.

  Raises:
    UserError: a size that is not known, an option that is not a field, or heads
      that do not divide the width.
  """
  family, _, size = str(variant).rpartition("-")
  if size not in _SIZES or family not in ("", "roberta"):
    raise errors.UserError(
      f"unknown bert variant {variant!r}: give one of {', '.join(_SIZES)}, or "
      "roberta- and one of them"
    )
  errors.refuse_fields("bert", options, Bert)
  dim, depth, heads = _SIZES[size]
  sizes = dict(dim=dim, depth=depth, heads=heads)
  encoder = Bert(**((_ROBERTA if family else _BERT) | sizes | options))
  if encoder.dim % encoder.heads:
    raise errors.UserError(
      f"encoder.heads={encoder.heads} does not divide encoder.dim={encoder.dim}"
    )
  return encoder


class Bert(nn.Module):
  """BERT under the encoder contract; x is tokens int32 [b t].

  "tokens" is [b t d], "pooled" the first of them, BERT's [CLS].
  `attention_mask` says where a query may look, and so what is padding and what
  another document. `kinds` is BERT's token type, int32 [b t]; None is 0.

  Attributes:
    vocab: rows of the table of tokens.
    dim: width of the tokens.
    depth: number of blocks.
    heads: of the attention.
    positions: the longest sequence.
    first_position: rows before the first position; RoBERTa's table has two that
      are for padding.
    kinds: of segments.
    mlp_ratio: width of the MLP over `dim`.
    epsilon: of the norms.
    dropout: of embeddings, branches and attention weights, in training.
    scan: one compiled block for all; its parameters get an axis [depth] first.
    remat: what blocks keep for the way back, a name of `remat.py`.
    dtype: of the products; norms, softmax and the stream that the branches are
      added to are float32.
    axis_name: that heads take for their batch norm; here there is none.
  """

  vocab: int
  dim: int
  depth: int
  heads: int
  positions: int = 512
  first_position: int = 0
  kinds: int = 2
  mlp_ratio: float = 4.0
  epsilon: float = 1e-12
  dropout: float = 0.1
  scan: bool = False
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self,
    x,
    *,
    train: bool,
    keep=None,
    mask=None,
    attention_mask=None,
    layers=(),
    key=None,
    kinds=None,
  ):
    """Raises ValueError for `keep` or `mask`, or tokens beyond `positions`."""
    text.check(self, x, layers=layers, keep=keep, mask=mask)
    key = text.dropout_key(self, key, train=train)
    x = self._embed(x, kinds)
    x = text.dropout(x, text.fold(key, self.depth), self.dropout)
    block = remat.wrap(Block, self.remat, scan=self.scan)
    fields = dict(
      heads=self.heads,
      mlp_ratio=self.mlp_ratio,
      epsilon=self.epsilon,
      dropout=self.dropout,
      dtype=self.dtype,
    )
    streams = []
    if self.scan:
      x, streams = nn.scan(
        lambda block, x, i, mask, key: (
          (x := block(x, mask, text.fold(key, i))),
          x if layers else None,
        ),
        # The second for methods that capture what a layer gives.
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=self.depth,
      )(
        block(**fields, name="blocks"),
        x,
        jnp.arange(self.depth),
        attention_mask,
        key,
      )
    else:
      for i in range(self.depth):
        x = block(**fields, name=f"block{i}")(
          x, attention_mask, text.fold(key, i)
        )
        streams.append(x)
    return {
      "pooled": x[:, 0],
      "tokens": x,
      "layers": tuple(streams[i] for i in layers),
    }

  def _embed(self, x, kinds):
    t, first = x.shape[1], self.first_position
    table = text.embed(first + self.positions, self.dim, "pos_embed")
    out = text.embed(self.vocab, self.dim, "token_embed")(x)
    out += table(jnp.arange(first, first + t))
    kinds = jnp.zeros_like(x) if kinds is None else kinds
    out += text.embed(self.kinds, self.dim, "kind_embed")(kinds)
    return vit.norm("norm", self.epsilon)(out)


class Block(nn.Module):
  """Attention and MLP on [b t d], a norm after each sum."""

  heads: int
  mlp_ratio: float
  epsilon: float
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, attention_mask, key):
    """`key` [b] drops; None drops nothing."""
    d = x.shape[-1]
    drop = lambda y, i: text.dropout(y, text.fold(key, i), self.dropout)
    norm = lambda y, name: vit.norm(name, self.epsilon)(y)
    dense = lambda width, name: vit.dense(
      width, self.dtype, name, kernel_init=text.normal
    )
    y = text.attend(
      dense(3 * d, "qkv")(x),
      self.heads,
      mask=attention_mask,
      rate=0.0 if key is None else self.dropout,
      key=text.fold(key, 0),
    )
    x = norm(x + drop(dense(d, "proj")(y), 1), "norm1")
    y = vit.gelu(dense(int(d * self.mlp_ratio), "fc1")(x), "exact")
    return norm(x + drop(dense(d, "fc2")(y), 2), "norm2")


class Head(nn.Module):
  """What precedes the product with the table of tokens: [... d] -> [... d].

  A dense layer, GELU and a norm, as `get_masked_lm_output` of google-research/
  bert `run_pretraining.py`.

  Attributes:
    epsilon: of the norm.
    dtype: of the computation.
  """

  epsilon: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    d, x = x.shape[-1], x.astype(self.dtype)
    x = vit.dense(d, self.dtype, "dense", kernel_init=text.normal)(x)
    return vit.norm("norm", self.epsilon)(vit.gelu(x, "exact"))


class NextSentence(nn.Module):
  """The pooler and the classifier of pairs: [b d] -> logits [b 2]."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    dense = lambda width, name: nn.Dense(
      width, dtype=self.dtype, kernel_init=text.normal, name=name
    )
    x = jnp.tanh(dense(x.shape[-1], "pooler")(x))
    return dense(2, "classifier")(x).astype(jnp.float32)
