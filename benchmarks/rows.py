"""Rows of results in a CSV file, to which each run adds its own."""

import csv
import os


def read(path):
  """A dict of strings for each row; none where there is no file."""
  if not os.path.exists(path):
    return []
  with open(path, newline="") as f:
    return list(csv.DictReader(f))


def append(path, fields, row):
  """Adds a row, under a header of `fields` where it is the first."""
  new = not os.path.exists(path)
  with open(path, "a", newline="") as f:
    writer = csv.DictWriter(f, fields, lineterminator="\n")
    if new:
      writer.writeheader()
    writer.writerow(row)
