"""Training on one GPU: our `Loop`, a bare loop and Hugging Face's Trainer; and what each technique is worth.

    python benchmarks/trainer/bench_gpu.py [--minutes 7] [--steps 5] [--only PART ...] [--out FILE.json] [--tiny]

gpu.sh runs it from a checkout alone.  `--tiny` is the same code on small models, on any machine, the CPU too.  A row is
the median of LAPS laps after a warm-up, at the micro-batch that was fastest for ours (the largest that fits where a
contestant needs more memory), one pass a step.  Rows come in order of worth until the time is up; the JSON file is
written after each.  MFU: 6N + 12 L H Q T operations a token (arXiv:2204.02311), N the parameters that it is multiplied
with; a frozen one counts 4, not 6; of NVIDIA's dense BF16 peak, where we know the device's (`budget.perf`).
"""

import argparse
import gc
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bare_machine
import hf
import torch
import torch.distributed as dist
import transformers
from bare import Bare
from corpora import Corpus, fixed
from ours import Ours, Without, late_loader, torch_loss
from setting import Setting
from sizes import SIZES, peak_of

from deepseek_trainer.contract.optimization import Optimizer, Recompute
from deepseek_trainer.tasks.language import loss as language_loss
from deepseek_trainer.training import loop
from deepseek_trainer.worker.distributed import World

Make = Callable[[Setting, Corpus], Any]
Others = dict[str, tuple[Make, bool]]  # how to make each, and whether the model is compiled
LAPS, LENGTH, LONGEST_ROW_S = 3, 1024, 60.0
GAIN = 1.02  # a larger micro-batch is tried while it brings this
LORA = ("13b", "7b", "3b")  # the largest first
BARE = partial(Bare, fused=True)


@dataclass(frozen=True, slots=True)
class Row:
    case: str
    contestant: str
    micro: int  # rows of LENGTH tokens
    tokens_per_s: float
    spread: float  # of the laps, (largest - smallest) / median
    mfu: float | None
    peak_gib: float | None


