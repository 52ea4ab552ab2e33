"""The sections of a page that are words and numbers, from a run's files."""

import json

from ssljax import clock
from ssljax import config as config_lib
from ssljax.report import charts
from ssljax.report import markup
from ssljax.report import record as record_lib

_ROWS = {"": "this encoder", "raw_": "raw input", "random_": "random encoder"}
_PROTOCOLS = {"knn": "kNN", "linear": "linear probe"}
_TITLES = {
  "knn": "kNN accuracy",
  "grad_norm": "gradient norm",
  "param_norm": "norm of the parameters",
  "images_per_s": "images per second",
  "tokens_per_s": "tokens per second",
}
_NOT_CURVES = ("train_s", "step_s", "seconds/", "skipped")
_RATES = ("images_per_s", "tokens_per_s")
_LINEAR = ("learning_rate", *_RATES)
_FIRST = ("loss", "knn")
_LAST = ("learning_rate", "grad_norm", "param_norm", *_RATES)


def lead(record: record_lib.Record) -> markup.Html:
  """What was trained, in two lines."""
  config = record.config
  what = f"{part(config, 'method')} · {part(config, 'encoder')}"
  how = f"{part(config, 'data')}, batches of {config.get('batch_size')}"
  if steps := record_lib.last(record.rows, "step"):
    how += f", {steps:,} steps"
  if skipped := sum(row.get("skipped", 0) for row in record.rows):
    how += f", the updates of {skipped:,} left out as not finite"
  return markup.tag(
    "p", markup.tag("b", what), markup.tag("br"), how, class_="lead"
  )


def part(config, key) -> str:
  """The name of a config's part, and what it was given."""
  given = config.get(key) or {}
  name = str(given.get("name", "?"))
  if key == "encoder":
    # Numbers and words that say its size; the rest is in the config below.
    sizes = ("variant", "width", "dim", "depth")
    words = [
      f"{given[k]}" if k == "variant" else f"{k} {given[k]}"
      for k in sizes
      if given.get(k) is not None
    ]
    return " ".join([name, ", ".join(words)]).strip()
  return name


def evaluation(record: record_lib.Record) -> markup.Html:
  """Whether the encoder beats the floors, as bars."""
  measured = record.evaluation
  if measured is None:
    knn = record_lib.last(record.rows, "knn")
    if knn is None:
      return markup.tag(
        "p", "Not evaluated: ssljax evaluate --workdir=...", class_="note"
      )
    bars = charts.bars([(_ROWS[""], knn, True)])
    return markup.tag("div", markup.tag("h3", "kNN"), bars, class_="protocol")
  parts = []
  protocols = measured.get("protocol")
  names = protocols if isinstance(protocols, dict) else ()
  for name in names:
    if name.startswith(("raw_", "random_")):
      continue  # a floor's own protocol
    values = {
      key.removesuffix(name): value
      for key, value in measured.items()
      if key.endswith(name) and record_lib.is_number(value)
    }
    if "" not in values:
      continue
    rows = [
      (_ROWS.get(k, k.strip("_")), value, k == "")
      for k, value in sorted(values.items(), key=lambda item: item[1])
    ]
    parts.append(
      markup.tag(
        "div",
        markup.tag("h3", _title(name)),
        charts.bars(rows),
        markup.tag("p", _verdict(values)),
        class_="protocol",
        title=protocols[name],
      )
    )
  splits = measured.get("splits")
  where = f"On {measured.get('dataset')}"
  if isinstance(splits, dict):
    where += f" ({', '.join(str(s) for s in splits.values() if s)})"
  return markup.join(
    markup.tag("div", parts, class_="protocols"),
    _held_out(measured),
    _finetuned(measured.get("finetune")),
    markup.tag("p", f"{where} after step {measured['step']}.", class_="note"),
  )


def _title(name):
  """Of a protocol; those of several blocks are as `evaluate` names them."""
  name, _, blocks = name.partition("_last")
  title = _PROTOCOLS.get(name, name)
  return f"{title}, last {blocks} blocks" if blocks else title


def _held_out(measured):
  """The held-out loss and what goes with it."""
  rows = [
    [key.removeprefix("test_").replace("_", " "), f"{value:.4g}"]
    for key, value in measured.items()
    if key.startswith("test_") and record_lib.is_number(value)
  ]
  if not rows:
    return None
  return markup.tag(
    "div", markup.tag("h3", "Held out"), markup.table(None, rows)
  )


def _finetuned(found):
  """Accuracies by the part of the labels, beside their floors."""
  if not isinstance(found, dict):
    return None
  accuracy = lambda row, name: (
    f"{row[name + 'accuracy']:.4f}"
    + (f" ± {row[name + 'spread']:.4f}" if name + "spread" in row else "")
  )
  rows = [
    [
      f"{100 * float(part):g} %",
      f"{row['labels']:,}",
      accuracy(row, ""),
      accuracy(row, "scratch_"),
      f"{row['raw_linear']:.4f}" if "raw_linear" in row else "",
    ]
    for part, row in found.items()
  ]
  head = ["", "labels", "fine-tuned", "from scratch", "raw input, linear"]
  return markup.tag(
    "div", markup.tag("h3", "Fine-tuning"), markup.table(head, rows)
  )


def _verdict(values):
  """How far above or below the floors, in points of a hundred."""
  said = []
  for key, name in (
    ("random_", "the random encoder"),
    ("raw_", "the raw input"),
  ):
    if key in values:
      points = 100 * (values[""] - values[key])
      up = points > 0
      word = f"{abs(points):.1f} points {'above' if up else 'below'}"
      said.append(", " if said else None)
      if points:
        said.append(markup.tag("span", word, class_="up" if up else "down"))
      said.append(f" {name}" if points else f"equal to {name}")
  return said


