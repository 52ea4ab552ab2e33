"""RoBERTa, its size mini, on WordNet's glosses, packed into rows.

  ssljax train --config=configs/roberta_mini_wordnet.py --workdir=W
  ssljax evaluate --workdir=W --fractions=0.01,0.1 --seeds=5

Not yet reproduced.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base("text")
  config.batch_size = 32
  config.epochs = 2.5
  config.data.update(
    name="wordnet_glosses",
    tokenizer="roberta",
    vocab=8192,
    rows="packed",
    length=128,
    label_length=32,
  )
  config.augment = dict(name="mlm", probabilistic=True, random_special=False)
  config.encoder = dict(
    name="bert",
    variant="roberta-mini",
    vocab=8192,
    positions=128,
    dropout=0.0,
  )
  config.method = dict(name="roberta")
  config.optimizer = dict(
    name="adamw",
    learning_rate=1e-3,
    b2=0.98,
    eps=1e-6,
    weight_decay=0.01,
    decay_exclude=("1d",),
  )
  config.schedule = dict(name="linear", warmup_epochs=0.25)
  config.eval.update(
    train_split="train",
    test_split="test",
    last=False,
    protocols=("loss", "knn", "linear", "finetune"),
  )
  return config_lib.finish(config, arg)
