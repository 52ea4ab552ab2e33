"""What a compiled step moves, read from its text, loops counted as they run."""

import math
import re
from typing import NamedTuple

_KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# What gives another name to what is there, or runs other computations.
_FREE = frozenset(
  "parameter constant tuple get-tuple-element bitcast while conditional call "
  "optimization-barrier after-all partition-id replica-id domain".split()
)
_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")


class Program(NamedTuple):
  """What one chip does in a step.

  Attributes:
    collectives: {kind: {"count", "bytes"}}; bytes are those of the whole array
      that the chips of a group share.
    wire_bytes: that leave a chip, at least: 2 (n - 1) / n of an array for an
      all-reduce among n, (n - 1) / n for an all-gather or a reduce-scatter.
    hbm_bytes: that pass its memory, at least: the arguments are read, the
      results are written, and each other array that is not kept on the chip is
      written and read once.
  """

  collectives: dict[str, dict[str, int]]
  wire_bytes: float
  hbm_bytes: float


class _Instruction(NamedTuple):
  name: str
  shape: str
  opcode: str
  rest: str
  root: bool


def read(text: str, devices: int) -> Program:
  """Reads the optimised HLO of one chip of so many."""
  computations, entry = _computations(text)
  collectives, totals = {}, {"wire": 0.0, "hbm": 0.0}

  def visit(name, times, fused, channels):
    for i in computations[name]:
      kind = i.opcode.removesuffix("-start")
      channel = re.search(r"channel_id=(\d+)", i.rest)
      # Fusions that start, go on with and end a collective repeat it.
      again = fused and channel and channel[1] in channels
      if kind in _KINDS and not again:
        if channel and fused:  # others may have its number
          channels.add(channel[1])
        if name.startswith("all-reduce-scatter"):  # and slices what it summed
          kind = "reduce-scatter"
        payload, wire = _moved(kind, i, devices)
        row = collectives.setdefault(kind, {"count": 0, "bytes": 0})
        row["count"] += times
        row["bytes"] += times * payload
        totals["wire"] += times * wire
      if not (fused or _is_free(i)):
        totals["hbm"] += 2 * times * _written(i, computations)
      inside = fused or i.opcode == "fusion"
      for callee, often in _called(i, computations):
        visit(callee, times * often, inside, channels if inside else set())

  visit(entry, 1, False, set())
  arguments = sum(
    _bytes(i.shape) for i in computations[entry] if i.opcode == "parameter"
  )
  hbm = totals["hbm"] + arguments - _results(computations, entry)
  return Program(collectives, totals["wire"], hbm)


def _computations(text):
  """{name: [_Instruction, ...]}, and the name of the entry."""
  found, entry, current = {}, None, None
  for line in text.splitlines():
    if head := _HEAD.match(line):
      current = found.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (row := _LINE.match(line)):
      root, name, shape, opcode, rest = row.groups()
      current.append(_Instruction(name, shape, opcode, rest, bool(root)))
  return found, entry


def _called(i, computations):
  """(computation, how often) of what an instruction runs."""
  if i.opcode == "while":
    body, condition = (
      re.search(rf"{k}=%?([\w.\-]+)", i.rest)[1] for k in ("body", "condition")
    )
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', i.rest)
    times = int(known[1]) if known else _trips(computations[condition])
    return [(body, times)]
  if i.opcode in ("fusion", "call", "async-start"):
    name = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", i.rest)
    return [(name[1], 1)] if name else []
  if i.opcode == "conditional":
    names = re.search(r"branch_computations=\{([^}]*)\}", i.rest)
    pair = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", i.rest)
    names = re.findall(r"[\w.\-]+", names[1]) if names else pair
    return [(name, 1) for name in names]
  return []


def _trips(condition):
  """How often a loop runs whose condition compares with a constant."""
  limits = [
    int(i.rest.split(")")[0])
    for i in condition
    if i.opcode == "constant" and i.rest.split(")")[0].isdigit()
  ]
  return max(limits, default=1)


def _is_free(i):
  """Whether nothing is written; of a start, what it ends with is counted."""
  reserves = 'custom_call_target="AllocateBuffer"' in i.rest
  return i.opcode in _FREE or i.opcode.endswith("-start") or reserves


