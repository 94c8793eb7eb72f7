"""What a refusal says of an error that a library raised."""

from types import SimpleNamespace

import pytest

from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.tasks.language.chat import encoded


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


def test_texts_of_the_data_are_tokenised_without_quoting() -> None:
    class Broken:
        """A tokenizer that repeats what it was given."""

        def encode_batch_fast(self, texts: list[str], **_: object) -> None:
            raise ValueError(f"cannot read {texts[0]}")

    with pytest.raises(ConfigError) as caught:
        encoded(SimpleNamespace(backend_tokenizer=Broken()), ["p4ss phrase"])
    assert "p4ss phrase" not in str(caught.value)
