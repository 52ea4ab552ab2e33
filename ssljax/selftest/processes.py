"""Runs of several processes."""

import itertools
import time

from ssljax.selftest import trial as trial_lib

_HEARTBEAT = 10  # seconds


def multihost(trial, **unused):
  """Two processes: the numbers of one; and one of them is killed."""
  slow = ["--config.steps=24", "--config.checkpoint.every_steps=8", *trial.slow]
  knn = [*slow, *trial.evaluated]
  one = trial.run("one", "--config.mesh.data=2", *knn, devices=2).figures
  both = trial.end_both(trial.start_both("two", *knn), "two")
  statuses = [ended.status for ended in both]
  trial.expect("two processes end well", statuses == [0, 0], statuses)
  if any(statuses):
    trial.say(both[0].stderr[-2000:] + both[1].stderr[-2000:])
    return {}
  steps = range(1, one["steps"] + 1)
  off = trial_lib.apart(trial.losses("one"), trial.losses("two"), steps=5)
  trial.expect("losses of 5 steps are within 1e-5 of one's", off < 1e-5, off)
  _expect_shares(trial, steps, "two", "one")
  sha = both[0].figures["state_sha256"]
  same = sha == both[1].figures["state_sha256"]
  trial.expect("both have the same state", same)
  if one["knn"] is not None:
    knns = [ended.figures["knn"] for ended in both]
    near = knns[0] == knns[1] and abs(knns[0] - one["knn"]) < 0.01
    trial.expect("kNN is within .01 of one's", near, (*knns, one["knn"]))
  killed = trial.start_both("killed", *slow, heartbeat=_HEARTBEAT)
  target = trial.rng.randint(1, max(1, one["steps"] - 5))
  trial_lib.wait(killed[0], lambda: trial.last_step("killed") >= target)
  killed[1].kill()
  start = time.perf_counter()
  survivor = trial.end_both(killed, "killed")[0].status
  seconds = round(time.perf_counter() - start, 1)
  trial.say(f"one was killed after step {target}; {trial.steps('killed')}")
  trial.expect("the other ends, and not well", survivor != 0, survivor)
  in_time = seconds < _HEARTBEAT + 5  # and the time that it takes to end
  trial.expect("within the heartbeat", in_time, f"{seconds} s")
  again = trial.end_both(trial.start_both("killed", *slow), "killed")
  statuses = [ended.status for ended in again]
  trial.expect("a restart goes on to the end", statuses == [0, 0], statuses)
  if not any(statuses):
    now = again[0].figures["state_sha256"]
    trial.expect("the state is the same to the bit", now == sha, now)
  return {"largest_difference": off, "survivor": survivor, "ended_in": seconds}


def elastic(trial, **unused):
  """Eight devices, then two, then two processes of one."""
  flags = ["--config.steps=30", *trial.slow]
  trial.run("whole", *flags, devices=8)
  for devices, stop in ((8, 8), (2, 16)):
    trial.stop("elastic", stop, *flags, devices=devices)
    trial.say(f"{devices} devices up to step {trial.last_step('elastic')}")
  both = trial.end_both(trial.start_both("elastic", *flags), "elastic")
  statuses = [ended.status for ended in both]
  trial.expect("two processes end well", statuses == [0, 0], statuses)
  there = trial.losses("whole")
  off = trial_lib.apart(there, trial.losses("elastic"))
  # Rounding, which differs with the devices, grows from step to step.
  trial.expect("losses are within 1e-4", off < 1e-4, off)
  _expect_shares(trial, there, "elastic", "whole")
  return {"largest_difference": off}


def _expect_shares(trial, steps, name, other):
  """What the processes saw, joined, is what one alone sees."""
  seen = [trial.batches(name, process, column=2) for process in range(2)]
  whole = trial.batches(other, column=2)
  complete = True
  for step in steps:
    parts = [part[step] for part in seen if step in part]
    once = all(len(part) == 1 for part in parts)
    joined = {",".join(words) for words in itertools.product(*parts)}
    complete &= once and joined == whole[step]
  trial.expect("no example is skipped or seen twice", complete)


def sigterm(trial):
  """SIGTERM to one of two processes: both save the same step."""
  both = trial.start_both("terminated_two")
  target = trial.rng.randint(1, 10)
  name = "terminated_two"
  trial_lib.wait(both[0], lambda: trial.last_step(name) >= target)
  both[1].terminate()
  statuses = [ended.status for ended in trial.end_both(both, name)]
  last, saved = trial.last_step(name), trial.steps(name)
  trial.expect("both of two end with 143", statuses == [143, 143], statuses)
  trial.expect("no step of two is lost", saved[-1:] == [last], (saved, last))
