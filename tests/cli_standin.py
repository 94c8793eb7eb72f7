"""`dstj` with stand-in workers as a process of its own: python tests/cli_standin.py run FILE."""

import sys

import dstj.run
from cli_builders import StandIns
from dstj.cli import main

if __name__ == "__main__":
    dstj.run.LocalCluster = StandIns  # type: ignore[misc]
    sys.exit(main())
