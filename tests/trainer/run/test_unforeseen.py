"""What nobody foresaw of loading the user's base model ends a rank with 64; what the machine does is tried again."""

from types import SimpleNamespace

import pytest
import torch

from deepseek_trainer.run import assembly
from deepseek_trainer.worker.failure import Failure
from support.builders.model import a_config

SCRATCH = {"architecture": {"hiddenSize": 8, "numLayers": 1, "numHeads": 1, "intermediateSize": 8, "vocabSize": 300}}
UNFORESEEN = (RuntimeError("shape '[4, 8]' is invalid for input of size 31"), KeyError("default"), IndexError("x"))
OF_MACHINE = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("NCCL communicator was aborted on rank 1"),
    OSError(5, "Input/output error"),
)


def failure(error, **changes):
    """Of a rank whose model raises `error` when it is loaded."""

    def model():
        raise error

    config = a_config(**changes)
    rank = SimpleNamespace(
        fitted=config,
        method=config.method,
        task=SimpleNamespace(model=model),
        world=SimpleNamespace(device=torch.device("cpu"), rank=0),
    )
    with pytest.raises(Exception) as caught:  # noqa: PT011  which one is what is asked
        assembly._model(rank, is_first=True)
    return Failure.of(caught.value, 0)


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_a_base_that_cannot_be_loaded_is_not_tried_again(error):
    found = failure(error)
    assert (found.exit_code, found.message.startswith("the base model cannot be read: ")) == (64, True)


@pytest.mark.parametrize("error", OF_MACHINE, ids=lambda error: type(error).__name__)
def test_what_the_machine_did_is_tried_again(error):
    assert failure(error).exit_code in (1, 75)


def test_an_error_of_a_model_from_scratch_is_ours():
    assert failure(KeyError("x"), model=SCRATCH, method={"type": "Full"}).exit_code == 1


def test_names_in_an_error_of_a_private_job_are_not_told():
    encryption = {"encryption": {"keyRef": {"secretName": "kek"}}}
    assert "p4ss" not in failure(KeyError("p4ss"), checkpoint=encryption).message
    assert "p4ss" in failure(KeyError("p4ss")).message
