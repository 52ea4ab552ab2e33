"""Writes vit.npz: timm's and transformers' ViTs, forwards and backwards.

Run where torch, timm and transformers are installed; the project needs none:

  python tests/fidelity/make_vit.py

Weights and images are `drawn.py`'s, by the names that each library's files
have; everything is computed in float64. With MODEL `timm`, `vit` (ViTModel) or
`mae` (ViTMAEModel), `MODEL/tokens` holds all tokens [b n d] after the last
norm, the class token first, and `MODEL/grad/NAME` the gradient of sum(tokens *
draw("input_cotangent")) in a weight, or in `image`. `mae/noise` [b n] is what
its masking draws, `mae/positions` [1 n d] its fixed table.
"""

import os
import tempfile

import drawn
import numpy as np
import safetensors.numpy
import timm
import torch
import transformers

SHAPE = 2, 3, 16, 16
DIM, DEPTH, HEADS, PATCH = 32, 2, 2, 4

# The name in files: the name of the module's parameter. The epsilon of norms
# is timm's and the authors', 1e-6; transformers' default is 1e-12.
TIMM = {
  name: name
  for name in (
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "blocks.0.attn.qkv.weight",
    "blocks.1.mlp.fc1.bias",
    "norm.weight",
  )
}
TRANSFORMERS = {
  "embeddings.cls_token": "embeddings.cls_token",
  "embeddings.patch_embeddings.projection.weight": (
    "embeddings.patch_embeddings.projection.weight"
  ),
  "encoder.layer.0.attention.attention.key.weight": (
    "layers.0.attention.k_proj.weight"
  ),
  "encoder.layer.0.attention.attention.value.bias": (
    "layers.0.attention.v_proj.bias"
  ),
  "encoder.layer.1.intermediate.dense.weight": "layers.1.mlp.fc1.weight",
  "layernorm.bias": "layernorm.bias",
}
POSITIONS = "embeddings.position_embeddings"


def weights(state):
  return {name: drawn.draw(name, tuple(x.shape)) for name, x in state.items()}


def timm_vit():
  net = timm.models.VisionTransformer(
    img_size=SHAPE[-1],
    patch_size=PATCH,
    embed_dim=DIM,
    depth=DEPTH,
    num_heads=HEADS,
    num_classes=0,
  )
  state = weights(net.state_dict())
  net.load_state_dict({k: torch.from_numpy(x) for k, x in state.items()})
  return net


def transformers_vit(model, config, *, fixed=(), **options):
  """A model from a file with drawn weights, as a user loads one."""
  config = config(
    hidden_size=DIM,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    intermediate_size=4 * DIM,
    image_size=SHAPE[-1],
    patch_size=PATCH,
    layer_norm_eps=1e-6,
  )
  with tempfile.TemporaryDirectory() as folder:
    net = model(config, **options)
    if fixed:
      # transformers 5.24 leaves the positions of a new MAE at zero, for it
      # takes the patch embedding as initialised.
      del net.embeddings.patch_embeddings.projection._is_hf_initialized
      net.embeddings.initialize_weights()
    net.save_pretrained(folder)
    path = os.path.join(folder, "model.safetensors")
    state = safetensors.numpy.load_file(path)
    # Copied, for the file that it is mapped from is written again.
    state = weights(state) | {name: state[name].copy() for name in fixed}
    safetensors.numpy.save_file(state, path, {"format": "pt"})
    return model.from_pretrained(folder, **options)


def results(net, names, call):
  net.double().eval()
  image = torch.from_numpy(drawn.draw("input", SHAPE)).double()
  image.requires_grad_(True)
  tokens = call(net, image)
  cotangent = torch.from_numpy(drawn.draw("input_cotangent", tokens.shape))
  (tokens * cotangent).sum().backward()
  parameters = dict(net.named_parameters())
  found = {"tokens": tokens, "grad/image": image.grad}
  found |= {f"grad/{k}": parameters[v].grad for k, v in names.items()}
  return {name: x.detach().float().numpy() for name, x in found.items()}


def main():
  arrays = {}
  vit = transformers_vit(
    transformers.ViTModel, transformers.ViTConfig, add_pooling_layer=False
  )
  mae = transformers_vit(
    transformers.ViTMAEModel, transformers.ViTMAEConfig, fixed=(POSITIONS,)
  )
  noise = np.random.RandomState(0).rand(SHAPE[0], (SHAPE[-1] // PATCH) ** 2)
  masked = lambda net, x: (
    net(x, noise=torch.from_numpy(noise)).last_hidden_state
  )
  for name, net, names, call in (
    ("timm", timm_vit(), TIMM, lambda net, x: net.forward_features(x)),
    (
      "vit",
      vit,
      TRANSFORMERS | {POSITIONS: POSITIONS},
      lambda net, x: net(x).last_hidden_state,
    ),
    ("mae", mae, TRANSFORMERS, masked),
  ):
    for key, x in results(net, names, call).items():
      arrays[f"{name}/{key}"] = x
  arrays["mae/noise"] = noise
  positions = mae.embeddings.position_embeddings
  arrays["mae/positions"] = positions.detach().float().numpy()
  path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vit.npz")
  np.savez_compressed(path, **arrays)
  versions = (m.__version__ for m in (torch, timm, transformers))
  print(path, os.path.getsize(path), *versions)


if __name__ == "__main__":
  main()
