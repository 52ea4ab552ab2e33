"""The page: its sections in order, each left out where there is nothing."""

import math

from ssljax import evaluate
from ssljax.report import arrays
from ssljax.report import facts
from ssljax.report import markup
from ssljax.report import pictures
from ssljax.report import record as record_lib
from ssljax.report import words
from ssljax.report.style import CSS

# Nothing is fetched, whatever the page holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SIDE = 128  # pixels of a picture, at most, on a page of one run or two


def page(records: list[record_lib.Record], shown: list) -> str:
  """The HTML of a page about some runs, given what `seen` gave of each."""
  names = ", ".join(record.name for record in records)
  body = markup.tag(
    "main",
    _top(records, shown),
    _section("Curves", facts.curves(records)),
    _pictures(records, shown),
    _section("Speed", facts.speed(records)),
    _section("Differences of the configs", facts.differences(records)),
    _section(
      "Versions and config",
      facts.environments(records),
      facts.configs(records),
    ),
    markup.tag(
      "footer", "Made by ssljax report. The page is whole: it loads nothing."
    ),
  )
  meta = [
    markup.tag("meta", charset="utf-8"),
    markup.tag(
      "meta", name="viewport", content="width=device-width, initial-scale=1"
    ),
    markup.tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
    markup.tag("title", f"{names} · ssljax"),
    markup.tag("style", markup.Html(CSS)),
  ]
  html = markup.tag(
    "html", markup.tag("head", meta), markup.tag("body", body), lang="en"
  )
  return f"<!doctype html>\n{html}\n"


def _top(records, shown):
  if len(records) == 1:
    (record,), (one,) = records, shown
    return markup.join(
      markup.tag("h1", _breakable(record.name)),
      facts.lead(record),
      markup.tag("div", facts.evaluation(record), class_="card"),
      _checkpoint(one),
    )
  cards = [
    markup.tag(
      "section",
      _run(i, record.name),
      facts.lead(record),
      facts.evaluation(record),
      _checkpoint(one),
      class_="card",
    )
    for i, (record, one) in enumerate(zip(records, shown))
  ]
  return markup.join(
    markup.tag("h1", f"{len(records)} runs side by side"),
    markup.tag("div", cards, class_="wide"),
  )


def _checkpoint(one):
  said = f"Pictures below: the checkpoint of step {one.step}."
  return markup.tag("p", said, class_="note")


def _breakable(name):
  """A name that may go on in a next line after each underscore and slash."""
  parts = name.replace("/", "/\n").replace("_", "_\n").split("\n")
  return [[part, markup.tag("wbr")] for part in parts]


def _run(i, name):
  return markup.tag("h3", markup.tag("span", facts.dot(i), name))


def _section(title, *content):
  content = markup.join(*content)
  return (
    markup.tag("section", markup.tag("h2", title), content)
    if (content)
    else None
  )


# By modality: what is seen of a run, and its sections.
_SEEN = {"image": arrays.of, "text": words.of}
_SECTIONS = {arrays.Arrays: pictures.sections, words.Words: words.sections}


def seen(workdir: str):
  """What the pictures need of a run's last checkpoint.

  Raises:
    UserError: no such run, checkpoint or dataset.
  """
  run, state = evaluate.restore(workdir)
  return _SEEN[run.source.modality](run, state)


def _pictures(records, shown):
  # A page of many runs has smaller pictures, so that its size stays.
  side = int(_SIDE * min(1, math.sqrt(2 / len(records))))
  sections = [_SECTIONS[type(s)](s, side) for s in shown]
  titles = dict.fromkeys(title for s in sections for title in s)
  return [
    _section(title, _side_by_side(records, [s.get(title) for s in sections]))
    for title in titles
  ]


def _side_by_side(records, contents):
  """(note, content) or None of each run, under its name where they are many."""
  several = len(records) > 1
  blocks = [
    markup.tag(
      "div",
      _run(i, record.name) if several else None,
      markup.tag("p", content[0], class_="note"),
      content[1],
      class_="card" if several else None,
    )
    for i, (record, content) in enumerate(zip(records, contents))
    if content
  ]
  return markup.tag("div", blocks, class_="wide") if blocks else None
