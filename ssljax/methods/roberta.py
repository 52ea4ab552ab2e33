"""RoBERTa: a robustly optimized BERT pre-training approach.

Liu et al. 2019, arXiv:1907.11692; the authors' code is facebookresearch/fairseq
`fairseq/models/roberta` and `fairseq/data/mask_tokens_dataset.py`. BERT's
objective without the next sentence. What differs lies elsewhere: masks that are
new in each epoch, by (seed, epoch, index), in the views (`augment.text`,
`probabilistic=True, random_special=False`), and the encoder's positions and
epsilon (`models.bert`, "roberta-base").
"""

from ssljax import core
from ssljax.methods import bert


def make(encoder, *, pool: str = "mean", block: int = 1024) -> core.Method:
  """Returns RoBERTa's masked language modelling; see `methods.bert.make`."""
  return bert.make(encoder, pool=pool, block=block)
