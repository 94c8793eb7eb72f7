"""Turns Python values into a JSON tree and numbered tensors, for a state whose layout is not ours.

Nothing is pickled.  A tree can only become values of the types below and of the classes that the caller names.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final

import torch
from torch import Tensor

from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.contract.foreign import shown

Classes = Mapping[str, type]  # by the name that the tree has for them
_PLAIN: Final = (type(None), bool, int, float, str)
_KINDS: Final[Mapping[type, str]] = {dict: "dict", OrderedDict: "ordered", tuple: "tuple", torch.Size: "size"}
_MAKE: Final[Mapping[str, Callable[[Any], Any]]] = {kind: class_ for class_, kind in _KINDS.items()}


class Packer:
    """Takes values apart.  A tensor that is referred to twice is stored once."""

    def __init__(self, classes: Classes) -> None:
        self._names = {class_: name for name, class_ in classes.items()}
        self._numbers: dict[int, int] = {}  # by id
        self.tensors: dict[str, Tensor] = {}  # by number; keeps them alive, and with them their ids

    def tree(self, value: Any) -> Any:
        """The JSON of a value.  A list stays a list, anything else with parts becomes {kind: parts}.

        Raises ConfigError for a type that is not known.
        """
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            return {"tensor": self._number(value)}
        if type(value) is list:
            return [self.tree(each) for each in value]
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        return self._parts(value)

    def _parts(self, value: Any) -> Any:
        class_ = type(value)
        if kind := _KINDS.get(class_):
            parts = value.items() if isinstance(value, Mapping) else value
            return {kind: [self.tree(list(each) if isinstance(value, Mapping) else each) for each in parts]}
        if name := self._names.get(class_):
            return {name: self.tree(value.value if isinstance(value, Enum) else vars(value))}
        raise ConfigError(f"a {class_.__module__}.{class_.__qualname__} cannot be saved")

    def _number(self, tensor: Tensor) -> int:
        number = self._numbers.setdefault(id(tensor), len(self.tensors))
        self.tensors[str(number)] = tensor
        return number


def unpacked(tree: Any, tensors: Mapping[str, Tensor], classes: Classes) -> Any:
    """The value that a Packer took apart."""
    if isinstance(tree, list):
        return [unpacked(each, tensors, classes) for each in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, parts),) = tree.items()
    if kind == "tensor":
        return tensors[str(parts)]
    if leaf := _LEAVES.get(kind):
        return leaf(parts)
    value = unpacked(parts, tensors, classes)
    if make := _MAKE.get(kind):
        return make(value)
    return _instance(classes[kind], value)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise IntegrityError(
            f"torch has no dtype {shown(name)}", hint="the checkpoint is of another version, or damaged"
        )
    return dtype


_LEAVES: Final[Mapping[str, Callable[[Any], Any]]] = {"dtype": _dtype, "float": float}


def _instance(class_: type, value: Any) -> Any:
    if issubclass(class_, Enum):
        return class_(value)
    made = object.__new__(class_)
    made.__dict__.update(value)
    return made
