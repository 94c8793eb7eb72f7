"""`dstj` with stand-in workers as a process of its own: python tests/support/fakes/dstj_standin.py run FILE."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

import dstj.commands.run
from dstj.cli import main
from support.builders.cli import StandIns

TICK_S = 0.05

if __name__ == "__main__":
    dstj.commands.run.LocalCluster = StandIns  # type: ignore[misc]
    dstj.commands.run.TICK_S = TICK_S
    dstj.commands.run.SETTINGS = replace(dstj.commands.run.SETTINGS, progress_interval_s=TICK_S, resync_s=TICK_S)
    sys.exit(main())
