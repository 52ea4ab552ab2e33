"""Curves, bars and the map as inline SVG and HTML. Colours are the page's CSS:
`--c0` to `--c9` for runs and classes."""

import math

import numpy as np

from ssljax.report import markup

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 8, 24
# Points that a curve is drawn with; a longer one is averaged in bins.
_POINTS = 240
_STRIPS = 60  # places that answer to the mouse


def colour(i: int) -> str:
  """The colour of run or class `i`: the page's ten, then around the wheel."""
  # By the golden angle, so that neighbours differ.
  return f"var(--c{i})" if i < 10 else f"hsl({i * 137.5 % 360:.0f} 55% 55%)"


def lines(curves, *, log=False) -> markup.Html:
  """A chart of curves over steps.

  Args:
    curves: (name, index of the colour, steps [n], values [n]) each; n > 0.
    log: the values on a logarithmic axis; all are positive then.
  """
  scale = np.log10 if log else lambda v: v
  binned = [
    (name, i, *_binned(np.asarray(steps), scale(np.asarray(values, float))))
    for name, i, steps, values in curves
  ]
  xs = np.concatenate([c[2] for c in binned])
  x0, x1 = min(xs.min(), 0), max(xs.max(), 1)
  lows, highs = (np.concatenate([c[k] for c in binned]) for k in (4, 5))
  y0, y1 = _padded(lows.min(), highs.max())
  px = lambda x: _LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
  py = lambda y: _TOP + (y1 - y) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)
  parts = [_y_axis(y0, y1, py, log), _x_axis(x0, x1, px)]
  for _, i, x, mean, low, high in binned:
    if (high > low).any():
      edge = [*zip(px(x), py(high)), *zip(px(x[::-1]), py(low[::-1]))]
      band = dict(fill=colour(i), class_="band")
      parts.append(markup.tag("polygon", points=_points(edge), **band))
    if len(x) == 1:
      dot = dict(cx=_round(px(x[0])), cy=_round(py(mean[0])), r=3)
      parts.append(markup.tag("circle", fill=colour(i), **dot))
    else:
      line = dict(stroke=colour(i), class_="curve")
      where = _points(zip(px(x), py(mean)))
      parts.append(markup.tag("polyline", points=where, **line))
  parts.append(_strips(curves, x0, x1, px))
  return _svg(_WIDTH, _HEIGHT, parts, label=", ".join(c[0] for c in curves))


