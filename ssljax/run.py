"""A run: what a config names, built, for all commands to share."""

import functools
import inspect
import math
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssljax import augment
from ssljax import checks
from ssljax import core
from ssljax import errors
from ssljax import named
from ssljax import optim
from ssljax import schedules
from ssljax import sharding
from ssljax.augment import text as text_views
from ssljax.data import sources
from ssljax.data import stream
from ssljax.data import texts


class Run(NamedTuple):
  """A config, built.

  Attributes:
    config: as it was given.
    source: the training examples.
    method: the objective.
    tx: the optimiser.
    augment: `batch -> batch`, the training views.
    view_for_eval: `batch -> batch`.
    embed: `(state, batch) -> [b d]`, the encoder's pooled features, jitted.
    mesh: the devices.
    steps_per_epoch: whole batches in the source.
    total_steps: of the run.
    learning_rate: `step -> float`, for the log.
    abstract_state: the state's shapes and shardings.
  """

  config: Any
  source: Any
  method: core.Method
  tx: optax.GradientTransformation
  augment: Callable
  view_for_eval: Callable
  embed: Callable
  mesh: jax.sharding.Mesh
  steps_per_epoch: int
  total_steps: int
  learning_rate: Callable
  abstract_state: core.TrainState | None = None


def build(config, *, source=None, devices=None) -> Run:
  """Builds all that the config names; nothing long has started.

  Args:
    config: as in `configs/`.
    source: the training examples; None opens those of `config.data`.
    devices: of the mesh; None is all that jax has.

  Raises:
    UserError: a name, value or shape is wrong.
  """
  checks.check(config)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
  check_batch(config, mesh)
  if source is None:
    source = open_source(config, config.data.split)
  encoder = make_encoder(config)
  source.check(encoder)
  # Rows with labels are read after training, when it is too late.
  if (labelled := config.data.get("label_length")) is not None:
    ends = source.tokenizer.start, source.tokenizer.end
    if labelled <= (frame := 2 - ends.count(None)):
      raise errors.UserError(
        f"config.data.label_length={labelled}: rows have no room for more than "
        f"{frame} special tokens: give more"
      )
    if labelled > encoder.positions:
      raise errors.UserError(
        f"config.data.label_length={labelled}, but config.encoder.positions="
        f"{encoder.positions}: give a lower one"
      )
  if len(source) < config.batch_size:
    raise errors.UserError(
      f"{source.name} has {len(source)} examples, fewer than "
      f"config.batch_size={config.batch_size}"
    )
  steps_per_epoch = len(source) // config.batch_size
  total_steps = duration(config, steps_per_epoch)
  known = dict(
    num_examples=len(source),
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )
  tx, learning_rate = make_tx(config, **known)
  views, view_for_eval = make_augments(config, source)
  method = make_method(config, num_classes=source.num_classes, **known)
  embed = core.make_embed(method, view_for_eval)
  run = Run(
    config=config,
    source=source,
    method=method,
    tx=tx,
    augment=views,
    view_for_eval=view_for_eval,
    embed=jax.jit(
      lambda state, batch: embed(state, batch)["pooled"],
      out_shardings=sharding.replicated(mesh),
    ),
    mesh=mesh,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
    learning_rate=learning_rate,
  )
  # Traces the method: shapes that do not fit end here.
  return run._replace(abstract_state=_abstract_state(run))


def make_encoder(config):
  """The Flax module that `config.encoder` names."""
  if "axis_name" in config.encoder:
    raise errors.UserError(
      "config.encoder.axis_name is for steps of your own in pmap or shard_map: "
      "leave it out"
    )
  return named.make("ssljax.models", config.encoder, dtype=_dtype(config))


def make_method(config, **known) -> core.Method:
  """The method around its encoder; `known` goes to where `make` names it."""
  encoder = make_encoder(config)
  make = named.module("ssljax.methods", config.method.name).make
  names = inspect.signature(make).parameters
  known = {k: v for k, v in known.items() if k in names}
  try:
    return named.make("ssljax.methods", config.method, encoder, **known)
  except AttributeError as e:
    if e.obj is not encoder:
      raise
    raise errors.UserError(
      f"{config.method.name} needs an encoder with {e.name!r}, which "
      f"{config.encoder.name} has not: give another config.encoder"
    ) from e