def _moved(kind, i, devices):
  """(bytes of the whole array, bytes that leave this chip)."""
  shape = i.shape
  if i.opcode.endswith("-start") and kind != "all-reduce":
    shape = _parts(shape)[1]  # the operands come first
  n, size = _group(i.rest, devices), _bytes(shape, on_chip=True)
  if i.opcode.startswith("reduce-scatter"):  # of which the result is a part
    size *= n
  if kind == "collective-permute":
    return size, size
  twice = 2 if kind == "all-reduce" else 1
  return size, twice * size * (n - 1) / n


def _parts(shape):
  """Of a tuple's type, those of its elements, which may be tuples."""
  parts, depth = [""], 0
  for c in shape[1:-1]:
    depth += (c in "([{") - (c in ")]}")
    if c == "," and not depth:
      parts.append("")
    else:
      parts[-1] += c
  return parts


def _group(rest, devices):
  """How many chips share a collective."""
  if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
    return int(iota[1])
  if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
    return listed[1].count(",") + 1
  # Where the devices are not in order, they are listed between the two.
  mesh = r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(.*?\)\)?)? \{(.*?)\}"
  if mesh := re.search(mesh, rest):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes[a]) for a in re.findall(r"'(\w+)'", mesh[2]))
  if "replica_groups=" in rest and "replica_groups={}" not in rest:
    raise ValueError(f"groups of a form that is not known: {rest}")
  return devices


def _results(computations, entry):
  """Bytes that the entry writes as its results, which nothing reads."""
  found = {i.name: i for i in computations[entry]}
  root = next(i for i in found.values() if i.root)
  names = _operands(root) if root.opcode == "tuple" else [root.name]
  total = 0
  for name in dict.fromkeys(names):
    i, part = found[name], None
    if i.opcode == "get-tuple-element":
      part = int(re.search(r"index=(\d+)", i.rest)[1])
      i = found[_operands(i)[0]]
    if not _is_free(i):
      written = _outputs(i, computations)
      total += sum(written) if part is None else written[part]
  return total


def _written(i, computations):
  """Bytes of memory that an instruction writes."""
  return sum(_outputs(i, computations))


def _outputs(i, computations):
  """Bytes of memory that an instruction writes, of each of its results."""
  if i.opcode == "dynamic-update-slice":
    return [0]  # in place; what is put there was written by another
  if i.opcode != "fusion":
    shape = i.shape
    if 'custom_call_target="__cu' in i.rest:
      # At the end, the bytes that cuBLAS or cuDNN may work in.
      shape = re.sub(r", [su]8\[\d+\][^,]*\)$", ")", shape)
    return [_bytes(m[0]) for m in _ARRAY.finditer(shape)]
  inner = {j.name: j for j in computations[_called(i, computations)[0][0]]}
  root = next(j for j in inner.values() if j.root)
  names = _operands(root) if root.opcode == "tuple" else [root.name]
  whole = [m[0] for m in _ARRAY.finditer(i.shape)]
  written = []
  for name, shape in zip(names, whole):
    j = inner[name]
    while j.opcode in ("bitcast", "copy") and _operands(j)[0] in inner:
      j = inner[_operands(j)[0]]
    if j.opcode == "dynamic-update-slice":  # in place
      shape = inner[_operands(j)[1]].shape
    written.append(_bytes(shape))
  return written


def _operands(i):
  """The names of an instruction's operands."""
  depth = 1
  for end, c in enumerate(i.rest):
    depth += (c == "(") - (c == ")")
    if not depth:
      return re.findall(r"%([\w.\-]+)", i.rest[:end])
  return []


def _bytes(shape, *, on_chip=False):
  """Bytes of all arrays of a type, in memory or, if `on_chip`, anywhere."""
  total = 0
  for dtype, sizes, layout in _ARRAY.findall(shape):
    if "S(1)" in layout and not on_chip:
      continue
    known = dtype in _BITS
    bits = _BITS[dtype] if known else int(re.search(r"\d+", dtype)[0])
    total += math.prod(int(n) for n in sizes.split(",") if n) * bits / 8
  return total