def curves(records) -> markup.Html | None:
  """A chart of each scalar, all runs together."""
  found = [record_lib.series(r.rows) for r in records]
  names = list(dict.fromkeys(name for scalars in found for name in scalars))
  names = [n for n in names if not n.startswith(_NOT_CURVES)]
  names.sort(key=_order)
  charts_ = [
    _chart(
      name,
      [
        (r.name, i, *scalars[name])
        for i, (r, scalars) in enumerate(zip(records, found))
        if name in scalars
      ],
      len(records) > 1,
    )
    for name in names
  ]
  if not charts_:
    return None
  return markup.join(legend(records), markup.tag("div", charts_, class_="grid"))


def _order(name):
  if name in _FIRST:
    return 0, _FIRST.index(name), name
  if name in _LAST:
    return 2, _LAST.index(name), name
  return 1, "/" in name, name


def _chart(name, lines, several):
  values = [v for _, _, _, vs in lines for v in vs]
  # What falls by powers of ten is seen on a logarithmic axis.
  log = name not in _LINEAR and min(values) > 0
  log = log and max(values) > 15 * min(values) and max(values) > 1
  note = [] if several else [f"{values[-1]:.4g}"]
  note += ["log"] if log else []
  last = [
    markup.tag("span", dot(i), f"{values[-1]:.4g}") for _, i, _, values in lines
  ]
  return markup.tag(
    "div",
    markup.tag(
      "h3",
      markup.tag("span", _TITLES.get(name) or name.replace("_", " ")),
      markup.tag("small", ", ".join(note)),
    ),
    charts.lines(lines, log=log),
    markup.tag("p", last, class_="values") if several else None,
    class_="card",
  )


def dot(i) -> markup.Html:
  return markup.tag(
    "span", class_="dot", style=f"background:{charts.colour(i)}"
  )


def legend(records) -> markup.Html | None:
  if len(records) == 1:
    return None
  names = [markup.tag("span", dot(i), r.name) for i, r in enumerate(records)]
  return markup.tag("p", names, class_="legend")


def speed(records) -> markup.Html | None:
  """Throughput, goodput, and what is known of starts and compiling."""
  facts = [_speed(r) for r in records]
  names = list(dict.fromkeys(name for f in facts for name in f))
  if not names:
    return None
  return _by_run(records, names, facts)


def _speed(record):
  rows, batch = record.rows, record.config.get("batch_size")
  get = lambda name: record_lib.last(rows, name)
  steps, step_s, train_s = get("step"), get("step_s"), get("train_s")
  facts = {}
  for rate in _RATES:
    if get(rate):
      facts[_TITLES[rate]] = f"{get(rate):,.0f}"
  if step_s:
    facts["a step"] = seconds(step_s)
  if train_s:
    facts["training"] = seconds(train_s)
    if steps and batch:
      facts["examples seen"] = f"{steps * batch:,}"
  spent = {kind: get(f"seconds/{kind}") or 0.0 for kind in clock.KINDS}
  if whole := sum(spent.values()):
    facts["goodput"] = f"{spent['step'] / whole:.0%} of {seconds(whole)}"
    facts["badput"] = ", ".join(
      f"{kind} {seconds(s)}"
      for kind, s in sorted(spent.items(), key=lambda row: -row[1])
      if kind != "step" and s / whole >= 0.005
    )
  first = rows[0] if rows else {}
  if {"step", "step_s", "train_s"} <= first.keys():
    # All steps but the first at the steady pace; what is left is the first.
    wait = first["train_s"] - (first["step"] - 1) * first["step_s"]
    if wait > 0:
      facts["first step, with compiling"] = seconds(wait)
  if record.starts:
    facts["starts of the process"] = f"{record.starts}"
  if record.wall_s:
    facts["from the first start to the last event"] = seconds(record.wall_s)
  return facts


def seconds(s: float) -> str:
  """A duration, for people."""
  if s < 1:
    return f"{1000 * s:.3g} ms"
  if s < 120:
    return f"{s:.3g} s"
  if s < 7200:
    return f"{s / 60:.1f} min"
  return f"{s / 3600:.1f} h"


def differences(records) -> markup.Html | None:
  """The keys in which the configs of several runs differ."""
  flat = [config_lib.flat(r.config) for r in records]
  names = sorted({key for config in flat for key in config})
  value = lambda config, key: json.dumps(config[key]) if key in config else "–"
  differ = [k for k in names if len({value(config, k) for config in flat}) > 1]
  if len(records) == 1:
    return None
  if not differ:
    return markup.tag("p", "The configs are the same.", class_="note")
  shown = [{k: value(config, k) for k in differ} for config in flat]
  return _by_run(records, differ, shown)


def environments(records) -> markup.Html | None:
  found = [r.environment for r in records]
  names = list(dict.fromkeys(name for e in found for name in e))
  if not names:
    return None
  value = lambda v: ", ".join(map(str, v)) if isinstance(v, list) else str(v)
  return _by_run(
    records, names, [{k: value(v) for k, v in e.items()} for e in found]
  )


def configs(records) -> markup.Html:
  """The whole of each config, folded away."""
  return markup.join(
    [
      markup.tag(
        "details",
        markup.tag(
          "summary",
          "The whole config" + (f" of {r.name}" if len(records) > 1 else ""),
        ),
        markup.tag("pre", json.dumps(r.config, indent=2, sort_keys=True)),
      )
      for r in records
    ]
  )


def _by_run(records, names, facts):
  """A table of facts, a column for each run."""
  heads = [markup.join(dot(i), r.name) for i, r in enumerate(records)]
  return markup.table(
    ["", *heads] if len(records) > 1 else None,
    [[name, *(f.get(name, "–") for f in facts)] for name in names],
  )
