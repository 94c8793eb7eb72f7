"""Nested state as named tensors and JSON, and back."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from deepseek_trainer.checkpoints.statefile import entries, join, split
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.tensorfile import stream

KEYS = st.text(st.sampled_from("ab./~01"), max_size=4)
DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
TENSORS = st.builds(
    lambda shape, dtype: torch.ones(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
)
LEAVES = TENSORS | st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
STATES = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)
)


def file_of(tensors: dict[str, Any]) -> bytes:
    return b"".join(stream(entries(tensors)))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@settings(max_examples=60)
@given(state=STATES)
def test_any_state_comes_back_from_its_file_and_its_json(state: dict[str, Any]) -> None:
    tensors, rest = split(state)
    assert same(join(load(file_of(tensors)), json.loads(json.dumps(rest))), state)


def test_tensors_are_aligned_whatever_their_names() -> None:
    dtypes = {"a": torch.uint8, "b": torch.float64, "c": torch.float16}
    tensors = {name: torch.ones(3, dtype=dtype) for name, dtype in dtypes.items()}
    assert [entry.name for entry in entries(tensors)] == ["b", "c", "a"]


def test_a_dtype_without_a_safetensors_name_is_refused_with_the_tensor() -> None:
    with pytest.raises(ConfigError, match="a tensor of complex64 cannot be saved"):
        entries(split({"model": {"w": torch.ones(1, dtype=torch.complex64)}})[0])


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(AssertionError, match="string keys only, not 3"):
        split({"optimizer": {3: 1}})


def test_tensors_come_back_bit_for_bit_whatever_their_layout() -> None:
    state = {
        "w": torch.randn(3, 4).t(),  # not contiguous
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    assert same(load(file_of(split(state)[0])), state)
