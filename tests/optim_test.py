"""Optimisers against NumPy over several steps; schedules; freezing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax import errors
from ssljax import optim
from ssljax import schedules
from ssljax.models import bert
from ssljax.models import linen
from ssljax.optim import paths

STEPS = 6
RATES = (0.0, 0.1, 0.2, 0.3, 0.25, 0.05)
DECAYS = (0.04, 0.05, 0.1, 0.2, 0.3, 0.4)
SHAPES = {
  "encoder/conv/kernel": (3, 3, 2, 4),
  "encoder/norm/scale": (4,),
  "head/kernel": (4, 5),
  "head/bias": (5,),
}


def nest(flat):
  tree = {}
  for path, value in flat.items():
    *folders, name = path.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[name] = value
  return tree


def flatten(tree, prefix=""):
  if not isinstance(tree, dict):
    return {prefix[:-1]: np.asarray(tree)}
  flat = {}
  for name, value in tree.items():
    flat |= flatten(value, f"{prefix}{name}/")
  return flat


def problem(seed=0, zeros=()):
  """Parameters and gradients of each step, flat, float64."""
  rng = np.random.default_rng(seed)
  draw = lambda path: rng.standard_normal(SHAPES[path])
  params = {p: draw(p) * (p not in zeros) for p in SHAPES}
  grads = [{p: 0.1 * draw(p) for p in SHAPES} for _ in range(STEPS)]
  return params, grads


def run(tx, params, grads):
  """The flat parameters after each step, and the last state."""
  to_jax = lambda flat: jax.tree.map(jnp.float32, nest(flat))
  params = to_jax(params)
  state = tx.init(params)
  update = jax.jit(tx.update)
  history = []
  for g in grads:
    updates, state = update(to_jax(g), state, params)
    params = optax.apply_updates(params, updates)
    history.append(flatten(params))
  assert update._cache_size() == 1
  return history, state


def reference(step, params, grads):
  """The same for `step(path, t, w, g, memory) -> w`."""
  params = {path: w.copy() for path, w in params.items()}
  memory = {path: {} for path in params}
  history = []
  for t, g in enumerate(grads):
    for path in params:
      params[path] = step(path, t, params[path], g[path], memory[path])
    history.append(dict(params))
  return history


def assert_same(ours, theirs, rtol=1e-6):
  for t, (a, b) in enumerate(zip(ours, theirs)):
    for path in b:
      np.testing.assert_allclose(
        a[path], b[path], rtol=rtol, atol=rtol, err_msg=f"{path}, step {t}"
      )


def read(values):
  """A schedule that reads a table."""
  return lambda step: jnp.asarray(values, jnp.float32)[step]


def torch_sgd(rate_of, decay_of, momentum=0.9, nesterov=False, adapt=None):
  def step(path, t, w, g, memory):
    if adapt is None:
      g = g + decay_of(path, t) * w
    else:
      g = adapt(path, t, w, g)
    # torch.optim.SGD starts its buffer with the gradient itself.
    v = memory["v"] = momentum * memory["v"] + g if memory else g
    return w - rate_of(path, t) * (g + momentum * v if nesterov else v)

  return step


def adam(w, g, memory, t, b1, b2, eps):
  m = memory["m"] = b1 * memory.get("m", 0 * w) + (1 - b1) * g
  v = memory["v"] = b2 * memory.get("v", 0 * w) + (1 - b2) * g**2
  m_hat, v_hat = m / (1 - b1 ** (t + 1)), v / (1 - b2 ** (t + 1))
  return m_hat / (np.sqrt(v_hat) + eps)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(nesterov):
  params, grads = problem()
  tx = optim.make(
    name="sgd",
    learning_rate=read(RATES),
    weight_decay=0.01,
    momentum=0.8,
    nesterov=nesterov,
  )
  step = torch_sgd(
    lambda path, t: RATES[t], lambda path, t: 0.01, 0.8, nesterov
  )
  assert_same(run(tx, params, grads)[0], reference(step, params, grads))


def test_adamw_with_a_schedule_of_the_decay():
  params, grads = problem()
  tx = optim.make(
    name="adamw",
    learning_rate=read(RATES),
    weight_decay=read(DECAYS),
    decay_exclude=("1d",),
    b2=0.95,
  )

  def step(path, t, w, g, memory):
    decay = DECAYS[t] if w.ndim > 1 else 0.0
    w = w * (1 - RATES[t] * decay)
    return w - RATES[t] * adam(w, g, memory, t, 0.9, 0.95, 1e-8)

  assert_same(run(tx, params, grads)[0], reference(step, params, grads))


def test_adamw_without_bias_correction():
  params, grads = problem()
  tx = optim.make(
    name="adamw",
    learning_rate=read(RATES),
    weight_decay=0.01,
    decay_exclude=("norm", "bias"),
    eps=1e-6,
    bias_correction=False,
  )

  def step(path, t, w, g, memory):
    m = memory["m"] = 0.9 * memory.get("m", 0 * w) + 0.1 * g
    v = memory["v"] = 0.999 * memory.get("v", 0 * w) + 0.001 * g**2
    decay = 0.0 if "norm" in path or "bias" in path else 0.01
    return w - RATES[t] * (m / (np.sqrt(v) + 1e-6) + decay * w)

  assert_same(run(tx, params, grads)[0], reference(step, params, grads))


@pytest.mark.parametrize(
  "name", ["sgd", "adam", "adamw", "lamb", "lars", "larc"]
)
def test_first_moments_may_be_kept_in_bfloat16(name):
  params = {"kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)}
  grads = jax.tree.map(lambda w: jnp.sin(7 * w), params)
  updates, kept = {}, {}
  for dtype in (None, "bfloat16"):
    tx = optim.make(name=name, learning_rate=0.1, moment_dtype=dtype)
    state = tx.init(params)
    for _ in range(3):
      updates[dtype], state = tx.update(grads, state, params)
    kept[dtype] = [x.dtype for x in jax.tree.leaves(state) if x.ndim]
  assert jnp.bfloat16 in kept["bfloat16"] and jnp.bfloat16 not in kept[None]
  # The second moment of Adam stays; see `_scale_by_adam`.
  both = name in ("adam", "adamw", "lamb")
  assert kept["bfloat16"].count(jnp.float32) == both
  close = functools.partial(np.testing.assert_allclose, rtol=0.02, atol=1e-6)
  jax.tree.map(close, updates["bfloat16"], updates[None])
  assert updates["bfloat16"]["kernel"].dtype == jnp.float32


def test_adams_first_steps_are_exact_to_float32():
  # With gradients of one sign every step is -rate; 1 - 0.999 in float32 loses
  # five digits of it.
  tx = optim.make(name="adamw", learning_rate=1.0, eps=0.0)
  params = {"w": jnp.zeros(3)}
  state = tx.init(params)
  for _ in range(3):
    updates, state = tx.update({"w": jnp.full(3, 0.3)}, state, params)
    np.testing.assert_allclose(updates["w"], -1.0, rtol=3e-7)


def test_lamb():
  params, grads = problem(zeros=("head/kernel",))
  tx = optim.make(
    name="lamb",
    learning_rate=read(RATES),
    weight_decay=0.02,
    decay_exclude=("bias", "scale"),
  )

  def step(path, t, w, g, memory):
    u = adam(w, g, memory, t, 0.9, 0.999, 1e-6)
    if "bias" in path or "scale" in path:
      return w - RATES[t] * u
    u = u + 0.02 * w
    norm = np.linalg.norm(w)
    return w - RATES[t] * (norm / np.linalg.norm(u) if norm else 1.0) * u

  assert_same(run(tx, params, grads)[0], reference(step, params, grads), 2e-6)


@pytest.mark.parametrize("rate_first", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_has_the_rate_inside_the_momentum_or_outside(nesterov, rate_first):
  params, grads = problem(zeros=("head/kernel",))
  grads[0]["encoder/conv/kernel"] *= 0.0
  params["encoder/conv/kernel"] *= 1e2
  tx = optim.make(
    name="lars",
    learning_rate=read(RATES),
    weight_decay=0.01,
    decay_exclude=("bias", "scale"),
    eeta=0.002,
    nesterov=nesterov,
    rate_first=rate_first,
  )

  def step(path, t, w, g, memory):
    trust = 1.0
    if "bias" not in path and "scale" not in path:
      g = g + 0.01 * w
      w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
      if w_norm > 0 and g_norm > 0:
        trust = 0.002 * w_norm / g_norm
    inside, outside = (RATES[t], 1.0) if rate_first else (1.0, RATES[t])
    scaled = inside * trust * g
    v = memory["v"] = 0.9 * memory.get("v", 0 * w) + scaled
    return w - outside * (0.9 * v + scaled if nesterov else v)

  assert_same(run(tx, params, grads)[0], reference(step, params, grads))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
def test_larc(clip, exclude):
  params, grads = problem(zeros=("head/kernel",))
  grads[0]["encoder/conv/kernel"] *= 0.0
  params["encoder/norm/scale"] *= 100.0  # enough to be cut
  rates = tuple(r + 0.01 for r in RATES)
  tx = optim.make(
    name="larc",
    learning_rate=read(rates),
    weight_decay=0.01,
    decay_exclude=("1d",) if exclude else (),
    trust_coefficient=0.02,
    clip=clip,
    exclude_from_adaptation=exclude,
    groups=(dict(match="norm", lr_mult=0.5),),
  )
  rate_of = lambda path, t: rates[t] * (0.5 if "norm" in path else 1.0)

  def adapt(path, t, w, g):
    w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
    if (exclude and w.ndim == 1) or w_norm == 0 or g_norm == 0:
      return g
    a = 0.02 * w_norm / (g_norm + 0.01 * w_norm + 1e-8)
    if clip:
      a = min(a / rate_of(path, t), 1.0)
    return (g + 0.01 * w) * a

  step = torch_sgd(rate_of, None, adapt=adapt)
  assert_same(run(tx, params, grads)[0], reference(step, params, grads), 2e-6)


def test_groups_and_masks():
  params, grads = problem()
  tx = optim.make(
    name="sgd",
    learning_rate=0.1,
    weight_decay=0.3,
    decay_exclude=("scale",),
    groups=(
      dict(match="^head/.*l$", lr_mult=0.1),  # its decay is everybody's
      dict(match="head", weight_decay=0.5),
    ),
  )
  decays = {"encoder/conv/kernel": 0.3, "encoder/norm/scale": 0.0}
  decays |= {"head/kernel": 0.3, "head/bias": 0.5}
  step = torch_sgd(
    lambda path, t: 0.01 if path == "head/kernel" else 0.1,
    lambda path, t: decays[path],
  )
  assert_same(run(tx, params, grads)[0], reference(step, params, grads))


@pytest.mark.parametrize("name", ["sgd", "lars", "larc"])
def test_a_groups_own_rate_is_neither_scheduled_nor_scaled(name):
  params, grads = problem()
  options = dict(name=name, weight_decay=0.01, decay_exclude=("bias",))
  make = lambda **kw: run(optim.make(**options, **kw), params, grads)[0]
  # Before lr_mult, which would scale it.
  ours = make(
    learning_rate=read(RATES),
    groups=(dict(match="^head/", lr=0.07, lr_mult=3.0),),
  )
  pick = lambda history, part: [
    {path: x for path, x in flat.items() if path.startswith(part)}
    for flat in history
  ]
  constant, scheduled = (
    make(learning_rate=0.07),
    make(learning_rate=read(RATES)),
  )
  assert_same(pick(ours, "head"), pick(constant, "head"))
  assert_same(pick(ours, "encoder"), pick(scheduled, "encoder"))


def test_clip_global_norm():
  params, grads = problem()
  clip = lambda g: min(
    1.0, 0.5 / np.sqrt(sum((x**2).sum() for x in g.values()))
  )
  clipped = [{p: x * clip(g) for p, x in g.items()} for g in grads]
  assert clip(grads[0]) < 0.9
  make = lambda **kw: optim.make(name="sgd", learning_rate=0.1, **kw)
  ours = run(make(clip_global_norm=0.5), params, grads)[0]
  assert_same(ours, run(make(), params, clipped)[0])


def test_clip_by_param():
  params, grads = problem()
  clip = lambda x: min(1.0, 0.3 / (np.linalg.norm(x) + 1e-6))
  clipped = [{p: x * clip(x) for p, x in g.items()} for g in grads]
  cut = {p: clip(x) < 1 for p, x in grads[0].items()}
  assert any(cut.values()) and not all(cut.values())
  make = lambda **kw: optim.make(name="sgd", learning_rate=0.1, **kw)
  ours = run(make(clip_by_param=0.3), params, grads)[0]
  assert_same(ours, run(make(), params, clipped)[0])


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lars", "larc"])
def test_frozen_is_no_update_and_no_moments_then_a_fresh_start(name):
  params, grads = problem()
  options = dict(
    name=name,
    weight_decay=0.1,
    decay_exclude=("bias",),
    groups=(dict(match="head", lr_mult=0.5),),
  )
  frozen = optim.make(
    learning_rate=read(RATES),
    freeze=(dict(match="^head", steps=3),),
    **options,
  )
  ours, state = run(frozen, params, grads[:3])
  late = state.inner.inner_states["late"].inner_state.inner
  assert jax.tree.leaves(late)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(late))
  head = lambda flat: {p: x for p, x in flat.items() if p.startswith("head")}
  for after in ours:
    assert_same([head(after)], [head(params)], 1e-7)
  # From then on as an optimiser that begins there, with the later rates.
  ours, _ = run(frozen, params, grads)
  fresh = optim.make(learning_rate=read(RATES[3:]), **options)
  theirs, _ = run(fresh, params, grads[3:])
  assert_same(map(head, ours[3:]), map(head, theirs))
  # The rest does not notice.
  plain, _ = run(
    optim.make(learning_rate=read(RATES), **options), params, grads
  )
  encoder = lambda flat: {p: x for p, x in flat.items() if "encoder" in p}
  assert_same(map(encoder, ours), map(encoder, plain))


def test_two_parts_frozen_for_two_lengths():
  params, grads = problem()
  tx = optim.make(
    name="adamw",
    learning_rate=0.1,
    freeze=(dict(match="head", steps=2), dict(match="conv", steps=10**6)),
  )
  ours, _ = run(tx, params, grads)
  moved = lambda path: [
    not np.array_equal(x[path], np.float32(params[path])) for x in ours
  ]
  assert moved("head/kernel") == [False, False, True, True, True, True]
  assert not any(moved("encoder/conv/kernel"))
  assert all(moved("encoder/norm/scale"))


def test_freeze_until_wraps_any_optax_optimiser():
  params, grads = problem()
  tx = optim.freeze_until(2, optax.adam(0.1), "head")
  ours, _ = run(tx, params, grads)
  theirs, _ = run(optax.adam(0.1), params, grads[2:])
  np.testing.assert_array_equal(
    ours[1]["head/bias"], np.float32(params["head/bias"])
  )
  np.testing.assert_allclose(
    ours[-1]["head/bias"], theirs[-1]["head/bias"], rtol=1e-6
  )


def test_state_resumes_the_schedules():
  params, grads = problem()
  tx = optim.make(
    name="sgd", learning_rate=read(RATES), weight_decay=read(DECAYS)
  )
  whole, state = run(tx, params, grads)
  assert state.count.dtype == jnp.int32 and int(state.count) == STEPS
  half, state = run(tx, params, grads[:3])
  update, w = jax.jit(tx.update), nest(half[-1])
  for g in grads[3:]:
    updates, state = update(jax.tree.map(jnp.float32, nest(g)), state, w)
    w = optax.apply_updates(w, updates)
  for path, value in flatten(w).items():
    np.testing.assert_array_equal(value, whole[-1][path])


@pytest.mark.parametrize(
  "name, half, last",
  [("cosine", 1.5, 1.0), ("linear", 1.5, 1.0), ("constant", 2.0, 2.0)],
)
def test_schedules(name, half, last):
  end = {} if name == "constant" else {"end": 1.0}
  f = schedules.schedule(
    name, base=2.0, total_steps=110, warmup_steps=10, warmup_init=0.5, **end
  )
  got = [float(f(step)) for step in (0, 5, 10, 60, 110, 500)]
  want = [0.5, 1.25, 2.0, half, last, last]
  np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_allclose(jax.jit(f)(jnp.int32(60)), half, rtol=1e-6)


def test_berts_schedule_drops_where_the_warm_up_ends():
  f = schedules.schedule("bert", base=2.0, total_steps=100, warmup_steps=10)
  got = [float(f(step)) for step in (0, 5, 9, 10, 50, 100, 500)]
  np.testing.assert_allclose(got, [0, 1, 1.8, 1.8, 1, 0, 0], rtol=1e-6)


def test_cosine_between_its_ends():
  f = schedules.schedule("cosine", base=0.04, end=0.4, total_steps=100)
  for step in (0, 25, 70, 100):  # DINO's decay rises
    want = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * step / 100))
    np.testing.assert_allclose(f(step), want, rtol=1e-6)


def test_step_schedule():
  f = schedules.schedule(
    "step", base=1.0, total_steps=200, milestones=(0.6, 0.8)
  )
  got = [float(f(step)) for step in (0, 119, 120, 159, 160, 199)]
  np.testing.assert_allclose(got, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_ema_schedule():
  f = schedules.ema_schedule(0.996, 100)
  assert f(100) == f(150) == 1.0
  np.testing.assert_allclose(f(0), 0.996, rtol=1e-7)
  np.testing.assert_allclose(f(50), 0.998, rtol=1e-7)
  np.testing.assert_allclose(f(100), 1.0, rtol=1e-7)


def test_scale_lr():
  assert schedules.scale_lr(0.3, 4096, "linear") == pytest.approx(4.8)
  assert schedules.scale_lr(0.03, 512, "linear", base=128) == pytest.approx(
    0.12
  )
  assert schedules.scale_lr(0.075, 4096, "sqrt") == pytest.approx(4.8)
  assert schedules.scale_lr(0.3, 4096) == 0.3


@pytest.mark.parametrize(
  "given, want",
  [
    (dict(warmup_steps=7), 7),
    (dict(warmup_epochs=1.5), 150),
    (dict(warmup_epochs=1.257), 126),
    (dict(warmup_examples=1000), 100),
    (dict(warmup_percent=0.25), 125),
    (dict(warmup_epochs=1e-6), 1),
    (dict(warmup_epochs=0), 0),
    (dict(warmup_steps=None, warmup_epochs=2), 200),
    (dict(), 0),
  ],
)
def test_steps_of(given, want):
  known = dict(batch_size=10, steps_per_epoch=100, total_steps=500)
  assert schedules.steps_of(given, "warmup", **known) == want


STEPS_OF = dict(batch_size=1, steps_per_epoch=9, total_steps=9)


@pytest.mark.parametrize(
  "mistake, message",
  [
    (lambda: schedules.scale_lr(0.1, 8, "cube"), "unknown lr_scaling 'cube'"),
    (
      lambda: schedules.steps_of(
        {"a_steps": 1, "a_epochs": 1}, "a", **STEPS_OF
      ),
      "a_steps and a_epochs",
    ),
    (
      lambda: schedules.steps_of({"a_percent": 10}, "a", **STEPS_OF),
      "fraction",
    ),
    (
      lambda: schedules.steps_of({"a_epochs": -1}, "a", **STEPS_OF),
      "a_epochs=-1: give 0 or more",
    ),
    (
      lambda: schedules.steps_of({"a_steps": "x"}, "a", **STEPS_OF),
      "a_steps='x': give 0 or more",
    ),
    (
      lambda: schedules.schedule("cos", base=1.0, total_steps=9),
      "unknown schedule 'cos'",
    ),
    (
      lambda: schedules.schedule(
        "cosine", base=1, total_steps=9, warmup_steps=10
      ),
      "longer than the run",
    ),
    (
      lambda: schedules.schedule(
        "step", base=1, total_steps=9, milestones=(6,)
      ),
      "fractions of the run",
    ),
    (lambda: schedules.schedule("step", base=1, total_steps=9), "fractions"),
    (
      lambda: schedules.schedule(
        "stepp", base=1, total_steps=9, milestones=(0.5,)
      ),
      "unknown schedule 'stepp'",
    ),
    (
      lambda: schedules.schedule("constant", base=1, total_steps=9, end=0.1),
      "schedule constant has no end",
    ),
    (
      lambda: schedules.schedule("cosine", base=1, total_steps=9, factor=0.5),
      "schedule cosine has no factor",
    ),
    (
      lambda: schedules.schedule(
        "bert", base=1, total_steps=9, milestones=(0.5,)
      ),
      "schedule bert has no milestones",
    ),
    (lambda: make_and_init(name="adamax"), "unknown optimizer 'adamax'"),
    (lambda: make_and_init(beta=0.9), "beta"),
    (lambda: make_and_init(groups=(dict(match="haed"),)), "no parameter"),
    (lambda: make_and_init(groups=(dict(match="a", rate=1),)), "lr_mult"),
    (
      lambda: make_and_init(freeze=(dict(match="last", steps=1),)),
      "no parameter matches 'last'",
    ),
    (lambda: make_and_init(freeze=(dict(match="head"),)), "steps"),
    (
      lambda: make_and_init(
        freeze=(dict(match="head", steps=1, moments="no"),)
      ),
      "freeze: moments='no' is not bool",
    ),
    (
      lambda: make_and_init(freeze=(dict(match="head", steps=1.5),)),
      "freeze: steps=1.5 is not int",
    ),
    (
      lambda: make_and_init(freeze=(dict(match="head", steps=-1),)),
      "optimizer.freeze.steps=-1: give 0 or more",
    ),
    (lambda: schedules.scale_lr(0.1, 256, rule={}), "unknown lr_scaling {}"),
    (lambda: make_and_init(decay_exclude=("(",)), "not a pattern"),
  ],
)
def test_mistakes_name_the_mend_in_one_line(mistake, message):
  with pytest.raises(errors.UserError, match=message) as e:
    mistake()
  assert "\n" not in str(e.value)


def make_and_init(**options):
  options = dict(name="sgd", learning_rate=0.1) | options
  optim.make(**options).init(nest(problem()[0]))


def test_a_group_may_have_a_momentum_of_its_own():
  tx = optim.make(
    name="sgd",
    learning_rate=0.1,
    momentum=0.9,
    groups=(dict(match="^head/", momentum=0.0),),
  )
  params = {"body": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(2)}}
  state, moved = tx.init(params), []
  for _ in range(2):
    updates, state = tx.update(params, state, params)
    moved.append(updates)
  np.testing.assert_allclose(moved[1]["body"]["w"], -0.19, rtol=1e-6)
  np.testing.assert_allclose(moved[1]["head"]["w"], -0.1, rtol=1e-6)


@pytest.mark.parametrize(
  "groups, body, head",
  [
    (({"momentum": 0.0}, {"match": "", "momentum": 0.5}), -0.15, -0.1),
    # One that names none leaves it to no later one.
    (({"lr_mult": 1.0}, {"match": "w", "momentum": 0.0}), -0.1, -0.19),
  ],
)
def test_the_first_group_that_matches_has_the_momentum(groups, body, head):
  first, second = groups
  groups = ({"match": "^head/"} | first, second)
  tx = optim.make(name="sgd", learning_rate=0.1, groups=groups)
  params = {"body": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(2)}}
  state = tx.init(params)
  for _ in range(2):
    updates, state = tx.update(params, state, params)
  np.testing.assert_allclose(updates["body"]["w"], body, rtol=1e-6)
  np.testing.assert_allclose(updates["head"]["w"], head, rtol=1e-6)


def test_second_moments_are_float32_whatever_the_parameters_are():
  params = {"w": jnp.ones(2, jnp.bfloat16)}
  tx = optim.make(name="adam", learning_rate=0.0)
  state, update = tx.init(params), jax.jit(tx.update)
  for _ in range(1000):
    _, state = update(params, state, params)
  (nu,) = [x for x in jax.tree.leaves(state.inner) if x.dtype == jnp.float32]
  np.testing.assert_allclose(nu, 1 - 0.999**1000, rtol=1e-3)


def test_berts_norm_of_its_own_is_of_the_embeddings():
  encoder = bert.make(variant="mini", vocab=30, depth=2)
  tokens = jnp.zeros((1, 4), jnp.int32)
  params = jax.eval_shape(
    lambda key: linen.init(encoder, key, tokens)[0], jax.random.key(0)
  )
  depths = paths.layer_depths({"encoder": params})["encoder"]
  found = {k: set(jax.tree.leaves(v)) for k, v in depths.items()}
  before = ("token_embed", "pos_embed", "kind_embed", "norm")
  assert found == {"block0": {2}, "block1": {1}} | dict.fromkeys(before, {3})


def test_scanned_blocks_are_as_many_parameters():
  flat = {
    "encoder/blocks/norm/scale": np.ones((3, 4), np.float32),
    "encoder/blocks/fc/kernel": np.ones((3, 4, 5), np.float32),
    "encoder/norm/scale": np.ones((4,), np.float32),
  }
  params = nest(flat)
  grads = jax.tree.map(np.zeros_like, params)
  options = dict(learning_rate=0.1, weight_decay=0.5, decay_exclude=("1d",))
  tx = optim.make(name="adamw", **options)
  updates = flatten(tx.update(grads, tx.init(params), params)[0])
  assert [p for p, u in updates.items() if u.any()] == [
    "encoder/blocks/fc/kernel"
  ]
  for bad in (
    dict(name="lars"),
    dict(name="larc"),
    dict(name="lamb"),
    dict(name="adamw", clip_by_param=3.0),
  ):
    with pytest.raises(errors.UserError, match="encoder.scan=False"):
      optim.make(**bad, **options).init(params)


def test_layers_of_scanned_blocks_are_as_deep():
  flat = {
    "encoder/blocks/fc/kernel": np.ones((3, 4, 5), np.float32),
    "encoder/patch_embed/kernel": np.ones((4, 5), np.float32),
  }
  tx = optim.make(name="sgd", learning_rate=1.0, layer_decay=0.5)
  params = nest(flat)
  updates = flatten(tx.update(params, tx.init(params), params)[0])
  blocks = -updates["encoder/blocks/fc/kernel"][:, 0, 0]
  np.testing.assert_allclose(blocks, [0.125, 0.25, 0.5])
  assert -updates["encoder/patch_embed/kernel"][0, 0] == 0.0625


def test_layer_decay_leaves_alone_what_is_not_of_one_layer():
  flat = {
    "encoder/patch_embed/kernel": np.ones((2, 2), np.float32),
    "encoder/relative/table": np.ones((5, 2), np.float32),
    "encoder/block0/fc/kernel": np.ones((2, 2), np.float32),
    "encoder/block0/fc/bias": np.ones((2,), np.float32),
    "head/kernel": np.ones((2, 2), np.float32),
  }
  params = nest(flat)
  tx = optim.make(
    name="sgd",
    learning_rate=1.0,
    layer_decay=0.5,
    groups=(dict(match="bias", lr=0.1), dict(match="head", lr_mult=3.0)),
  )
  updates = flatten(tx.update(params, tx.init(params), params)[0])
  assert {path: -float(u.flat[0]) for path, u in updates.items()} == {
    "encoder/patch_embed/kernel": 0.25,
    "encoder/relative/table": 1.0,  # of all blocks; BEiT's has 1 as well
    "encoder/block0/fc/kernel": 0.5,
    "encoder/block0/fc/bias": pytest.approx(0.1),  # nothing scales it
    "head/kernel": 3.0,
  }


def test_an_exclusion_that_finds_nothing_is_told(caplog):
  with caplog.at_level("WARNING", logger="absl"):
    make_and_init(decay_exclude=("1d", "biass"))
    assert "decay_exclude: no parameter matches 'biass'" in caplog.text
    caplog.clear()
    make_and_init(decay_exclude=("1d",))
  assert not caplog.text
