"""Values as JSON and tensors: all that is taken apart can be put together, and nothing else can be."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.checkpoints.packed import Packer, unpacked
from deepseek_trainer.contract.errors import ConfigError, IntegrityError


class Stage(IntEnum):
    ONE = 1


@dataclass
class Span:
    start: int
    tensor: torch.Tensor | None = None


CLASSES = {"Stage": Stage, "Span": Span}
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.integers() | st.text() | st.tuples(st.integers(), st.text())
leaves = plain | st.just(Stage.ONE) | st.builds(Span, st.integers()) | st.just(torch.float16)
values = st.recursive(
    leaves,
    lambda parts: (
        st.lists(parts)
        | st.lists(parts).map(tuple)
        | st.lists(st.integers(0, 2**62)).map(torch.Size)
        | st.dictionaries(keys, parts)
        | st.dictionaries(keys, parts).map(OrderedDict)
    ),
    max_leaves=12,
)


def there_and_back(value: Any) -> Any:
    packer = Packer(CLASSES)
    tree = json.loads(json.dumps(packer.tree(value)))
    return unpacked(tree, packer.tensors, CLASSES)


@given(values)
def test_what_is_taken_apart_comes_back_as_it_was_with_its_types(value: Any) -> None:
    back = there_and_back(value)
    assert back == value
    assert repr(back) == repr(value), "1 is not True, an OrderedDict no dict, a Size no tuple"


def test_tensors_are_numbered_and_one_that_two_refer_to_stays_one() -> None:
    tensor = torch.arange(3)
    one, other = there_and_back([{0: tensor}, Span(1, tensor)])
    assert one[0] is other.tensor
    assert torch.equal(one[0], tensor)


def test_a_parameter_comes_back_as_its_tensor() -> None:
    assert torch.equal(there_and_back(torch.nn.Parameter(torch.ones(2))), torch.ones(2))


def test_a_type_that_nobody_named_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"fractions\.Fraction cannot be saved"):
        there_and_back({"lr": Fraction(1, 3)})


def test_a_tree_makes_no_class_that_the_caller_does_not_name() -> None:
    with pytest.raises(KeyError):
        unpacked({"Span": {"dict": []}}, {}, {})


def test_a_tree_reaches_nothing_of_torch_but_its_dtypes() -> None:
    with pytest.raises(IntegrityError, match="torch has no dtype 'load'"):
        unpacked({"dtype": "load"}, {}, {})
