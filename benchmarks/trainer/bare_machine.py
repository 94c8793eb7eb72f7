"""Lets a training step be imported where there is only torch, transformers and peft; to be imported before it.

A step seals nothing, reads no GGUF file and checks no job file, but its modules import what does.  Packages that
cannot be found become stand-ins for that: their names exist, and settings take what they are given, unchecked.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import peft  # noqa: F401 with transformers: before there are stand-ins, which they would take for the packages
import transformers  # noqa: F401

UNUSED = ("blake3", "cryptography", "gguf", "prometheus_client", "pydantic", "pydantic_core")  # by a step


class _Names(type):
    def __getattr__(cls, name: str) -> "_Names":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (StandIn,), {})

    def __getitem__(cls, _: Any) -> "_Names":
        return cls


class StandIn(metaclass=_Names):
    """A class, an enum, a decorator or a settings model: it keeps its keyword arguments as attributes."""

    def __init_subclass__(cls, **_: Any) -> None: ...

    def __init__(self, *_: Any, **given: Any) -> None:
        self.__dict__.update(given)

    def __call__(self, function: Any) -> Any:
        return function


class _Module(ModuleType):
    def __getattr__(self, name: str) -> _Names:
        return getattr(StandIn, name)  # type: ignore[no-any-return]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in UNUSED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


@contextmanager
def stand_ins() -> Iterator[None]:
    """Last of the finders: what is installed is imported as ever."""
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


with stand_ins():
    import deepseek_trainer.model.adapters
    import deepseek_trainer.training.loop  # noqa: F401

STOOD_IN = tuple(name for name in UNUSED if isinstance(sys.modules.get(name), _Module))