def make_tx(config, *, num_examples, steps_per_epoch, total_steps):
  """Returns the optimiser and its learning rate as `step -> float`.

  `optimizer.weight_decay_end` is where the decay comes to by a cosine; what
  `optimizer.freeze` holds may say `epochs`, `examples` or `percent` for
  `steps`.
  """
  del num_examples
  options = named.options(config.optimizer)
  if "learning_rate" not in options:
    raise errors.UserError("give config.optimizer.learning_rate")
  kinds = inspect.signature(optim.make).parameters.values()
  kinds = {p.name: p.annotation for p in kinds if p.kind == p.KEYWORD_ONLY}
  kinds |= {"weight_decay_end": float, "lr_scaling": str | None}
  what, own = options["name"], optim.options(options["name"])
  errors.refuse_unknown(f"optimizer {what}", options, kinds | own)
  errors.refuse_words(f"optimizer {what}", options, kinds)
  base = schedules.scale_lr(
    options.pop("learning_rate"),
    config.batch_size,
    rule=options.pop("lr_scaling", None),
  )
  known = dict(
    batch_size=config.batch_size,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
  )
  schedule = named.options(config.schedule)
  name = schedule.pop("name")
  warmup = {k: schedule.pop(k) for k in list(schedule) if k in _WARMUP}
  rate = named.call(
    schedules.schedule,
    config.schedule,
    name,
    given=schedule,
    others=_WARMUP,
    base=base,
    total_steps=total_steps,
    warmup_steps=schedules.steps_of(warmup, "warmup", **known),
  )
  if (end := options.pop("weight_decay_end", None)) is not None:
    options["weight_decay"] = schedules.schedule(
      "cosine",
      base=options.get("weight_decay", 0.0),
      end=end,
      total_steps=total_steps,
    )
  freeze = options.get("freeze", ())
  if not isinstance(freeze, tuple) or not all(
    isinstance(part, Mapping) for part in freeze
  ):
    raise errors.UserError(
      f"config.optimizer.freeze={freeze!r}: give dicts of match and steps, as "
      "in ({'match': 'encoder', 'steps': 100},)"
    )
  options["freeze"] = tuple(_in_steps(part, **known) for part in freeze)
  options["learning_rate"] = rate
  return named.call(optim.make, config.optimizer, given=options), rate


def _in_steps(part, **known):
  """A part of `optimizer.freeze`, its duration in steps."""
  units = {k: v for k, v in part.items() if k in _UNITS and v is not None}
  if not units:  # or `steps` of None, which is for ever
    return part
  if len(units) > 1:
    raise errors.UserError(
      f"config.optimizer.freeze has {' and '.join(units)}: give one of them"
    )
  rest = {k: v for k, v in part.items() if k not in _UNITS}
  named = {f"freeze_{k}": v for k, v in units.items()}
  return rest | {"steps": schedules.steps_of(named, "freeze", **known)}


_UNITS = ("steps", "epochs", "examples", "percent")
_WARMUP = ("warmup_steps", "warmup_epochs", "warmup_examples", "warmup_percent")


# By modality: what opens a source, and what gives its views.
_SOURCES = {"image": sources.make, "text": texts.make}
_VIEWS = {"image": augment.pair, "text": text_views.pair}


def make_augments(config, source):
  """The training views and the evaluation view, each `batch -> batch`."""
  options = named.options(config.augment)
  pair = _VIEWS[source.modality]
  names = inspect.signature(pair).parameters
  known = {"seed": config.seed} if "seed" in names else {}
  name = options.pop("name")
  return named.call(pair, config.augment, name, source, given=options, **known)


def open_source(config, split: str, **like):
  """The source of `config.data` in a split; `like` replaces some options."""
  options = {**named.options(config.data), **like, "split": split}
  modality = options.pop("modality")
  if modality not in _SOURCES:
    raise errors.UserError(
      f"unknown data.modality={modality!r}: choose among {', '.join(_SOURCES)}"
    )
  name = options.pop("name", "")
  return named.call(_SOURCES[modality], config.data, name, given=options)


def open_like(run: Run, name: str | None, split: str, **options):
  """The source of a split of the run's own dataset, or of another of that name,
  read as the run reads its own but for the options."""
  like = run.source.like | ({} if name is None else {"name": name})
  return open_source(run.config, split, **like, **options)


def duration(config, steps_per_epoch: int) -> int:
  """The steps of a run; of steps, examples and epochs the first given holds."""
  if config.steps is not None:
    steps = config.steps
  elif config.examples is not None:
    steps = config.examples // config.batch_size
  elif config.epochs is not None:
    if not math.isfinite(config.epochs):
      raise errors.UserError(f"config.epochs={config.epochs}: give a number")
    steps = round(config.epochs * steps_per_epoch)
  else:
    raise errors.UserError(
      "give config.steps, config.examples or config.epochs"
    )
  if not 1 <= steps < 1 << 31:  # they are counted in int32
    raise errors.UserError(
      f"the config asks for {steps:.10g} steps: give 1 or more, below 2 to the "
      "31"
    )
  return steps


