"""Texts that Debian ships, as TFDS datasets: WordNet's glosses, the Bible.

Importing this registers them with TFDS. Both are split once and for all, about
90, 5 and 5 percent, by numbers of their own.
"""

import os
import re
import subprocess

import tensorflow_datasets as tfds

from ssljax.data import debian

# The lexicographer files by number, from lexnames(5WN).
LEXNAMES = (
  "adj.all adj.pert adv.all noun.Tops noun.act noun.animal noun.artifact "
  "noun.attribute noun.body noun.cognition noun.communication noun.event "
  "noun.feeling noun.food noun.group noun.location noun.motive noun.object "
  "noun.person noun.phenomenon noun.plant noun.possession noun.process "
  "noun.quantity noun.relation noun.shape noun.state noun.substance noun.time "
  "verb.body verb.change verb.cognition verb.communication verb.competition "
  "verb.consumption verb.contact verb.creation verb.emotion verb.motion "
  "verb.perception verb.possession verb.social verb.stative verb.weather "
  "adj.ppl"
).split()


def _part(number: int) -> str:
  """The split of every twentieth, the next, and all others."""
  return {0: "validation", 1: "test"}.get(number % 20, "train")


class WordnetGlosses(tfds.core.GeneratorBasedBuilder):
  """The 117,659 glosses of WordNet 3.0, of Debian's `wordnet-base`.

  A gloss is a definition, often with examples in quotation marks. Its label is
  the lexicographer file, one of 45 such as noun.animal. The split is by the
  synset's offset in its file.
  """

  VERSION = tfds.core.Version("1.0.0")
  PACKAGES = ("wordnet-base",)
  FOLDER = "/usr/share/wordnet"
  FILES = ("data.noun", "data.verb", "data.adj", "data.adv")

  @classmethod
  def require(cls):
    paths = [os.path.join(cls.FOLDER, file) for file in cls.FILES]
    debian.require("wordnet_glosses", cls.PACKAGES, paths)

  def _info(self):
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "text": tfds.features.Text(),
          "label": tfds.features.ClassLabel(names=LEXNAMES),
          "synset": tfds.features.Text(),  # as in "n00001740"
        }
      ),
      supervised_keys=("text", "label"),
      homepage="https://wordnet.princeton.edu",
      description=self.__doc__,
      citation="Miller 1995, WordNet: a lexical database for English",
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    parts = ("train", "validation", "test")
    return {part: self._generate_examples(part) for part in parts}

  def _generate_examples(self, part):
    for file in self.FILES:
      path = os.path.join(self.FOLDER, file)
      with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
          # wndb(5WN): offset, lexicographer file, part of speech ... | gloss;
          # the licence before the first synset is indented.
          if line.startswith(" ") or _part(int(line[:8])) != part:
            continue
          head, _, gloss = line.partition(" | ")
          offset, lexicographer, kind = head.split()[:3]
          synset = f"{kind}{offset}"
          yield (
            synset,
            {
              "text": gloss.strip(),
              "label": int(lexicographer),
              "synset": synset,
            },
          )


class Bible(tfds.core.GeneratorBasedBuilder):
  """The 31,102 verses of the King James Bible, of Debian's `bible-kjv`.

  An example is a verse; the split is by chapters, of which there are 1,189, so
  that what precedes a verse is in its split too, just before it.
  """

  VERSION = tfds.core.Version("1.1.0")
  RELEASE_NOTES = {"1.1.0": "in order; 1.0.0 had verses at random places"}
  PACKAGES = ("bible-kjv", "bible-kjv-text")
  PROGRAM = "/usr/bin/bible"

  @classmethod
  def require(cls):
    debian.require("bible", cls.PACKAGES, [cls.PROGRAM])

  def _info(self):
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "text": tfds.features.Text(),
          "verse": tfds.features.Text(),  # as in "Ge1:1"
        }
      ),
      disable_shuffling=True,
      homepage="https://packages.debian.org/bible-kjv-text",
      description=self.__doc__,
      citation="King James Bible, 1611",
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    lines = self._lines()
    parts = ("train", "validation", "test")
    return {part: self._generate_examples(lines, part) for part in parts}

  def _lines(self):
    """All verses in order, each on a line after its place."""
    done = subprocess.run(
      [self.PROGRAM, "-f", "Ge1:1-Re22:21"],
      check=True,
      capture_output=True,
      stdin=subprocess.DEVNULL,
      env={**os.environ, "LC_ALL": "C"},
    )
    return done.stdout.decode("utf-8", errors="replace").splitlines()

  def _generate_examples(self, lines, part):
    chapters = {}  # a number for each, in order
    for i, line in enumerate(lines):
      verse, text = re.fullmatch(r"(\w+:\d+) (.+)", line).groups()
      chapter = verse.partition(":")[0]
      if _part(chapters.setdefault(chapter, len(chapters))) == part:
        yield i, {"text": text, "verse": verse}
