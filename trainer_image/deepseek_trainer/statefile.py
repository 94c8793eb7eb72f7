"""A rank's nested state as tensors by name and one JSON tree; nothing is pickled.

A tensor's name is its path: the keys from the outside in, joined by `/`, with `~` and `/` inside a key written
as `~0` and `~1` (RFC 6901).  Takes numpy arrays and torch tensors and imports neither, so that checkpoints can
be listed, verified and decrypted where neither is installed.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from deepseek_trainer.tensorfile import SIZES, Entry, View, views

State = dict[str, Any]
AsTensor = Callable[[View], Any]

# safetensors' names of the dtypes, which numpy and torch call alike
_CODES: Final = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
}
_NAMES: Final = {code: name for name, code in _CODES.items()}


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], State]:
    """Tensors by path, and the rest, which must be JSON with string keys."""
    tensors: dict[str, Any] = {}
    return tensors, _split(state, (), tensors)


def join(tensors: Mapping[str, Any], rest: State) -> State:
    """The state that `split` took apart; changes and returns `rest`."""
    for path, tensor in tensors.items():
        *keys, last = (key.replace("~1", "/").replace("~0", "~") for key in path.split("/"))
        node = rest
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = tensor
    return rest


def _split(node: Mapping[str, Any], path: tuple[str, ...], tensors: dict[str, Any]) -> State:
    rest: State = {}
    for key, value in node.items():
        assert isinstance(key, str), f"{'/'.join(path)}: JSON has string keys only, not {key!r}"
        here = (*path, key.replace("~", "~0").replace("/", "~1"))
        if _is(value, "torch", "Tensor") or _is(value, "numpy", "ndarray"):
            tensors["/".join(here)] = value
        elif isinstance(value, Mapping) and value:
            if inner := _split(value, here, tensors):
                rest[key] = inner
        else:
            rest[key] = value
    return rest


def _is(value: object, module: str, kind: str) -> bool:
    """Whether `value` is of that type; whoever has such a value has imported the module."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, kind))


def entries(tensors: Mapping[str, Any]) -> list[Entry]:
    """What `tensorfile.stream` writes; a tensor is copied to the host only when its turn comes.

    The widest elements come first, so that each tensor is aligned in the file.
    """
    made = [_entry(name, tensors[name]) for name in sorted(tensors)]
    return sorted(made, key=lambda entry: -SIZES[entry.dtype])


def _entry(name: str, tensor: Any) -> Entry:
    dtype = str(tensor.dtype).removeprefix("torch.")
    assert dtype in _CODES, f"{name}: no safetensors name for {dtype}"
    content = partial(_torch_bytes if _is(tensor, "torch", "Tensor") else _numpy_bytes, tensor)
    return Entry(name, _CODES[dtype], tuple(tensor.shape), content)


def _torch_bytes(tensor: Any) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(sys.modules["torch"].uint8).numpy())


def _numpy_bytes(array: Any) -> memoryview:
    return memoryview(sys.modules["numpy"].ascontiguousarray(array).reshape(-1).view("uint8"))


def decode(content: bytearray, name: str, as_tensor: AsTensor) -> dict[str, Any]:
    """The tensors of a safetensors file called `name`; they share the memory of `content`."""
    return {path: as_tensor(view) for path, view in views(content, name).items()}


def as_torch(view: View) -> Any:
    import torch  # noqa: PLC0415 seconds of import that only a training rank needs

    dtype = getattr(torch, _NAMES[view.dtype])
    return (
        torch.frombuffer(view.data, dtype=dtype).reshape(view.shape)
        if view.data
        else torch.empty(view.shape, dtype=dtype)
    )


def as_numpy(view: View) -> Any:
    import numpy as np  # noqa: PLC0415 only where somebody wants arrays

    return np.frombuffer(view.data, _NAMES[view.dtype]).reshape(view.shape)
