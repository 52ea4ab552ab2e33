"""Writes layouts_text.json: how transformers names and describes its models.

Run where torch and transformers are installed; the project needs neither:

  python tests/fidelity/make_layouts_text.py

For each of four models, of the sizes in `make_text.py`: `weights`, {name:
shape} of what `save_pretrained` writes; `copies`, those of the state dict that
it does not write, being tied; and `config`, its config.json.
"""

import json
import os
import tempfile

import drawn
import safetensors
import transformers

SIZE = dict(
  vocab_size=drawn.VOCAB,
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=128,
)
BERT = transformers.BertConfig(max_position_embeddings=16, **SIZE)
ROBERTA = transformers.RobertaConfig(
  max_position_embeddings=18, type_vocab_size=1, layer_norm_eps=1e-5, **SIZE
)
GPT2 = transformers.GPT2Config(
  vocab_size=drawn.VOCAB,
  n_positions=16,
  n_embd=32,
  n_layer=2,
  n_head=2,
  bos_token_id=0,
  eos_token_id=0,
)
MODELS = {
  "BertModel": BERT,
  "BertForPreTraining": BERT,
  "RobertaForMaskedLM": ROBERTA,
  "GPT2LMHeadModel": GPT2,
}


def describe(model):
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    with open(os.path.join(folder, "config.json")) as f:
      config = json.load(f)
    path = os.path.join(folder, "model.safetensors")
    with safetensors.safe_open(path, framework="np") as f:
      names = set(f.keys())
  shapes = {k: list(x.shape) for k, x in model.state_dict().items()}
  return {
    "weights": {k: v for k, v in shapes.items() if k in names},
    "copies": {k: v for k, v in shapes.items() if k not in names},
    "config": config,
  }


def main():
  described = {
    name: describe(getattr(transformers, name)(config))
    for name, config in MODELS.items()
  }
  folder = os.path.dirname(os.path.abspath(__file__))
  with open(os.path.join(folder, "layouts_text.json"), "w") as f:
    json.dump(described, f, indent=1)


if __name__ == "__main__":
  main()
