"""`dstj` with stand-in workers as a process of its own: python tests/cli_standin.py run FILE."""

import sys
from dataclasses import replace

import dstj.commands.run
from cli_builders import StandIns
from dstj.cli import main

TICK_S = 0.05

if __name__ == "__main__":
    dstj.commands.run.LocalCluster = StandIns  # type: ignore[misc]
    dstj.commands.run.TICK_S = TICK_S
    dstj.commands.run.SETTINGS = replace(dstj.commands.run.SETTINGS, progress_interval_s=TICK_S, resync_s=TICK_S)
    sys.exit(main())
