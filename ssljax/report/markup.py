"""HTML by functions: text that is not yet `Html` is escaped on the way in."""

import base64
import html


class Html(str):
  """Text that is HTML already."""


_VOID = ("img", "meta", "br", "wbr")


def tag(name: str, /, *children, **attributes) -> Html:
  """An element.

  Args:
    name: of the element.
    *children: `Html`; text and numbers, which are escaped; lists of these; None
      is nothing.
    **attributes: their values are escaped too; None is left out. A trailing
      underscore is dropped, the others are hyphens: `class_`, `stroke_width`.
  """
  given = "".join(
    f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
    for key, value in attributes.items()
    if value is not None
  )
  if name in _VOID:
    return Html(f"<{name}{given}>")
  return Html(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children) -> Html:
  """Children as in `tag`, one after the other."""
  return Html("".join(_text(child) for child in children))


def _text(child) -> str:
  if child is None:
    return ""
  if isinstance(child, Html):
    return child
  if isinstance(child, (list, tuple)):
    return join(*child)
  return html.escape(str(child))


def table(head, rows, *, class_=None) -> Html:
  """A table that scrolls by itself where it is wider than the page.

  Args:
    head: cells of the first row, or None.
    rows: lists of cells; the first of each is its heading.
    class_: of the table.
  """
  line = lambda first, *cells: tag(
    "tr", tag("th", first, scope="row"), [tag("td", c) for c in cells]
  )
  top = head and tag(
    "thead", tag("tr", [tag("th", cell, scope="col") for cell in head])
  )
  body = tag("tbody", [line(*row) for row in rows])
  return tag("div", tag("table", top, body, class_=class_), class_="scroll")


def data_uri(data: bytes, kind: str) -> str:
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"