def _binned(steps, values):
  """(steps, means, least, greatest) of at most _POINTS bins."""
  n = -(-len(steps) // _POINTS)  # values a bin
  starts = np.arange(0, len(steps), n)
  counts = np.diff(np.append(starts, len(steps)))
  return (
    np.add.reduceat(steps, starts) / counts,
    np.add.reduceat(values, starts) / counts,
    np.minimum.reduceat(values, starts),
    np.maximum.reduceat(values, starts),
  )


def _padded(low, high):
  """A range with room; a constant gets some of its own size."""
  room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
  return low - room, high + room


def _y_axis(y0, y1, py, log):
  ticks = _log_ticks(y0, y1) if log else _ticks(y0, y1, 4)
  grid = dict(x1=_LEFT, x2=_WIDTH - _RIGHT, class_="rule")
  return [
    markup.join(
      markup.tag("line", y1=_round(py(y)), y2=_round(py(y)), **grid),
      markup.tag(
        "text", label, x=_LEFT - 6, y=_round(py(y) + 3.5), text_anchor="end"
      ),
    )
    for y, label in ticks
  ]


def _x_axis(x0, x1, px):
  return [
    markup.tag(
      "text", label, x=_round(px(x)), y=_HEIGHT - 7, text_anchor="middle"
    )
    for x, label in _ticks(x0, x1, 5)
    if px(x) < _WIDTH - 2 * _RIGHT or px(x) == px(x1)
  ]


def _ticks(low, high, count):
  """About `count` round values in a range, with labels that tell them apart."""
  raw = (high - low) / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
  # 0.3 / 0.1 is less than 3.
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  values = [k * step for k in range(first, last + 1)]
  digits = max(0, -math.floor(math.log10(step)))
  return [(v, _short(v, digits)) for v in values]


def _log_ticks(low, high):
  """(exponent, label) of powers of ten, with 2 and 5 where there are few."""
  few = high - low < 2
  values = [
    m * 10.0**e
    for e in range(math.floor(low), math.ceil(high) + 1)
    for m in ((1, 2, 5) if few else (1,))
  ]
  ticks = [(math.log10(v), f"{v:g}") for v in values]
  ticks = [t for t in ticks if low <= t[0] <= high]
  return ticks[:: 1 + len(ticks) // 6]


def _short(value, digits):
  size = abs(value)
  if size >= 1e6 and value % 1e5 == 0:
    return f"{value / 1e6:g}M"
  if size >= 1e4 and value % 100 == 0:
    return f"{value / 1e3:g}k"
  if digits > 5:  # there is no room for more
    return f"{value:.3g}"
  return f"{value:.{digits}f}"


def _strips(curves, x0, x1, px):
  """Places to point at: each says the values of all curves near it."""
  curves = [(name, np.asarray(at), values) for name, _, at, values in curves]
  steps = np.unique(np.concatenate([at for _, at, _ in curves]))
  steps = steps[np.unique(np.linspace(0, len(steps) - 1, _STRIPS).astype(int))]
  edges = (steps[1:] + steps[:-1]) / 2
  edges = np.concatenate([[min(x0, steps[0])], edges, [max(x1, steps[-1])]])
  parts = []
  for step, left, right in zip(steps, px(edges[:-1]), px(edges[1:])):
    said = [f"step {step}"]
    for name, at, values in curves:
      near = int(np.argmin(np.abs(at - step)))
      if left <= px(at[near]) <= right:
        said.append(f"{name}: {values[near]:.7g}")
    box = dict(x=_round(left), y=_TOP, width=_round(right - left))
    title = markup.tag("title", "\n".join(said))
    height = _HEIGHT - _TOP - _BOTTOM
    parts.append(
      markup.tag("rect", title, height=height, class_="strip", **box)
    )
  return parts


def bars(rows) -> markup.Html:
  """Fractions in [0, 1] as bars: (label, value, whether it is the run's)."""
  parts = []
  for label, value, own in rows:
    size = f"width:{100 * min(max(value, 0), 1):.2f}%"
    bar = markup.tag("i", style=size, class_="own" if own else None)
    parts += [
      markup.tag("strong" if own else "span", label),
      markup.tag("span", bar, class_="track"),
      markup.tag("b", f"{value:.3f}"),
    ]
  return markup.tag("div", parts, class_="bars")


def scatter(points, labels, name_of, thumbnails) -> markup.Html:
  """A map of points.

  Args:
    points: [n 2] in [0, 1].
    labels: ints [n]; -1 is unknown and grey.
    name_of: `label -> str`.
    thumbnails: {index of a point: address of its picture}.
  """
  width, height, room, side = 640, 560, 24, 30
  place = np.asarray([[room, room]]) + points * [
    width - 2 * room,
    height - 2 * room,
  ]
  parts = []
  for (x, y), label in zip(place, labels):
    dot = dict(cx=_round(x), cy=_round(y), r=3.5, fill=_class_colour(label))
    parts.append(
      markup.tag("circle", markup.tag("title", name_of(label)), **dot)
    )
  for i, address in thumbnails.items():
    x, y = (_round(v - side / 2) for v in place[i])
    box = dict(x=x, y=y, width=side, height=side)
    frame = dict(stroke=_class_colour(labels[i]), class_="frame", rx=2, **box)
    title = markup.tag("title", name_of(labels[i]))
    picture = markup.tag("image", href=address, class_="px", **box)
    parts.append(markup.join(picture, markup.tag("rect", title, **frame)))
  return _svg(width, height, parts, label="map of embeddings", class_="map")


def _class_colour(label):
  return "var(--grey)" if label < 0 else colour(int(label))


def _svg(width, height, parts, *, label, class_="chart"):
  return markup.tag(
    "svg",
    parts,
    viewBox=f"0 0 {width} {height}",
    role="img",
    aria_label=label,
    class_=class_,
  )


def _points(pairs):
  return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def _round(value):
  return f"{value:.1f}"
