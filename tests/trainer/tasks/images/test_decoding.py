"""What broken bytes do to the decoder: they give pixels or a DataError, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.images import ImagesSpec
from deepseek_trainer.tasks.images.decoding import Pixels, decoded
from support.builders.images import a_picture, encoded

IMAGES = ImagesSpec(height=8, width=12, channels=3)
WHOLE = [encoded(a_picture(0)), encoded(a_picture(0, shape=(32, 32, 3)), "JPEG")]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000),
)
def test_whatever_happens_to_a_file_it_is_read_or_refused_by_name(
    content: bytes, changes: list[tuple[int, int]], cut: int
):
    mutated = bytearray(content)
    for place, value in changes:
        mutated[place % len(mutated)] = value
    found = outcome(bytes(mutated[: len(mutated) - cut % len(mutated)]))
    if isinstance(found, DataError):
        assert found.problem.startswith("x.png")
        assert found.hint
    else:
        assert (found.shape, found.dtype) == ((8, 12, 3), "uint8")


def outcome(content: bytes) -> Pixels | DataError:
    try:
        return decoded(content, "x.png", IMAGES)
    except DataError as error:
        return error


def test_a_picture_is_the_same_whenever_it_is_read():
    first, second = (decoded(WHOLE[1], "x.jpg", IMAGES) for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("content", WHOLE, ids=["png", "jpeg"])
def test_grey_and_colour_have_as_many_channels_as_the_job_wants(content: bytes):
    for channels in (1, 3):
        images = IMAGES.model_copy(update={"channels": channels})
        assert decoded(content, "x", images).shape == (8, 12, channels)