class Table:
    """Rows so far, in the file and in the terminal, and whether there is time for more."""

    def __init__(self, out: Path | None, minutes: float, device: torch.device) -> None:
        self._out, self._end, self.rows = out, time.monotonic() + 60 * minutes, list[Row]()
        self.failed: dict[str, str] = {}  # of what -> why
        self.about = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "peakFlops": peak_of(device),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "standIns": bare_machine.STOOD_IN,
        }

    @property
    def has_time(self) -> bool:
        return time.monotonic() + LONGEST_ROW_S < self._end

    def add(self, row: Row | None) -> None:
        if row is None:
            return
        self.rows.append(row)
        self._write()
        print(
            f"{row.case}, {row.contestant}, {row.micro}: {row.tokens_per_s:,.0f} tokens/s", file=sys.stderr, flush=True
        )

    def fail(self, what: str, error: Exception) -> None:
        """One that fails leaves the time to the others."""
        self.failed[what] = f"{type(error).__name__}: {error}".partition("\n")[0]
        print(f"{what} failed: {self.failed[what]}", file=sys.stderr, flush=True)
        self._write()

    def _write(self) -> None:
        if self._out:
            rows = [asdict(row) for row in self.rows]
            self._out.write_text(json.dumps({**self.about, "rows": rows, "failed": self.failed}, indent=1) + "\n")

    def markdown(self) -> str:
        lines = [
            "| case | contestant | micro-batch | tokens/s | laps | x bare | MFU | peak memory |",
            "| --- " * 8 + "|",
        ]
        bare = {row.case: row.tokens_per_s for row in self.rows if row.contestant == "bare"}
        for row in self.rows:
            ratio = f"{row.tokens_per_s / bare[row.case]:.3f}" if row.case in bare else ""
            mfu = "" if row.mfu is None else f"{row.mfu:.1%}"
            memory = "" if row.peak_gib is None else f"{row.peak_gib:.1f} GiB"
            lines.append(
                f"| {row.case} | {row.contestant} | {row.micro} | {row.tokens_per_s:,.0f} | ±{row.spread / 2:.1%} "
                f"| {ratio} | {mfu} | {memory} |"
            )
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Bench:
    table: Table
    setting: Setting  # of the first case; others differ in size
    steps: int  # of a lap

    def row(self, case: str, name: str, make: Make, setting: Setting) -> Row | None:
        """None where the memory does not suffice."""
        device = setting.world.device
        release(device)  # here, where no exception holds what the row before has had
        corpus = fixed(setting.size.vocab_size, setting.length, 4 * setting.micro)
        try:
            rates = self._laps(make, setting, corpus)
        except torch.OutOfMemoryError:
            return None
        rate, peak = statistics.median(rates), peak_of(device)
        return Row(
            case, name, setting.micro, rate, (max(rates) - min(rates)) / rate,
            mfu=rate * setting.flops / peak if peak else None,
            peak_gib=torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        )  # fmt: skip

    def _laps(self, make: Make, setting: Setting, corpus: Corpus) -> list[float]:
        if setting.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(setting.world.device)
        contestant = make(setting, corpus)
        contestant.run(3)  # allocates, and compiles
        return [contestant.run(self.steps).rate for _ in range(LAPS)]

    def sweep(self, case: str, setting: Setting, micros: Sequence[int]) -> int | None:
        """The micro-batch that is fastest for ours; None where none fits."""
        best: Row | None = None
        for micro in micros:
            if not self.table.has_time:
                break
            found = self.row(case, "ours", Ours, replace(setting, rows=micro, micro=micro))
            self.table.add(found)
            if found is None or (best and found.tokens_per_s < GAIN * best.tokens_per_s):
                break
            best = found
        return best.micro if best else None

    def fitting(self, case: str, name: str, make: Make, setting: Setting) -> None:
        """With fewer rows where the memory does not suffice."""
        while self.table.has_time and setting.micro:
            if found := self.row(case, name, make, setting):
                return self.table.add(found)
            setting = replace(setting, rows=setting.micro // 2, micro=setting.micro // 2)
        return None

    def case(self, case: str, setting: Setting, micros: Sequence[int], others: Others) -> int | None:
        """Ours, then `others`, at the micro-batch that is given back; None where none fits."""
        micro = self.sweep(case, setting, micros)
        for name, (make, compiled) in others.items() if micro else ():
            try:
                self.fitting(case, name, make, replace(setting, rows=micro, micro=micro, compiled=compiled))
            except Exception as error:
                self.table.fail(f"{case}, {name}", error)
        return micro

    def part(self, name: str) -> None:
        """`name`: of PARTS."""
        tiny, cut = self.setting.length != LENGTH, slice(2 if self.setting.length != LENGTH else None)
        size, micros, others = PARTS[name]
        if name == "lora":
            for size in ("tiny",) if tiny else LORA:
                setting = replace(self.setting, size=SIZES[size], lora=True)
                if self.case(f"LoRA, {size}", setting, micros[cut], others):
                    return
        else:
            size = "tiny" if tiny else size
            self.case(name, replace(self.setting, size=SIZES[size]), micros[cut], others)


def release(device: torch.device) -> None:
    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


LEFT_OUT = [
    f"{what} is left out: {package} is not installed"
    for what, package in {"HF Trainer": "accelerate", "ours, AdamW8bit": "bitsandbytes"}.items()
    if find_spec(package) is None
]


def there(others: Others) -> Others:
    """Those for which everything is installed."""
    return {name: other for name, other in others.items() if not any(line.startswith(name) for line in LEFT_OUT)}


EAGER: Others = there({"bare": (BARE, False), "HF Trainer": (hf.HfTrainer, False)})
COMPILED: Others = {"bare, compiled": (BARE, True), "ours, decoder compiled": (Ours, True)}
# What a technique is worth: ours with it or without it beside ours, or bare beside bare.
TECHNIQUES: Others = there(
    {
        "ours, all logits at once": (partial(Ours, logits_mebibytes=1 << 16), False),
        "ours, torch's loss": (partial(Without, module=language_loss, name="head_loss", other=torch_loss), False),
        "ours, batches made when due": (partial(Without, module=loop, name="loader", other=late_loader), False),
        "ours, recompute Selective": (partial(Ours, recompute=Recompute.SELECTIVE), False),
        "ours, recompute Full": (partial(Ours, recompute=Recompute.FULL), False),
        "ours, Muon": (partial(Ours, optimizer=Optimizer.MUON), False),
        "ours, AdamW8bit": (partial(Ours, optimizer=Optimizer.ADAMW_8BIT), False),
        "bare": (BARE, False),
        "bare, dense mask": (partial(BARE, dense_mask=True), False),
        "bare, foreach AdamW": (partial(Bare, fused=False), False),
        "bare, compiled": (BARE, True),
        "ours, decoder compiled": (Ours, True),
        "bare, dense mask, compiled": (partial(BARE, dense_mask=True), True),
    }
)

PARTS: dict[str, tuple[str, tuple[int, ...], Others]] = {
    "article-002": ("article-002", (8, 16, 32, 64), EAGER | COMPILED),
    "techniques": ("article-002", (16,), TECHNIQUES),
    "1b": ("1b", (2, 4, 8, 16), EAGER | COMPILED),
    "lora": ("", (1, 2, 4, 8), EAGER | COMPILED),
    "gpt2": ("gpt2", (8, 16, 32, 64), EAGER | COMPILED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Training on one GPU.")
    parser.add_argument("--minutes", type=float, default=7.0, help="begin no row that could end later")
    parser.add_argument("--steps", type=int, default=5, help="of a lap")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="default: all, in this order")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--tiny", action="store_true", help="small models, to try it anywhere")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    is_cuda = torch.cuda.is_available()
    if not (is_cuda or arguments.tiny):
        raise SystemExit("there is no GPU here: --tiny tries the same on the CPU")
    device = torch.device("cuda", 0) if is_cuda else torch.device("cpu")
    with tempfile.TemporaryDirectory() as place:
        backend, store = "cpu:gloo,cuda:nccl" if is_cuda else "gloo", f"file://{place}/store"
        dist.init_process_group(backend, init_method=store, rank=0, world_size=1)
        size, length = (SIZES["tiny"], 64) if arguments.tiny else (SIZES["article-002"], LENGTH)
        setting = Setting(size, length, 1, 1, World(0, 1, device), bf16=is_cuda)
        table = Table(arguments.out, arguments.minutes, device)
        for part in arguments.only:
            try:
                Bench(table, setting, arguments.steps).part(part)
            except Exception as error:
                table.fail(part, error)
        dist.destroy_process_group()
    print(", ".join(f"{key}: {value}" for key, value in table.about.items()), table.markdown(), *LEFT_OUT, sep="\n\n")
    if table.failed:
        raise SystemExit("\n".join(f"{what} failed: {why}" for what, why in table.failed.items()))


if __name__ == "__main__":
    main()
