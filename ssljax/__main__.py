"""`python -m ssljax <command>`."""

import sys

from ssljax import cli

sys.exit(cli.main())
