"""Shows the live progress of `dstj run`: a panel on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deepseek_trainer.contract.foreign import one_line
from deepseek_trainer.contract.lines import say
from dstj.local.kubelet import Manifest
from dstj.screen.view import View, view

LINE_EVERY_S = 5.0


class Display(Protocol):
    """Where a run shows what it does."""

    def show(self, manifest: Manifest) -> None:
        """Show the job as it is now; called about once a second."""

    def note(self, text: str) -> None:
        """Print one line that stays."""

    def close(self) -> None: ...


def display(*, plain: bool) -> Display:
    return Lines() if plain or not sys.stdout.isatty() else Panel()


class Lines:
    """Prints a line for each change of phase, stage, restarts or checkpoint, and one every few seconds for the step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._progress_at = clock, float("-inf")
        self._seen: dict[str, str] = {}

    def show(self, manifest: Manifest) -> None:
        now = view(manifest)
        self._print_change("phase", _phase(now))
        self._print_change("restarts", f"restarts: {now.restarts}" if now.restarts != "0" else "")
        if now.phase == "Running":  # a stage from before a suspension is stale
            self._print_change("stage", now.stage)
        for notice in now.notices:
            self._print_change(notice, notice)
        self._print_change("checkpoint", f"checkpoint {now.checkpoint}" if now.checkpoint else "")
        if now.phase == "Running" and self._clock() - self._progress_at >= LINE_EVERY_S:
            self._progress_at = self._clock() if self._print_change("progress", now.progress) else self._progress_at

    def _print_change(self, fact: str, line: str) -> bool:
        """Print `line` unless it is empty, or the last one about this fact; returns whether it was printed."""
        if not line or self._seen.get(fact) == line:
            return False
        self._seen[fact] = line
        self.note(line)
        return True

    def note(self, text: str) -> None:
        say(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)

    def close(self) -> None:
        """Nothing to do: lines stay on the screen."""


class Panel:
    """Draws the same few lines anew.  Lines that must stay scroll away above them."""

    def __init__(self, console: Console | None = None) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._phase, self._noted = "", set[str]()
        self._live.start()

    def show(self, manifest: Manifest) -> None:
        now = view(manifest)
        if (line := _phase(now)) != self._phase:
            self._phase = line
            self.note(line)
        for notice in now.notices:
            if notice not in self._noted:
                self._noted.add(notice)
                self.note(notice)
        self._live.update(_panel(now), refresh=True)

    def note(self, text: str) -> None:
        self._live.console.print(f"[{time.strftime('%H:%M:%S')}] {one_line(text)}", markup=False, highlight=False)

    def close(self) -> None:
        self._live.stop()


def _phase(now: View) -> str:
    attempt = f", attempt {now.attempt}" if now.attempt else ""
    return f"{now.phase}{attempt}" + (f": {now.message}" if now.message else "")


def _panel(now: View) -> Group:
    bar = ProgressBar(total=now.max_steps or 1, completed=now.step or 0, width=40, pulse=now.step is None)
    facts = Table.grid(padding=(0, 2))
    rows = {
        "loss": now.metrics.get("loss"),
        "eval loss": now.metrics.get("eval_loss"),
        "tokens/s": now.metrics.get("tokens_per_second"),
        "left": now.eta,
        "checkpoint": now.checkpoint,
        "restarts": now.restarts,
    }
    for label, value in rows.items():
        facts.add_row(Text(label, style="dim"), value or "-")
    head = Text.assemble((now.name, "bold"), f"  {now.phase}", (f"  {now.stage}", "dim"))
    steps = Text(f"step {now.step}/{now.max_steps}" if now.step is not None else "")
    return Group(head, bar, steps, facts)
