"""Records a few steps of one rank on demand, to show which operations take the time.

The trace holds the names, times and shapes of operations, and single numbers that they are called with, such as a
learning rate.  It holds the content of no tensor.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from deepseek_trainer.contract.foreign import first_line

STEPS: Final = 5


class Profiler:
    """Records `STEPS` steps after each request.  A request that comes while it records is dropped.

    An error of the profiler is reported as an event and never stops the training.
    """

    def __init__(self, trace: Path, asked: Callable[[], bool], emit: Callable[..., None]) -> None:
        """`trace` is the file of the last trace, `*.json.gz`.

        `asked()` returns whether a profile was requested since the last call; `emit(event, **fields)` reports an event.
        """
        self._trace, self._asked, self._emit = trace, asked, emit
        self._recorder: torch.profiler.profile | None = None
        self._first = 0

    def before_step(self, step: int) -> None:
        """Begin or end a record, if that is due before `step` is taken."""
        is_asked = self._asked()
        if self._recorder is not None and step >= self._first + STEPS:
            self.finish(step)
        if self._recorder is None and is_asked:
            self._guarded(self._begin, step)

    def finish(self, step: int) -> None:
        """End a record that is under way.  `step` is the first step that is not in it."""
        if self._recorder is not None:
            self._guarded(self._write, step)
            self._recorder = None

    def _begin(self, step: int) -> None:
        self._recorder, self._first = torch.profiler.profile(record_shapes=True), step
        self._recorder.start()

    def _write(self, step: int) -> None:
        assert self._recorder is not None
        self._recorder.stop()
        partial = self._trace.with_name(f"partial-{self._trace.name}")
        self._recorder.export_chrome_trace(str(partial))
        partial.replace(self._trace)
        self._emit("profiled", step=self._first, steps=step - self._first, path=str(self._trace))

    def _guarded(self, act: Callable[[int], None], step: int) -> None:
        try:
            act(step)
        except Exception as error:  # of a tool beside the training
            self._recorder = None
            self._emit("profile_failed", step=step, error=f"{type(error).__name__}: {first_line(error)}")
