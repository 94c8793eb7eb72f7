"""Our training loop beside a bare one and Hugging Face's Trainer: tokens per second, padding left out.

    python benchmarks/trainer/bench_loop.py [--size 10m] [--length 512] [--rounds 5] [--steps 2] [--ranks 1] [--compile]
                                            [--data FILE|DIRECTORY]

The same Llama, data, optimizer and precision for all.  Rows that are full, generated documents of mixed lengths, and
the records of a real corpus: ours packs them, the others pad as many documents a pass as our rows hold on average.
The contestants take turns, each round in the opposite order to the last; ratios are to the bare loop of the same
round: of tokens/s, and of tokens per second of CPU time, for a busy machine.  Threads: OMP_NUM_THREADS, by rank.
On a GPU, where there is one and --device does not say otherwise.
"""

import argparse
import copy
import logging
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import bare_machine  # noqa: F401 first
import hf
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from bare import Bare, parting
from corpora import Corpus, fixed, mixed, real
from ours import Ours
from setting import Lap, Setting
from sizes import SIZES

from deepseek_trainer.model.loading import count_parameters
from deepseek_trainer.worker.distributed import World

TEXTS = Path(__file__).resolve().parents[2] / "examples" / "texts" / "train"
COMPILERS = ("c++", "g++", "clang++")


def contestants(setting: Setting, corpus: Corpus) -> dict[str, Any]:
    kinds: dict[str, Any] = {"bare": Bare, "ours": Ours}
    if corpus.padding:
        kinds["bare, grouped by length"] = partial(Bare, is_grouped=True)
    if hf.IS_THERE and setting.world.size == 1 and not setting.compiled:
        kinds["HF Trainer"] = hf.HfTrainer
    return {name: kind(setting, corpus) for name, kind in kinds.items()}


def measured(setting: Setting, corpus: Corpus, rounds: int, steps: int) -> None:
    runs = contestants(setting, corpus)
    start = copy.deepcopy(runs["bare"].model)
    for run in runs.values():
        run.run(steps)  # the first one allocates, and compiles
    parted = {name: parting(run.model, runs["bare"].model, start) for name, run in runs.items()}
    laps: dict[str, list[Lap]] = {name: [] for name in runs}
    waits = []
    for turn in range(rounds):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            setting.world.barrier()
            laps[name].append(runs[name].run(steps))
        waits.append(runs["ours"].waited)
    if setting.world.is_lead:
        report(setting, corpus, laps, parted)
        print(f"ours waits for data: {statistics.median(waits):.2%} of the time", flush=True)


def report(setting: Setting, corpus: Corpus, laps: dict[str, list[Lap]], parted: dict[str, float]) -> None:
    packed = f"{len(corpus.documents)} documents in {len(corpus.rows)} rows, {corpus.padding:.1%} padding in ours"
    print(f"\n{corpus.name}; {packed}; {setting.documents(corpus)} documents a pass of the others")
    print(f"{'':24}{'tokens/s':>9} {'(range)':18}{'x bare':>7} {'(range)':18}{'of CPU':>7} {'(range)':18}{'parted':>8}")
    for name, each in laps.items():
        beside = list(zip(each, laps["bare"], strict=True))
        rates = spread([lap.rate for lap in each], 0, 9)
        ratios = spread([lap.rate / bare.rate for lap, bare in beside], 3, 7)
        cpu_ratios = spread([lap.cpu_rate / bare.cpu_rate for lap, bare in beside], 3, 7)
        tail = "" if corpus.padding or name == "bare" else f"{parted[name]:8.2%}"  # of the same batches
        print(f"{name:24}{rates}{ratios}{cpu_ratios}{tail}")


def spread(values: Sequence[float], digits: int, width: int) -> str:
    span = f"({min(values):.{digits}f} to {max(values):.{digits}f})"
    return f"{statistics.median(values):{width}.{digits}f} {span:18}"


def on_rank(rank: int, directory: Path, arguments: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    device = torch.device(arguments.device, rank if arguments.device == "cuda" else None)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = f"file://{directory}/rendezvous"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=arguments.ranks)
    world, size = World(rank, arguments.ranks, device), SIZES[arguments.size]
    setting = Setting(
        size, arguments.length, arguments.rows, arguments.micro or arguments.rows, world,
        arguments.bf16, arguments.compile,
    )  # fmt: skip
    if world.is_lead:
        print_setting(setting, arguments)
    count = arguments.rows * arguments.steps * (arguments.rounds + 1)
    corpora = [fixed(size.vocab_size, setting.length, count)]
    if not setting.compiled:
        corpora.append(mixed(size.vocab_size, setting.length, 4 * count))
        corpora.append(real(arguments.data, size.vocab_size, setting.length))
    for corpus in corpora:
        measured(setting, corpus, arguments.rounds, arguments.steps)
    dist.destroy_process_group()


def print_setting(setting: Setting, arguments: argparse.Namespace) -> None:
    millions, threads = count_parameters(setting.model()).total / 1e6, torch.get_num_threads()
    print(
        f"{arguments.size}, {millions:.1f} M parameters, {arguments.rows} rows of {arguments.length} a step, "
        f"{'BF16' if setting.bf16 else 'FP32'}, {arguments.device}, {arguments.ranks} ranks of {threads} threads, "
        f"torch {torch.__version__}; {arguments.rounds} rounds of {arguments.steps} steps; medians"
    )
    print("parted: weights after the warm-up from those of bare, as a share of how far they have gone", flush=True)
    if not hf.IS_THERE:
        print("HF Trainer is left out: accelerate is not installed")
    if arguments.compile:
        print(
            "HF Trainer is left out: ours and bare are compiled; so are mixed lengths, each compiled anew when padded"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Our training loop beside others.")
    parser.add_argument("--size", choices=SIZES, default="10m")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=4, help="in a step, over all ranks")
    parser.add_argument("--micro", type=int, help="rows in a pass (default: all of them)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of a contestant in a round")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", default=torch.cuda.is_available(), help="on a GPU: always")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, default=TEXTS, help="real corpus: Text records (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile for ours and bare")
    arguments = parser.parse_args()
    if arguments.compile and not any(map(shutil.which, COMPILERS)):
        raise SystemExit("torch.compile needs a C++ compiler, and there is none")
    directory = Path(tempfile.mkdtemp(prefix="dstj-bench-"))
    try:
        mp.spawn(on_rank, (directory, arguments), nprocs=arguments.ranks)  # type: ignore[no-untyped-call]
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
