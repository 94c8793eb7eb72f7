"""LoRA on pairs of mixed length, as whole processes: `dstj run` beside Hugging Face's Trainer and TRL's packing.

    python benchmarks/trainer/bench_finetune.py MODEL... [--pairs 2000] [--passes 30] [--rounds 1] [--length 1024]
                                                [--method LoRA|Full] [--contestants "HF Trainer"]

MODEL is a directory with safetensors files, such as family_models.py makes.  Question and answer are cut from real
text; answers have log-normal lengths.  All see the same pairs in the same chat template, and about as many a step.
Contestants of `dstj run`: HF Trainer as it comes, padding each batch; the same with `group_by_length`; TRL's SFTTrainer
with `packing`.  Two figures each, tokens a second without padding, and how many times as many ours are:
steady    median of the steps after the first three
process   all tokens over the whole life of the process, from the shell's fork to its end, with preparation and export
HF's need accelerate, TRL's needs trl and datasets, which may lie in a directory of their own (PYTHONPATH).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TEXTS = HERE.parents[1] / "examples" / "texts" / "train"
LORA = {"rank": 16, "alpha": 32, "dropout": 0, "targetModules": ["q_proj", "v_proj"]}
Found = dict[str, list[tuple[float, float]]]  # tokens a second, steady and of the whole process, of each round
CONTESTANTS = ("HF Trainer", "HF, group_by_length", "TRL, packing")


def write_pairs(path: Path, count: int) -> None:
    """Answers of 4 to 400 words, half of them below 40."""
    random = np.random.default_rng(0)
    words = [word for file in sorted(TEXTS.iterdir()) for word in file.read_text(errors="replace").split()]
    with path.open("w") as file:
        for _ in range(count):
            size = int(np.clip(random.lognormal(np.log(40), 1.0), 4, 400))
            start = int(random.integers(0, len(words) - size - 12))
            question, answer = words[start : start + 12], words[start + 12 : start + 12 + size]
            pair = {"prompt": f"Go on: {' '.join(question)}", "response": " ".join(answer)}
            file.write(json.dumps(pair) + "\n")


def job(arguments: argparse.Namespace) -> dict[str, object]:
    spec = {
        "trainer": {"profile": "cpu", "numNodes": 1, "numProcPerNode": 1},
        "model": {"base": {"claimName": "base"}},
        "data": {
            "format": "Instruction",
            "train": {"claimName": "pairs", "path": "train.jsonl"},
            "validation": {"claimName": "pairs", "path": "held-out.jsonl"},
            "sequenceLength": arguments.length,
        },
        "method": {"type": "LoRA", "lora": LORA} if arguments.method == "LoRA" else {"type": "Full"},
        "optimization": {
            "maxSteps": arguments.passes, "globalBatchSize": 1, "microBatchSize": 1, "learningRate": 2e-4,
            "precision": "FP32",
        },
        "evaluation": {"intervalSteps": 1_000_000, "generations": 0},
        "export": {"formats": ["Adapter" if arguments.method == "LoRA" else "Merged"]},
        "checkpoint": {"volume": {"size": "10Gi"}},
    }  # fmt: skip
    return {
        "apiVersion": "training.dstj.io/v1alpha1", "kind": "DeepSeekTrainingJob",
        "metadata": {"name": "finetune"}, "spec": spec,
    }  # fmt: skip


def ours(root: Path, model: Path, arguments: argparse.Namespace) -> tuple[float, float]:
    home = root / "home"
    (root / "job.yaml").write_text(json.dumps(job(arguments)))
    command = [
        str(Path(sys.executable).with_name("dstj")), "run", "--plain", str(root / "job.yaml"),
        "--volume", f"base={model}", "--volume", f"pairs={root / 'pairs'}",
    ]  # fmt: skip
    seconds = timed(command, root / "ours.log", DSTJ_HOME=str(home))
    (events,) = home.rglob("events.jsonl")
    steps = [event for line in events.read_text().splitlines() if (event := json.loads(line))["event"] == "step"]
    rates = [step["tokensPerSecond"] for step in steps]
    counts = train_counts(home)
    tokens = counts["tokens"] / counts["rows"] * steps[-1]["step"]
    return statistics.median(rates[1:]), tokens / seconds


def theirs(root: Path, model: Path, name: str, arguments: argparse.Namespace) -> tuple[float, float]:
    out = root / "figures.json"
    per_pass = json.loads((root / "per_pass.json").read_text())
    command = [
        sys.executable, str(HERE / "finetune_hf.py"), name, str(model), str(root / "pairs" / "train.jsonl"),
        str(arguments.passes), str(per_pass), str(arguments.length), arguments.method, str(out),
    ]  # fmt: skip
    seconds = timed(command, root / f"{name.replace(' ', '-')}.log", HF_HUB_OFFLINE="1")
    found = json.loads(out.read_text())
    return found["steady"], found["tokens"] / seconds


def timed(command: list[str], log: Path, **environment: str) -> float:
    start = time.monotonic()
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} ended with {done.returncode}:\n{log.read_text()[-2000:]}")
    return time.monotonic() - start


def documents_per_row(home: Path) -> int:
    counts = train_counts(home)
    return round((counts["records"] - counts["dropped"]) / counts["rows"])


def train_counts(home: Path) -> dict[str, int]:
    counts: dict[str, int] = json.loads(next(home.rglob("prepared/*/manifest.json")).read_text())["counts"]["train"]
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--method", choices=("LoRA", "Full"), default="LoRA")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    arguments = parser.parse_args()
    for model in arguments.models:
        found: Found = {name: [] for name in ("ours", *arguments.contestants)}
        for turn in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as directory:
                one_round(Path(directory), model, arguments, turn, found)
        report(model.name, found)


def one_round(root: Path, model: Path, arguments: argparse.Namespace, turn: int, found: Found) -> None:
    (root / "pairs").mkdir()
    write_pairs(root / "pairs" / "train.jsonl", arguments.pairs)
    write_pairs(root / "pairs" / "held-out.jsonl", 8)
    found["ours"].append(ours(root, model, arguments))
    (root / "per_pass.json").write_text(json.dumps(documents_per_row(root / "home")))
    shutil.rmtree(root / "home")
    for name in [name for name in found if name != "ours"][:: -1 if turn % 2 else 1]:
        found[name].append(theirs(root, model, name, arguments))


def report(title: str, found: Found) -> None:
    print(f"{title:22}{'steady':>9}{'ours/it':>9}{'process':>9}{'ours/it':>9}")
    for name, laps in found.items():
        line = f"{name:22}"
        for i in (0, 1):
            rate = statistics.median(lap[i] for lap in laps)
            ratio = statistics.median(mine[i] / lap[i] for mine, lap in zip(found["ours"], laps, strict=True))
            line += f"{rate:9.1f}{ratio:9.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
