"""A plan's figures as text."""


def table(figures: dict) -> str:
  """Markdown, of what `plan` returned."""
  unit, parts = figures["unit"], figures["state_bytes"]
  loader = figures["loader_per_s"]
  lines = [
    f"{figures['method']}: {figures['parameters']:,} parameters "
    f"({figures['encoder_parameters']:,} of the encoder), "
    f"{figures['steps']:,} steps of {figures['batch_size']:,}, "
    f"{figures['precision']}",
    f"a step: {figures['flops']:.3e} FLOPs of the method",
    "state: "
    + ", ".join(f"{name} {_size(size)}" for name, size in parts.items())
    + f"; a checkpoint: {_size(figures['checkpoint_bytes'])}",
    "the objective sees: " + _arrays(figures["objective_sees"]),
  ]
  if figures["method_state"]:
    lines.append("the method keeps: " + _arrays(figures["method_state"]))
  if n := figures["refreshes"]:
    lines.append(
      f"not counted: {n:,} times, between steps, the method goes through all "
      "examples"
    )
  if loader:
    lines.append(f"this machine reads {loader:,.0f} {unit} a second")
  rows, effort = figures["topologies"], figures["effort"]
  hbm = "HBM" if effort == "default" else f"HBM at {effort}"
  columns = {
    "chips": lambda r: f"{r['chips']}",
    "memory, of": lambda r: _size(r["peak_bytes"]) + _of(r["memory_bytes"]),
    "state": lambda r: _size(r["state_bytes"]),
    "FLOPs": lambda r: _seconds(r["floors_s"]["flops"]),
    hbm: lambda r: _seconds(r["floors_s"]["hbm"]),
    "wire": lambda r: _seconds(r["floors_s"]["interconnect"]),
    "bound": lambda r: r["bound"],
    f"step at {figures['mfu']:.0%}": lambda r: _seconds(r["step_s"]),
    f"{unit} a second": lambda r: f"{r['per_s']:,.0f}",
    "chip-hours": lambda r: f"{r['chip_hours']:,.0f}",
    "largest batch": lambda r: f"{r['largest_batch']:,}",
    "collectives": lambda r: _collectives(r["collectives"]),
  }
  kinds = dict.fromkeys(k for r in rows.values() for k in r.get("remat", ()))
  for kind in kinds:
    columns[f"remat {kind}"] = lambda r, k=kind: _size(r["remat"][k])
  columns = {
    name: cell
    for name, cell in columns.items()
    if any(_cell(cell, row) for row in rows.values())
  }
  lines += ["", "| " + " | ".join(["", *columns]) + " |"]
  lines.append("|---" * (1 + len(columns)) + "|")
  for name, row in rows.items():
    cells = [_cell(cell, row) for cell in columns.values()]
    name += "" if row["fits"] else ", does not fit"
    lines.append("| " + " | ".join([name, *cells]) + " |")
  return "\n".join(lines)


def _cell(cell, row):
  """Empty where a topology has no such figure."""
  try:
    return cell(row)
  except (KeyError, TypeError):
    return ""


def _size(n):
  unit = next((u for u in (30, 20, 10) if n >= 1 << u), 0)
  name = {30: "GiB", 20: "MiB", 10: "KiB", 0: "B"}[unit]
  return f"{n / (1 << unit):.4g} {name}"


def _of(n):
  return "" if n is None else f" of {_size(n)}"


def _seconds(s):
  return f"{s:.3g} s" if s >= 0.1 else f"{1000 * s:.3g} ms"


def _arrays(shapes):
  return ", ".join(
    f"{name} [{' '.join(map(str, shape))}]" for name, shape in shapes.items()
  )


def _collectives(rows):
  return ", ".join(
    f"{row['count']} {kind} {_size(row['bytes'])}" for kind, row in rows.items()
  )
