"""The benchmarks of one GPU on a machine with little more than torch, transformers and peft."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ABSENT = (
    "bitsandbytes",
    "blake3",
    "cryptography",
    "deepspeed",
    "gguf",
    "pydantic",
    "pydantic_core",
    "rouge_score",
    "tink",
)

STEP = """
import importlib.util, sys
absent = sys.argv[1:]
assert not [name for name in absent if importlib.util.find_spec(name)]
import bench_gpu, bench_loop
import torch
import torch.distributed as dist
from bare_machine import STOOD_IN
from corpora import fixed
from setting import Setting
from sizes import SIZES
from deepseek_trainer.worker.distributed import World

assert {"cryptography", "gguf", "pydantic"} <= set(STOOD_IN), STOOD_IN
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for lora in (False, True):
    setting = Setting(SIZES["tiny"], 16, 2, 2, World(0, 1, torch.device("cpu")), bf16=False, lora=lora)
    for kind in (bench_gpu.Ours, bench_loop.Bare):
        assert kind(setting, fixed(512, 16, 8)).run(1).tokens == 32
"""


def packages_without(absent: tuple[str, ...], place: Path) -> Path:
    """A directory with our packages but those, which neither imports nor a look at what is installed can find."""
    for entry in Path(torch.__file__).parents[1].iterdir():
        if not entry.name.partition("-")[0].startswith(absent):
            (place / entry.name).symlink_to(entry)
    return place


@pytest.mark.timeout(300)
def test_a_step_runs_where_there_is_no_bitsandbytes_and_no_pydantic(tmp_path: Path):
    paths = (packages_without(ABSENT, tmp_path), ROOT / "trainer_image", ROOT / "benchmarks" / "trainer")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", STEP, *ABSENT], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
