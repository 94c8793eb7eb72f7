"""Nested state as named tensors and JSON, and back."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.statefile import as_numpy, decode, entries, join, split
from deepseek_trainer.tensorfile import stream

KEYS = st.text(st.sampled_from("ab./~01"), max_size=4)
TENSORS = st.builds(
    np.ones,
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(["float32", "float64", "float16", "int64", "int32", "uint8", "bool"]),
)
LEAVES = TENSORS | st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
STATES = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and (one == other).all()
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@settings(max_examples=60)
@given(state=STATES)
def test_any_state_comes_back_from_its_file_and_its_json(state: dict[str, Any]) -> None:
    tensors, rest = split(state)
    content = bytearray(b"".join(bytes(piece) for piece in stream(entries(tensors))))
    assert same(join(decode(content, "file", as_numpy), json.loads(json.dumps(rest))), state)


def test_tensors_are_aligned_whatever_their_names() -> None:
    tensors = {"a": np.ones(3, np.uint8), "b": np.ones(3, np.float64), "c": np.ones(3, np.float16)}
    assert [entry.name for entry in entries(tensors)] == ["b", "c", "a"]


def test_a_dtype_without_a_safetensors_name_is_refused_with_the_tensor() -> None:
    with pytest.raises(AssertionError, match="model/w: no safetensors name for complex64"):
        entries(split({"model": {"w": np.ones(1, np.complex64)}})[0])


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(AssertionError, match="string keys only, not 3"):
        split({"optimizer": {3: 1}})


def test_torch_tensors_come_back_bit_for_bit_and_share_the_files_memory() -> None:
    torch = pytest.importorskip("torch")
    from deepseek_trainer.statefile import as_torch

    state = {
        "w": torch.randn(3, 4).t(),  # not contiguous
        "bf16": torch.randn(5).to(torch.bfloat16),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "flags": torch.tensor([True, False]),
    }
    content = bytearray(b"".join(bytes(piece) for piece in stream(entries(split(state)[0]))))
    loaded = decode(content, "file", as_torch)
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in state.items()
    )
    loaded["w"].zero_()  # writable


def test_our_files_are_safetensors_files() -> None:
    from safetensors.numpy import load

    loaded = load(b"".join(bytes(piece) for piece in stream(entries({"a": np.arange(6).reshape(2, 3)}))))
    assert (loaded["a"] == np.arange(6).reshape(2, 3)).all()
