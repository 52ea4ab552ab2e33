"""RoBERTa-base, as fairseq's `examples/roberta/README.pretraining.md` has it.

125,000 steps of 2,048 rows of 512 tokens, masks anew in each epoch, no
clipping, norms and biases decayed too. Documents are packed and do not see each
other, where in theirs those of a row do. Theirs, on 160 GB of text, reaches
87.6 on MNLI fine-tuned (500,000 steps of 8,192). Not yet reproduced here.

`data.name` is a folder of .txt or .jsonl files; `tokenizer.json` the published
one, of 50,265 tokens.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base("text")
  config.batch_size = 2048
  config.steps = 125_000
  config.data.update(
    name="folder:wikipedia_books",
    split="all",
    tokenizer="tokenizer.json",
    rows="packed",
    length=512,
  )
  config.augment = dict(name="mlm", probabilistic=True, random_special=False)
  config.encoder = dict(name="bert", variant="roberta-base")
  config.method = dict(name="roberta", block=65536)  # tokens of all chips
  config.optimizer = dict(
    name="adamw",
    learning_rate=5e-4,
    b2=0.98,
    eps=1e-6,
    weight_decay=0.01,
  )
  config.schedule = dict(name="linear", warmup_steps=10_000)
  config.precision = "bfloat16"
  config.eval.update(train_split="", last=False, protocols=("loss",))
  return config_lib.finish(config, arg)
