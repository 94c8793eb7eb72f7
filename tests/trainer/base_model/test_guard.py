"""What a refusal says of an error that a library raised."""

import errno
from types import SimpleNamespace

import pytest

from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.tasks.language.chat import encoded
from deepseek_trainer.worker.failure import Failure


def refusal(error: BaseException, *, quoting: bool) -> str:
    with pytest.raises(ConfigError) as caught, understood("the tokenizer", quoting=quoting):
        raise error
    return str(caught.value)


class PanicException(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize("kind", [ValueError, PanicException, OSError])
def test_what_stands_in_a_text_of_the_data_is_not_told(kind: type[BaseException]) -> None:
    panic = kind("byte index 5 is not a char boundary; it is inside 'é' of `p4ss phrase`")
    assert "p4ss phrase" not in refusal(panic, quoting=False)
    assert kind.__name__ in refusal(panic, quoting=False)
    assert "p4ss phrase" in refusal(panic, quoting=True)


AcceleratorError = type("AcceleratorError", (RuntimeError,), {})
UNFORESEEN = (RuntimeError("size mismatch"), KeyError("x"), ZeroDivisionError(), UnicodeError("x"), RecursionError("x"))
OF_MACHINE = (
    MemoryError(),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOSPC, "No space left on device"),
    AcceleratorError("device-side assert"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("NCCL communicator was aborted on rank 1"),
)


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_an_error_that_nobody_foresaw_is_never_retried(error: Exception) -> None:
    with pytest.raises(ConfigError) as caught, understood("/volumes/base/model"):
        raise error
    assert Failure.of(caught.value).exit_code == 64
    assert str(caught.value).startswith("/volumes/base/model cannot be read: ")


@pytest.mark.parametrize("error", OF_MACHINE, ids=str)
def test_an_error_of_the_machine_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, understood("the base model"):
        raise error
    assert caught.value is error


def test_texts_of_the_data_are_tokenised_without_quoting() -> None:
    class Broken:
        """A tokenizer that repeats what it was given."""

        def encode_batch_fast(self, texts: list[str], **_: object) -> None:
            raise ValueError(f"cannot read {texts[0]}")

    with pytest.raises(ConfigError) as caught:
        encoded(SimpleNamespace(backend_tokenizer=Broken()), ["p4ss phrase"])
    assert "p4ss phrase" not in str(caught.value)
