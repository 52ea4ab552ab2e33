"""BERT-base, as the paper (appendix A.2) and google-research/bert train it.

A million steps of 256 rows: 900,000 of 128 tokens, then, as `:long`, 100,000 of
512, begun by `--config.init_from` with the first run's workdir, on one line of
the rate; its moments begin anew, as theirs do from a checkpoint. Sentences in
pairs, ten static masks, Adam without bias correction. Theirs reaches 84.6 on
MNLI fine-tuned. Not yet reproduced here: 16 TPU chips for four days.

`data.name` is a folder of .txt or .jsonl files, of Wikipedia and books, in
which a line is a sentence and a blank line ends a document; `tokenizer.json`
the published one, of 30,522 pieces. The authors draw the pairs ten times, with
the masks; here they are drawn once, and all is held in memory as tokens.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `base`, which it is, `large`, `long` and `quick`."""
  config = config_lib.base("text")
  config.batch_size = 256
  config.steps = 900_000
  config.data.update(
    name="folder:wikipedia_books",
    split="all",
    tokenizer="tokenizer.json",
    rows="pairs",
    length=128,
  )
  config.augment = dict(name="mlm", copies=10, most=20)
  config.encoder = dict(name="bert", variant="base", vocab=30522, positions=512)
  config.method = dict(
    name="bert",
    next_sentence=True,
    pool="cls",
    block=8192,  # tokens of all chips
  )
  config.optimizer = dict(
    name="adamw",
    learning_rate=1e-4,
    eps=1e-6,
    bias_correction=False,
    weight_decay=0.01,
    decay_exclude=("1d",),
    clip_global_norm=1.0,
  )
  # The paper's line to zero at a million steps is here after 900,000.
  config.schedule = dict(name="bert", warmup_steps=10_000, end=1e-5)
  config.precision = "bfloat16"
  config.eval.update(train_split="", last=False, protocols=("loss",))
  variants = {"base": lambda c: None, "large": _large, "long": _long}
  return config_lib.finish(config, arg, variants)


def _large(config):
  config.encoder.variant = "large"


def _long(config):
  config.steps = 100_000
  config.optimizer.learning_rate = 1e-5
  config.schedule = dict(name="bert")
  config.data.length = 512
  config.augment.most = 77
