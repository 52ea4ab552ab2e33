"""The sections of a page that are pictures, from the arrays of a run."""

import cv2
import numpy as np

from ssljax.report import arrays
from ssljax.report import charts
from ssljax.report import markup

_SMALL = 64  # pixels; pictures up to here are drawn with their pixels sharp
_THUMBNAILS = 90
_HEADS = 6


def address(image: np.ndarray, side: int) -> str:
  """A picture [h w c] uint8 as a data URI, its longer side at most `side`."""
  # What is small is kept to the bit; PNG of a photograph is large at any size.
  lossless = max(image.shape[:2]) <= _SMALL
  scale = side / max(image.shape[:2])
  if scale < 1:
    size = [max(1, round(n * scale)) for n in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  image = image.reshape(*image.shape[:2], -1)
  if image.shape[2] not in (1, 3):
    image = image.mean(axis=2, keepdims=True).astype(np.uint8)
  image = image[..., ::-1]  # OpenCV's order
  if lossless:
    kind, options = "png", [cv2.IMWRITE_PNG_COMPRESSION, 9]
  else:
    kind, options = "jpeg", [cv2.IMWRITE_JPEG_QUALITY, 82]
  data = cv2.imencode(f".{kind}", image, options)[1].tobytes()
  return markup.data_uri(data, f"image/{kind}")


def _picture(image, side, said, class_=""):
  h, w = image.shape[:2]
  sharp = "px" if max(h, w) <= _SMALL else ""
  return markup.tag(
    "img",
    src=address(image, side),
    alt=said,
    title=said,
    width=w,
    height=h,
    class_=f"{sharp} {class_}".strip() or None,
  )


def sections(seen: arrays.Arrays, side: int) -> dict[str, tuple]:
  """(note, content) by title; content may be None."""
  found = {
    "Augmented views": (view_note(seen), views(seen, side)),
    "Map of the embeddings": (map_note(seen), embedding_map(seen)),
    "Nearest neighbours": (neighbour_note(seen), neighbours(seen, side)),
  }
  for name, images in seen.shown.items():
    title = name.replace("_", " ").capitalize()
    found[title] = shown_note(images), shown(images, side)
  if seen.attention:
    found["Attention"] = attention_note(seen), attention(seen, side)
  return found


def _stacks(columns):
  """Columns of pictures, side by side."""
  return markup.tag(
    "div", [markup.tag("div", c, class_="stack") for c in columns], class_="row"
  )


def views(seen: arrays.Arrays, side: int) -> markup.Html:
  """Each example above its views."""
  columns = []
  for i, original in enumerate(seen.originals):
    column = [_picture(original, side, "the image")]
    for v, view in enumerate(seen.views[i]):
      column.append(_picture(view, side, f"view {v + 1}"))
    if seen.local_views is not None:
      local = [
        _picture(view, side // 2, f"local view {v + 1}")
        for v, view in enumerate(seen.local_views[i])
      ]
      column.append(markup.tag("div", local, class_="pairs"))
    columns.append(column)
  return _stacks(columns)


def view_note(seen: arrays.Arrays) -> str:
  count = seen.views.shape[1]
  views = "a view" if count == 1 else f"{count} views"
  if seen.local_views is not None:
    views += f" and {seen.local_views.shape[1]} local views"
  return (
    f"Training images on top, {views} of each below, as the augmentation "
    "draws them, with the normalisation undone."
  )


def embedding_map(seen: arrays.Arrays) -> markup.Html | None:
  """The map with thumbnails."""
  if seen.points is None:
    return None
  address_of = lambda i: address(seen.images[seen.mapped[i]], 32)
  return mapped(seen, {i: address_of(i) for i in _apart(seen.points)})


def mapped(seen, thumbnails) -> markup.Html:
  """A map of labelled points, with a legend where the classes are few."""
  labels = seen.labels[seen.mapped]
  drawing = charts.scatter(
    seen.points, labels, lambda label: class_of(seen, label), thumbnails
  )
  known = np.unique(labels[labels >= 0])
  legend = [
    markup.tag(
      "span",
      markup.tag("i", style=f"background:{charts.colour(int(label))}"),
      class_of(seen, label),
    )
    for label in known
  ]
  few = 0 < len(legend) <= 24
  return markup.tag(
    "div",
    drawing,
    markup.tag("p", legend, class_="legend") if few else None,
    class_="mapped",
  )


def map_note(seen) -> str:
  if seen.points is None:
    return (
      "There is nothing to map: all embeddings are the same, there are too few "
      "of them, or some are not finite. Where there are many, the encoder has "
      "collapsed or diverged."
    )
  return (
    f"{len(seen.points)} examples of the split {seen.split}, close where the "
    "encoder finds them alike (t-SNE). Distances between groups mean little."
  )


def _apart(points):
  """Indices of points for thumbnails: in each cell of a grid the nearest to
  its middle, if it is near."""
  cells = np.array([17, 15])
  where = np.minimum((points * cells).astype(int), cells - 1)
  off = np.abs(points * cells - where - 0.5).max(axis=1)
  best = {}
  for i in np.argsort(off):
    best.setdefault(tuple(where[i]), int(i))
  chosen = sorted(best.values(), key=lambda i: off[i])
  return sorted(chosen[:_THUMBNAILS])


def neighbours(seen: arrays.Arrays, side: int) -> markup.Html:
  """Cards: an image, and those nearest to it."""
  cards, side = [], side * 5 // 8  # of all pictures the smallest on the page
  for query, *others in seen.neighbours:
    name, label = class_of(seen, seen.labels[query]), seen.labels[query]
    same = seen.labels[others] == label
    found = f"{same.sum()} of {len(others)}" if label >= 0 else None
    frames = np.where(same, "same", "other") if label >= 0 else [""] * len(same)
    pictures = [
      _picture(seen.images[i], side, class_of(seen, seen.labels[i]), frame)
      for i, frame in zip(others, frames)
    ]
    head = [
      _picture(seen.images[query], side, name),
      markup.tag("div", markup.tag("b", name), markup.tag("small", found)),
    ]
    cards.append(
      markup.tag(
        "div",
        markup.tag("div", head, class_="query"),
        markup.tag("div", pictures, class_="found"),
        class_="near",
      )
    )
  return markup.tag("div", cards, class_="cards")


def neighbour_note(seen: arrays.Arrays) -> str:
  note = (
    f"Images of the split {seen.split}, and the nearest of "
    f"{len(seen.images):,} by cosine, the nearest first."
  )
  if (seen.labels[seen.neighbours[:, 0]] >= 0).any():
    note += " A solid frame has the same label, a dashed one another."
  return note


def shown(images: dict[str, np.ndarray], side: int) -> markup.Html:
  """What a function of `Method.show` gave: its pictures by example."""
  count = min(map(len, images.values()))
  return _stacks(
    [_picture(x[i], side, title) for title, x in images.items()]
    for i in range(count)
  )


def shown_note(images: dict[str, np.ndarray]) -> str:
  return f"Images of the evaluation. From top to bottom: {', '.join(images)}."


def attention(seen: arrays.Arrays, side: int) -> markup.Html:
  """Each image, the mean over the heads, and the heads."""
  columns = []
  for image, heads in zip(*seen.attention):
    column = [
      _picture(image, side, "the image"),
      _picture(_heat(image, heads.mean(axis=0)), side, "mean of the heads"),
    ]
    some = heads[:_HEADS]
    small = [
      _picture(_heat(image, w), max(side // 2, 48), f"head {h + 1}")
      for h, w in enumerate(some)
    ]
    column.append(markup.tag("div", small, class_="pairs"))
    columns.append(column)
  return _stacks(columns)


def attention_note(seen: arrays.Arrays) -> str:
  heads = seen.attention[1].shape[1]
  some = "each head" if heads <= _HEADS else f"{_HEADS} of {heads} heads"
  return (
    "Where the last block looks from what is pooled. From top to bottom: the "
    f"image, the mean of the heads, {some}. Each map has its own scale."
  )


def _heat(image, weights):
  """Weights [gh gw] over an image [h w c]: bright where they are large."""
  h, w = image.shape[:2]
  scale = max(1, -(-112 // max(h, w)))  # tiny images would show no shades
  size = (w * scale, h * scale)
  weights = weights - weights.min()
  weights = weights / max(weights.max(), 1e-12)
  heat = cv2.resize(weights, size, interpolation=cv2.INTER_CUBIC)
  heat = np.round(255 * np.clip(heat, 0, 1)).astype(np.uint8)
  heat = cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO)[..., ::-1]
  grey = image.mean(axis=2).astype(np.uint8)
  grey = cv2.resize(grey, size, interpolation=cv2.INTER_NEAREST)[..., None]
  return np.round(0.75 * heat + 0.25 * grey).astype(np.uint8)


def class_of(seen, label):
  if label < 0:
    return "no label"
  return seen.class_names[label] if seen.class_names else f"class {label}"
