"""Images a second that the input delivers: `python -m benchmarks.reading`.

Batches of 256 of Fashion-MNIST through the path that the trainer uses, from
memory and decoded from ArrayRecord. Prints one JSON object.

Two CPU cores, shared with other work, gave 3.4 to 3.6 million images a second
from memory and 30,000 to 36,000 from ArrayRecord.
"""

import json
import time

from ssljax.data import sources
from ssljax.data import stream


def rate(source, steps, repeats=3):
  """The best of several runs; the machine is noisy."""
  best = 0.0
  for _ in range(repeats):
    start = time.perf_counter()
    for batch in stream.batches(
      source, seed=0, start_step=0, stop_step=steps, batch_size=256
    ):
      assert len(batch["image"]) == 256
    best = max(best, 256 * steps / (time.perf_counter() - start))
  return round(best)


def main():
  memory = sources.make("fashion_mnist", split="train")
  disk = sources.make("fashion_mnist", split="train", memory_budget=0)
  print(
    json.dumps(
      {
        "memory_images_per_s": rate(memory, 2000),
        "array_record_images_per_s": rate(disk, 200),
      }
    )
  )


if __name__ == "__main__":
  main()
