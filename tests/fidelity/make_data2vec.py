"""Writes data2vec.npz: steps of facebookresearch/fairseq's data2vec for text.

Run where torch, hydra and what fairseq imports besides are installed, with a
checkout of it; its compiled parts are not needed:

  python tests/fidelity/make_data2vec.py FAIRSEQ

Three steps of SGD without dropout. The start is drawn by `drawn.py`, from the
names of the state dict; stored are the losses and, of some weights, the end and
the teacher's. `loss/` has the loss and its gradient for given features, from
the same code with the encoder left out.
"""

import argparse
import dataclasses
import os
import sys

import drawn
import numpy as np
import omegaconf  # noqa: F401
import torch
from torch import nn

_dataclass = dataclasses.dataclass


def hashable(cls=None, **options):
  """fairseq's dataclasses have others as defaults; Python 3.11 wants a hash."""
  if cls is None:
    return lambda cls: hashable(cls, **options)
  if cls.__module__.startswith(("fairseq", "examples")):
    options["unsafe_hash"] = True
  return _dataclass(cls, **options)


dataclasses.dataclass = hashable
sys.path.insert(0, sys.argv[1])
# Old names of NumPy, which fairseq has in its defaults.
np.float, np.int = float, int

from examples.data2vec.models import data2vec_text  # noqa: E402
from fairseq import data  # noqa: E402

NAMES = (
  "sentence_encoder.embed_tokens.weight",
  "sentence_encoder.embed_positions.weight",
  "sentence_encoder.layernorm_embedding.weight",
  "sentence_encoder.layers.0.self_attn.q_proj.weight",
  "sentence_encoder.layers.0.fc1.weight",
  "sentence_encoder.layers.1.self_attn.out_proj.bias",
  "sentence_encoder.layers.1.fc2.weight",
  "sentence_encoder.layers.2.final_layer_norm.bias",
  "sentence_encoder.layers.2.self_attn.v_proj.bias",
  "regression_head.0.bias",
  "regression_head.2.weight",
)


def make(loss_beta=4.0, loss_scale=1.0):
  config = data2vec_text.Data2VecTextConfig(
    max_positions=16,
    head_layers=2,
    average_top_k_layers=2,
    layer_norm_target_layer=True,
    loss_beta=loss_beta,
    loss_scale=loss_scale,
    ema_decay=0.5,
    ema_end_decay=0.9,
    ema_anneal_end_step=2,
  )
  inner = config.transformer
  inner.dropout = inner.attention_dropout = 0.0
  inner.layernorm_embedding = inner.no_scale_embedding = True
  inner.activation_fn, inner.max_source_positions = "gelu", 16
  inner.encoder.embed_dim, inner.encoder.ffn_embed_dim = 32, 128
  inner.encoder.layers, inner.encoder.attention_heads = 3, 2
  inner.encoder.normalize_before, inner.encoder.learned_pos = False, True
  dictionary = data.Dictionary()
  for i in range(len(dictionary), drawn.VOCAB - 1):
    dictionary.add_symbol(f"word{i}")
  mask = dictionary.add_symbol("<mask>")
  assert (dictionary.pad(), mask) == (1, drawn.VOCAB - 1)
  args = argparse.Namespace(source_dictionary=dictionary)
  args.cfg = argparse.Namespace(data=None)
  return data2vec_text.Data2VecTextModel.build_model(config, args)


def draw_weights(model):
  with torch.no_grad():
    for name, x in model.encoder.named_parameters():
      x.copy_(torch.from_numpy(drawn.draw(name, tuple(x.shape))))
      if name.endswith("embed_tokens.weight"):
        x[1] = 0  # its padding


def steps(arrays):
  batch = drawn.masked_batch()
  t = {k: torch.from_numpy(v) for k, v in batch.items()}
  tokens = t["tokens"].long()
  model = make().train()
  draw_weights(model)
  whole = tokens.clone()
  for row, where in enumerate(t["weights"].bool()):
    whole[row, t["places"][row][where].long()] = t["targets"][row][where].long()
  optimizer = torch.optim.SGD(model.parameters(), 0.05)
  history = []
  for step in range(3):
    model.set_num_updates(step)
    result = model(tokens, target_tokens=whole)
    loss = result["losses"]["main"] / result["sample_size"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    history.append(loss.item())
  model.set_num_updates(3)
  arrays["losses"] = np.array(history)
  end, teacher = model.encoder.state_dict(), model.encoder.ema.fp32_params
  for name in NAMES:
    arrays[f"end/{name}"] = end[name].numpy()
    if name.startswith("sentence_encoder."):
      inner = name.removeprefix("sentence_encoder.")
      arrays[f"teacher/{name}"] = teacher[inner].numpy()


class Given(nn.Module):
  """Features instead of an encoder's."""

  def __init__(self, added):
    super().__init__()
    self.added = added

  def forward(self, tokens, return_all_hiddens):
    return {"fc_results": [x.transpose(0, 1) for x in self.added]}


def loss_of_features(arrays):
  rng = np.random.RandomState(0)
  draw = lambda *shape: torch.from_numpy(rng.normal(0, 3, shape))
  predicted, added = draw(2, 5, 8).requires_grad_(), draw(3, 2, 5, 8)
  tokens = torch.full((2, 5), drawn.VOCAB - 1)
  tokens[0, 1:3] = tokens[1, 4] = 7  # not hidden
  arrays["loss/predicted"] = predicted.detach().numpy()
  arrays["loss/added"] = added.numpy()
  arrays["loss/hidden"] = (tokens == drawn.VOCAB - 1).numpy()
  for beta, scale in ((4.0, 1.0), (0.5, 1.0), (0.0, -1.0)):
    encoder = make(beta, scale).encoder.double()
    encoder.extract_features = lambda *unused, **options: (predicted, {})
    encoder.regression_head = nn.Identity()
    encoder.ema = argparse.Namespace(model=Given(added), get_decay=lambda: 0.0)
    predicted.grad = None
    result = encoder(tokens, target_tokens=tokens)
    loss = result["losses"]["main"] / result["sample_size"]
    loss.backward()
    arrays[f"loss/beta={beta}/loss"] = loss.detach().numpy()
    arrays[f"loss/beta={beta}/grad"] = predicted.grad.numpy()


def main():
  arrays = {}
  steps(arrays)
  loss_of_features(arrays)
  folder = os.path.dirname(os.path.abspath(__file__))
  path = os.path.join(folder, "data2vec.npz")
  arrays = {k: np.float32(x) for k, x in arrays.items()}
  np.savez_compressed(path, **arrays)
  print(path, os.path.getsize(path), arrays["losses"])


if __name__ == "__main__":
  main()
