"""The two ways in which a command ends early, and their exit status."""


class UserError(ValueError):
  """A user's mistake. The message is one line that names the mend.

  The command line prints the line and exits with status 2.
  """


class SafeStop(RuntimeError):
  """The run cannot go on; the last good checkpoint is kept. Exit status 3."""
