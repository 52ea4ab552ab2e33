"""A small GPT-2 on the Bible: 4 blocks of width 256, 4,096 tokens.

  ssljax train --config=configs/gpt_mini_bible.py --workdir=W
  ssljax evaluate --workdir=W
  ssljax generate --workdir=W --prompt="In the beginning"

Two CPU cores, 2,265 steps, 0.38 s each by itself, which is 14.4 minutes: 3.424
nats a token and 1.248 bits a byte on the test chapters, one seed, in a run that
had one core, shared. With verses at random places, as they were prepared before
version 1.1.0, it was 1.272. A 5-gram with Kneser-Ney smoothing on the same
tokens has 1.337, `xz -9` 2.252, and 1.719 after the training chapters (`python
-m benchmarks.ngram --data=bible --tokenizer=gpt --vocab=4096`).
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base("text")
  config.batch_size = 16
  config.epochs = 5.0
  config.data.update(
    name="bible", tokenizer="gpt", vocab=4096, rows="joined", length=129
  )
  config.encoder = dict(
    name="gpt",
    variant="mini",
    vocab=4096,
    positions=512,
    dropout=0.0,
  )
  config.method = dict(name="gpt", block=4096)  # no token's logits twice
  config.optimizer = dict(
    name="adamw",
    learning_rate=1.5e-3,
    b2=0.95,
    weight_decay=0.1,
    decay_exclude=("1d",),
    clip_global_norm=1.0,
  )
  config.schedule = dict(name="cosine", warmup_epochs=0.2)
  config.eval.update(
    train_split="", test_split="test", last=False, protocols=("loss",)
  )
  return config_lib.finish(config, arg)
