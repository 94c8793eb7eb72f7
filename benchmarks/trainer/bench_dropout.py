"""What dropout by rows costs beside nn.Dropout: `OMP_NUM_THREADS=1 python benchmarks/trainer/bench_dropout.py`.

Forward and backward of one layer of dropout, eager, on the CPU.  The two take turns on the same tensor, so that a busy
machine slows both alike; milliseconds are of the process's CPU time, medians.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from deepseek_trainer.model.dropout import dropped, rows_drawn

ROUNDS = 21
RATE = 0.1
SHAPES = [(8, 512, 576), (4, 256, 512), (1, 2048, 2048)]

Dropout = Callable[[Tensor], Tensor]


def milliseconds(dropout: Dropout, hidden: Tensor, grown: Tensor) -> tuple[float, float]:
    """Of the forward pass, and of both passes."""
    started = time.process_time()
    output = dropout(hidden)
    between = time.process_time()
    output.backward(grown)
    hidden.grad = None
    return 1e3 * (between - started), 1e3 * (time.process_time() - started)


def compared(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, list[float]]:
    """Medians by contestant; the first round is not counted."""
    hidden, grown = torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(shape, dtype=dtype)
    contestants: dict[str, Dropout] = {"nn.Dropout": nn.Dropout(RATE), "by rows": lambda h: dropped(h, RATE, 3)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    with rows_drawn(np.arange(len(hidden), dtype=np.uint64)):
        for _ in range(ROUNDS + 1):
            for name, dropout in contestants.items():
                times[name].append(milliseconds(dropout, hidden, grown))
    return {name: [statistics.median(part) for part in zip(*found[1:], strict=True)] for name, found in times.items()}


def main() -> None:
    print(f"{'shape':>16} {'type':>9}  {'nn.Dropout':>16}  {'by rows':>16}   [ms of CPU: forward, both]")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            columns = [f"{forward:7.2f} {both:8.2f}" for forward, both in compared(shape, dtype).values()]
            name = " x ".join(map(str, shape))
            print(f"{name:>16} {str(dtype).removeprefix('torch.'):>9}  {columns[0]:>16}  {columns[1]:>16}")


if __name__ == "__main__":
    main()
