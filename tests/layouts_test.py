"""Names and shapes of weights: every layout there and back, and misfits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import errors
from ssljax import layouts
from ssljax.models import resnet
from ssljax.models import vit

ENCODERS = {
  "resnet18": lambda: resnet.make(variant="18", width=8),
  "resnet50": lambda: resnet.make(variant="50", width=4, stem="cifar"),
  "vit": lambda: vit.make(variant="Mu/2"),
  "vit_scan": lambda: vit.make(variant="Mu/2", scan=True),
  "vit_sincos": lambda: vit.make(variant="Mu/2", pos="sincos2d"),
  "vit_no_class": lambda: vit.make(variant="Mu/2", pool="mean"),
  "vit_mask": lambda: vit.make(variant="Mu/2", mask_token=True),
}
GRID = 4, 3  # patches of 2 x 2 in images of 8 x 6


def variables(encoder, seed=0):
  """(params, stats) with a number of its own in every place."""
  shapes = jax.eval_shape(
    functools.partial(encoder.init, train=False),
    jax.random.key(0),
    jnp.zeros((1, 8, 6, 3)),
  )
  rng = np.random.default_rng(seed)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
  tree = jax.tree.map(draw, dict(shapes))
  return tree["params"], tree.get("batch_stats", {})


def read(layout, encoder, arrays, seed=1):
  """Reads into other variables: (params, stats, dropped)."""
  params, stats, _, dropped, _ = layouts.read(
    layouts.get(layout, encoder),
    encoder,
    arrays,
    *variables(encoder, seed),
    file="F",
    grid=GRID,
  )
  return params, stats, dropped


def write(layout, encoder, params, stats):
  layout = layouts.get(layout, encoder)
  return layouts.write(layout, encoder, params, stats, grid=GRID)


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  "layout, encoder",
  [
    ("torchvision", "resnet18"),
    ("torchvision", "resnet50"),
    ("dino", "resnet50"),
    *(
      (layout, encoder)
      for layout in ("timm", "huggingface", "dino", "mae")
      for encoder in ("vit", "vit_scan", "vit_sincos", "vit_mask")
    ),
    ("timm", "vit_no_class"),
  ],
)
def test_there_and_back(layout, encoder):
  encoder = ENCODERS[encoder]()
  params, stats = variables(encoder)
  arrays = write(layout, encoder, params, stats)
  assert all(x.dtype == np.float32 for x in arrays.values())
  found, found_stats, dropped = read(layout, encoder, arrays)
  if "mask_token" in params:  # it has no name: the fresh one stays
    fresh = variables(encoder, 1)[0]["mask_token"]
    np.testing.assert_array_equal(found.pop("mask_token"), fresh)
    del params["mask_token"]
  assert_same((found, found_stats), (params, stats))
  assert dropped == []


def test_names_and_shapes_of_torchvision():
  encoder = ENCODERS["resnet50"]()
  arrays = write("torchvision", encoder, *variables(encoder))
  for name, shape in {
    "conv1.weight": (4, 3, 3, 3),
    "bn1.running_var": (4,),
    "layer1.0.downsample.0.weight": (16, 4, 1, 1),
    "layer1.0.downsample.1.running_mean": (16,),
    "layer3.5.conv2.weight": (16, 16, 3, 3),
    "layer4.2.bn3.bias": (128,),
  }.items():
    assert arrays[name].shape == shape
  # torchvision's ResNet-50: 53 convolutions, each with its norm of four.
  assert len(arrays) == 53 * 5


def test_names_and_places_of_timm_and_transformers():
  encoder = ENCODERS["vit"]()
  params, _ = variables(encoder)
  timm = write("timm", encoder, params, {})
  theirs = write("huggingface", encoder, params, {})
  assert timm["patch_embed.proj.weight"].shape == (32, 3, 2, 2)
  kernel = params["patch_embed"]["kernel"].reshape(2, 2, 3, 32)
  assert timm["patch_embed.proj.weight"][5, 2, 0, 1] == kernel[0, 1, 2, 5]
  np.testing.assert_array_equal(timm["pos_embed"][0, 0], params["cls_pos"][0])
  np.testing.assert_array_equal(  # rows first
    timm["pos_embed"][0, 1 + 3], params["pos_embed"][1, 0]
  )
  key = theirs["encoder.layer.1.attention.attention.key.weight"]
  np.testing.assert_array_equal(key, timm["blocks.1.attn.qkv.weight"][32:64])
  np.testing.assert_array_equal(
    key, params["block1"]["qkv"]["kernel"][:, 32:64].T
  )
  assert len(timm) == 4 + 2 * 12 + 2 and len(theirs) == 4 + 2 * 16 + 2


def test_prefixes_versions_and_what_is_dropped():
  encoder = ENCODERS["vit"]()
  params, stats = variables(encoder)
  arrays = write("dino", encoder, params, stats)
  arrays = {f"module.backbone.{k}": v for k, v in arrays.items()}
  arrays["module.head.last_layer.weight_g"] = np.ones(1)
  found, _, dropped = read("dino", encoder, arrays)
  assert_same(found, params)
  assert dropped == ["head.last_layer.weight_g"]

  arrays = write("huggingface", encoder, params, stats)
  arrays = {f"vit.{k}": v for k, v in arrays.items()}
  more = ("pooler.dense.bias", "classifier.weight", "decoder.mask_token")
  arrays |= {name: np.ones(1) for name in more}
  found, _, dropped = read("huggingface", encoder, arrays)
  assert_same(found, params)
  assert dropped == sorted(more)
  # As transformers 5 has it in memory.
  for old, new in (
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
  ):
    arrays = {k.replace(old, new): v for k, v in arrays.items()}
  assert "vit.layers.0.mlp.fc2.bias" in arrays
  assert_same(read("huggingface", encoder, arrays)[0], params)

  arrays = write("mae", encoder, params, stats)
  more = ("decoder_blocks.0.norm1.bias", "decoder_pos_embed", "mask_token")
  found, _, dropped = read(
    "mae", encoder, arrays | {name: np.ones(1) for name in more}
  )
  assert_same(found, params)
  assert dropped == sorted(more)

  encoder = ENCODERS["resnet18"]()
  params, stats = variables(encoder)
  arrays = write("torchvision", encoder, params, stats)
  arrays |= {"fc.bias": np.ones(9), "bn1.num_batches_tracked": np.int64(3)}
  found, found_stats, dropped = read("torchvision", encoder, arrays)
  assert_same((found, found_stats), (params, stats))
  assert dropped == ["bn1.num_batches_tracked", "fc.bias"]


def test_what_does_not_fit_is_named():
  encoder = ENCODERS["resnet18"]()
  arrays = write("torchvision", encoder, *variables(encoder))

  def told(**changes):
    changed = {k: v for k, v in (arrays | changes).items() if v is not None}
    with pytest.raises(errors.UserError) as e:
      read("torchvision", encoder, changed)
    assert "--layout" in str(e.value) and "--config" in str(e.value)
    return str(e.value)

  line = told(**{"layer3.1.conv2.weight": None})
  assert "missing: layer3.1.conv2.weight" in line
  line = told(**{f"layer5.{i}.weight": np.ones(3) for i in range(5)})
  assert "unexpected: layer5.0.weight" in line and "and 2 more" in line
  line = told(**{"bn1.bias": np.ones(7)})
  assert "bn1.bias [7] (here [8])" in line
  # The same number of values in another order is another shape too.
  line = told(**{"conv1.weight": arrays["conv1.weight"].transpose(2, 3, 1, 0)})
  assert "conv1.weight [7, 7, 3, 8] (here [8, 3, 7, 7])" in line


def test_numbers_that_are_no_weights_are_refused():
  encoder = ENCODERS["resnet18"]()
  arrays = write("torchvision", encoder, *variables(encoder))
  for wrong, words in (
    (np.ones(8, np.int8), "holds bn1.bias in int8, which would need a scale"),
    (np.full(8, np.nan), "not all of bn1.bias is finite"),
  ):
    with pytest.raises(errors.UserError, match=words):
      read("torchvision", encoder, arrays | {"bn1.bias": wrong})
  counter = {"bn1.num_batches_tracked": np.int64(3)}  # which is dropped
  assert read("torchvision", encoder, arrays | counter)[2] == [*counter]


def test_positions_of_other_images_name_their_size():
  encoder = ENCODERS["vit"]()
  arrays = write("timm", encoder, *variables(encoder))
  assert arrays["pos_embed"].shape == (1, 13, 32)
  arrays["pos_embed"] = np.zeros((1, 1 + 7 * 7, 32))
  with pytest.raises(errors.UserError, match="7 x 7 .*encoder.img_size=14$"):
    read("timm", encoder, arrays)


@pytest.mark.parametrize("theirs, ours", [("cls", "mean"), ("mean", "cls")])
def test_a_class_token_that_one_lacks_is_named_and_no_size(theirs, ours):
  make = lambda pool: vit.make(variant="Mu/2", pool=pool, img_size=8)
  init = lambda encoder: encoder.init(
    jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False
  )["params"]
  grid, timm = (4, 4), layouts.LAYOUTS["timm"]
  arrays = layouts.write(timm, make(theirs), init(make(theirs)), {}, grid=grid)
  with pytest.raises(errors.UserError, match="cls_token"):
    layouts.read(
      timm, make(ours), arrays, init(make(ours)), {}, file="F", grid=grid
    )


def test_fixed_positions_are_of_the_size_that_is_given():
  encoder = vit.make(variant="Mu/2", pos="sincos2d", img_size=8)
  images = jnp.zeros((1, 16, 16, 3))
  params = encoder.init(jax.random.key(0), images, train=False)["params"]
  timm = layouts.LAYOUTS["timm"]
  use = functools.partial(layouts.read, timm, encoder, file="F")
  arrays = layouts.write(timm, encoder, params, {}, grid=(4, 4))
  assert use(arrays, params, {}, grid=(4, 4))[4] == 0
  other = layouts.write(timm, encoder, params, {}, grid=(8, 8))
  with pytest.raises(errors.UserError, match="8 x 8 .*encoder.img_size=16$"):
    use(other, params, {}, grid=(4, 4))


@pytest.mark.parametrize(
  "options",
  [
    dict(pos="relative"),
    dict(embed_norm=True),
    dict(bias=False),
    dict(gelu="tanh"),
  ],
)
def test_vits_that_no_layout_has_are_refused(options):
  encoder = vit.make(variant="Mu/2", **options)
  for layout in ("timm", "huggingface", "dino", "mae"):
    with pytest.raises(errors.UserError, match="no layout has an encoder"):
      layouts.get(layout, encoder)


def test_layer_norm_and_layer_scale_have_few_layouts():
  layer = resnet.make(variant="10", norm="layer")
  with pytest.raises(errors.UserError, match="encoder.norm='layer'"):
    layouts.get("torchvision", layer)
  encoder = vit.make(variant="Mu/2", layer_scale=0.1)
  with pytest.raises(errors.UserError, match="give --layout=timm"):
    layouts.get("huggingface", encoder)
  written = write("timm", encoder, *variables(encoder))
  assert {"blocks.0.ls1.gamma", "blocks.0.ls2.gamma"} < written.keys()


def test_what_cannot_be_expressed_is_refused():
  encoder = ENCODERS["vit_no_class"]()
  with pytest.raises(errors.UserError, match="class_token=True"):
    write("dino", encoder, *variables(encoder))
  with pytest.raises(errors.UserError, match="--layout=torchvision or dino"):
    layouts.get("timm", ENCODERS["resnet18"]())
  with pytest.raises(errors.UserError, match="choose among torchvision, timm"):
    layouts.get("tim", encoder)
  encoder = vit.make(variant="Mu/2", registers=2)
  with pytest.raises(errors.UserError, match="encoder.registers=0"):
    write("timm", encoder, *variables(encoder))
  encoder = ENCODERS["vit"]()
  arrays = write("dino", encoder, *variables(encoder))
  twice = {"backbone.norm.bias": np.zeros(32)}
  with pytest.raises(errors.UserError, match="norm.bias twice"):
    read("dino", encoder, arrays | twice)


def test_fixed_positions_must_be_the_same():
  encoder = ENCODERS["vit_sincos"]()
  arrays = write("mae", encoder, *variables(encoder))
  table = arrays["pos_embed"]
  assert table.shape == (1, 13, 32) and not table[0, 0].any()
  np.testing.assert_array_equal(table[0, 1:], vit.sincos2d(32, *GRID))
  read("mae", encoder, arrays | {"pos_embed": table + 9e-6})
  with pytest.raises(errors.UserError, match="positions differ by 0.5 "):
    read("mae", encoder, arrays | {"pos_embed": table + 0.5})
  # Another size of image has other positions, and no other weights.
  square = np.concatenate([np.zeros((1, 32)), vit.sincos2d(32, 5, 5)])[None]
  read("mae", encoder, arrays | {"pos_embed": square})
