"""What the machine cannot hold is refused before it is loaded."""

import pytest
import torch

from deepseek_trainer.cgroup import memory_limit
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.dimensions import Dimensions
from deepseek_trainer.preflight import refuse_too_large
from loop_builders import TINY, config

CPU = torch.device("cpu")
CERTAIN = 16 * Dimensions.of_architecture(TINY).parameters  # [bytes]: weights, gradients, two moments


@pytest.mark.parametrize(
    ("file", "text", "limit"),
    [
        ("memory.max", "1073741824\n", 1 << 30),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "4096\n", 4096),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("other", "1", None),
    ],
)
def test_limit_is_what_the_kernel_says(tmp_path, file, text, limit):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert memory_limit(tmp_path) == limit


def test_model_that_its_container_cannot_hold_is_refused(tmp_path):
    (tmp_path / "memory.max").write_text(str(CERTAIN - 1))
    with pytest.raises(ConfigError, match=r"the container has .* no micro-batch is small enough"):
        refuse_too_large(config(), Dimensions.of_architecture(TINY), CPU, tmp_path)


def test_model_that_just_fits_is_not_refused(tmp_path):
    (tmp_path / "memory.max").write_text(str(CERTAIN))
    refuse_too_large(config(), Dimensions.of_architecture(TINY), CPU, tmp_path)


def test_all_processes_of_a_container_share_its_memory(tmp_path):
    (tmp_path / "memory.max").write_text(str(2 * CERTAIN - 1))
    two = config().model_copy(update={"num_proc_per_node": 2})
    with pytest.raises(ConfigError):
        refuse_too_large(two, Dimensions.of_architecture(TINY), CPU, tmp_path)


def test_container_without_a_limit_refuses_nothing(tmp_path):
    refuse_too_large(config(), Dimensions.of_architecture(TINY), CPU, tmp_path)