def check_batch(config, mesh) -> None:
  """Raises UserError where devices or microbatches do not divide the batch."""
  devices, n = mesh.devices.size, config.accumulate
  if config.batch_size % (devices * n):
    raise errors.UserError(
      f"config.batch_size={config.batch_size} is not a multiple of "
      f"{devices} devices x config.accumulate={n}: give a multiple of "
      f"{devices * n}"
    )


def abstract_batch(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch as the stream gives it."""
  b, placed = run.config.batch_size, sharding.by_example(run.mesh)
  struct = lambda shape, dtype: jax.ShapeDtypeStruct(
    (b, *shape), dtype, sharding=placed
  )
  batch = {k: struct(*v) for k, v in run.source.example.items()}
  numbers = ["index", "epoch"]
  if run.config.data.get("labels", False):
    numbers.append("label")
  return batch | dict.fromkeys(numbers, struct((), jnp.int32))


def init_fn(run: Run) -> Callable:
  """Returns `init(rng) -> TrainState`, to be jitted."""

  def init(rng):
    zeros = lambda x: jnp.zeros(x.shape, x.dtype)
    # Shapes alone matter, and one example shows them.
    batch = jax.tree.map(lambda x: zeros(x)[:2], abstract_batch(run))
    return core.init_state(run.method, run.tx, rng, batch, augment=run.augment)

  return init


def _abstract_state(run):
  shapes = jax.eval_shape(init_fn(run), jax.random.key(0))
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    sharding.by_array(run.mesh, shapes, run.config.mesh.whole),
  )


def state_shardings(run: Run) -> core.TrainState:
  """Where each array of the state lies."""
  return jax.tree.map(lambda x: x.sharding, run.abstract_state)


def init_state(run: Run) -> core.TrainState:
  """The state before the first step, on the mesh."""
  init = jax.jit(
    init_fn(run),
    out_shardings=state_shardings(run),
    # It runs once: compiling it with care takes longer than running it.
    compiler_options={"xla_backend_optimization_level": 0},
  )
  return init(jax.random.key(run.config.seed))


def make_refresh(run: Run) -> Callable | None:
  """Returns `refresh(state) -> state`, or None where the method has none.

  What it draws depends on the seed and the step alone. The method's `read`, see
  `core.Method`, has `key` [b] and `index` [b] in its batches; the last is
  filled up with the first examples.
  """
  if run.method.refresh is None:
    return None
  places = state_shardings(run)
  cut = sharding.by_example(run.mesh)

  def view(augment, batch, rng):
    keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(batch["index"])
    return augment(batch | {"key": keys}) | {"key": keys}

  views = {
    train: jax.jit(functools.partial(view, augment))
    for train, augment in ((True, run.augment), (False, run.view_for_eval))
  }

  def refresh(state):
    # Steps fold in what they are; none is so large.
    rng = jax.random.fold_in(jax.random.key(run.config.seed), 2**32 - 1)
    rng = jax.random.fold_in(rng, int(state.step))
    rng, read_rng = jax.random.split(rng)

    def read(function, *, train=False):
      for batch in stream.in_order(
        run.source,
        batch_size=run.config.batch_size,
        to_device=lambda batch: sharding.put_parts(batch, cut),
        rows=sharding.rows(run.mesh, run.config.batch_size),
      ):
        given = function(views[train](batch, read_rng))
        yield sharding.gather(batch["index"]), sharding.gather(given)

    old = state.params, state.method_state
    new = run.method.refresh(*old, read, rng=rng)
    kind = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    if kind(old) != kind(new):
      raise ValueError("refresh gave other arrays than it was given")
    # As restored ones are: a weak type would compile the step again.
    strong = lambda x: jax.lax.convert_element_type(x, x.dtype)
    # What each process computed by itself may differ in the last digit.
    params, method_state = jax.device_put(
      sharding.of_first(jax.tree.map(strong, new)),
      (places.params, places.method_state),
    )
    return state._replace(params=params, method_state=method_state)

  return refresh


def _dtype(config):
  known = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
  if config.precision not in known:
    raise errors.UserError(
      f"config.precision={config.precision!r}: choose float32 or bfloat16"
    )
  return known[config.precision]


def evaluated_network(run: Run) -> str:
  """"teacher" where `Method.embed` looks at a teacher alone, else "encoder"."""
  state = run.abstract_state
  if "teacher" not in state.method_state:
    return "encoder"
  batch = abstract_batch(run)
  n = run.config.batch_size
  batch["key"] = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), n))
  views = jax.eval_shape(run.view_for_eval, batch)
  embed = lambda *args: run.method.embed(*args)["pooled"]
  traced = jax.make_jaxpr(embed)(state.params, state.method_state, views).jaxpr
  used = {id(v) for eqn in traced.eqns for v in eqn.invars}
  own = traced.invars[: len(jax.tree.leaves(state.params))]
  return "encoder" if any(id(v) in used for v in own) else "teacher"
