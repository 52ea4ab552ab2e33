"""Writes text.npz: transformers' language models, forwards and backwards.

Run where torch and transformers are installed; the project needs neither:

  python tests/fidelity/make_text.py

Weights are `drawn.py`'s, by the names of the state dicts; everything is
computed in float64. With MODEL `bert` (BertForPreTraining), `roberta`
(RobertaForMaskedLM) or `gpt` (GPT2LMHeadModel), `MODEL/loss` is the model's own
loss of the batch in `text_batch`, `MODEL/logits` [b t v] its prediction where
`mask` is True (zero elsewhere), `bert/next` [b 2] the next-sentence logits, and
`MODEL/grad/NAME` the gradient of the loss in a weight.
"""

import os

import drawn
import numpy as np
import torch
import transformers

SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
MASKED_NAMES = (
  "embeddings.word_embeddings.weight",
  "embeddings.position_embeddings.weight",
  "embeddings.token_type_embeddings.weight",
  "embeddings.LayerNorm.weight",
  "encoder.layer.0.attention.self.key.weight",
  "encoder.layer.1.attention.self.value.bias",
  "encoder.layer.1.attention.output.LayerNorm.bias",
  "encoder.layer.0.intermediate.dense.weight",
)
NAMES = {
  "bert": [f"bert.{name}" for name in MASKED_NAMES]
  + [
    "bert.pooler.dense.weight",
    "cls.predictions.transform.dense.weight",
    "cls.predictions.transform.LayerNorm.weight",
    "cls.predictions.bias",
    "cls.seq_relationship.weight",
  ],
  "roberta": [f"roberta.{name}" for name in MASKED_NAMES]
  + ["lm_head.dense.weight", "lm_head.bias"],
  "gpt": [
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "transformer.h.0.attn.c_attn.weight",
    "transformer.h.1.attn.c_attn.bias",
    "transformer.h.1.ln_2.weight",
    "transformer.h.0.mlp.c_proj.weight",
    "transformer.ln_f.bias",
  ],
}


def draw_weights(net):
  tied = {
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
    "lm_head.decoder.weight",
    "lm_head.decoder.bias",
    "lm_head.weight",
  }
  with torch.no_grad():
    for name, x in net.state_dict().items():
      if name not in tied:
        x.copy_(torch.from_numpy(drawn.draw(name, tuple(x.shape))))
  net.tie_weights()
  return net.double().eval()


def results(model, net, batch):
  t = {k: torch.from_numpy(v).long() for k, v in batch.items()}
  labels = torch.full_like(t["tokens"], -100)
  if model == "gpt":
    labels = torch.where(t["mask"].bool(), t["tokens"], labels)
    inputs = dict(labels=labels)
  else:
    where = t["weights"].bool()
    rows = torch.arange(len(where))[:, None].expand_as(where)
    labels[rows[where], t["places"][where]] = t["targets"][where]
    inputs = dict(labels=labels)
  if model == "bert":
    inputs |= dict(token_type_ids=t["kinds"], next_sentence_label=t["next"])
  tokens = t["tokens"]
  if model == "roberta":  # its padding has the index 1, and counts positions
    tokens = torch.where(t["mask"].bool(), tokens, torch.ones_like(tokens))
  out = net(tokens, attention_mask=t["mask"], **inputs)
  out.loss.backward()
  logits = out.prediction_logits if model == "bert" else out.logits
  found = {"loss": out.loss, "logits": logits * t["mask"][..., None]}
  if model == "bert":
    found["next"] = out.seq_relationship_logits
  parameters = dict(net.named_parameters())
  for name in NAMES[model]:
    found[f"grad/{name}"] = parameters[name].grad
  return {k: x.detach().float().numpy() for k, x in found.items()}


def main():
  bert = dict(
    vocab_size=drawn.VOCAB,
    intermediate_size=128,
    attn_implementation="eager",
    **SIZE,
  )
  nets = {
    "bert": transformers.BertForPreTraining(
      transformers.BertConfig(max_position_embeddings=16, **bert)
    ),
    "roberta": transformers.RobertaForMaskedLM(
      transformers.RobertaConfig(
        max_position_embeddings=18,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **bert,
      )
    ),
    "gpt": transformers.GPT2LMHeadModel(
      transformers.GPT2Config(
        vocab_size=drawn.VOCAB,
        n_positions=16,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
      )
    ),
  }
  arrays = {}
  for model, net in nets.items():
    found = results(model, draw_weights(net), drawn.text_batch())
    arrays |= {f"{model}/{k}": x for k, x in found.items()}
  folder = os.path.dirname(os.path.abspath(__file__))
  np.savez_compressed(os.path.join(folder, "text.npz"), **arrays)


if __name__ == "__main__":
  main()
