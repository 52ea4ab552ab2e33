"""GPT-2, the smallest of 124M parameters, by Radford et al. 2019.

512 rows of 1,024 tokens a step, as the paper says; each token but the last has
a target, where nanoGPT's rows have one more. The paper leaves the rate open
("manually tuned"), and so the rate, the warm-up and the decay are those of the
first GPT (Radford et al. 2018, section 4.1), which trained 100 epochs; a
million steps are a choice of ours. On OpenWebText others' reach 2.85 nats a
token. Not yet reproduced here.

`data.name` is a folder of .txt or .jsonl files; `tokenizer.json` the published
one, of 50,257 tokens.
"""

from ssljax import config as config_lib


def get_config(arg=None):
  """Variants: `quick`."""
  config = config_lib.base("text")
  config.batch_size = 512
  config.steps = 1_000_000
  config.data.update(
    name="folder:webtext",
    split="all",
    tokenizer="tokenizer.json",
    rows="joined",
    length=1024,
  )
  config.encoder = dict(name="gpt", variant="124M")
  # Tokens of all chips together; each block sums the table's gradient anew.
  config.method = dict(name="gpt", block=65536)
  config.optimizer = dict(
    name="adamw",
    learning_rate=2.5e-4,
    weight_decay=0.01,
    decay_exclude=("1d",),
  )
  config.schedule = dict(name="cosine", warmup_steps=2_000)
  config.precision = "bfloat16"
  config.eval.update(train_split="", last=False, protocols=("loss",))
  return config_lib.finish(config, arg)
