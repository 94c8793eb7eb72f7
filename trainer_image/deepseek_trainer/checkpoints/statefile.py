"""Splits a rank's nested state into tensors by name and one JSON tree, and joins them again.  Nothing is pickled.

A tensor's name is its path: the keys from the outside in, joined by `/`, with `~` and `/` inside a key written as `~0`
and `~1` (RFC 6901).  torch is imported only where tensors are made, so that checkpoints can be listed, verified and
decrypted where it is not installed.
"""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.storage.tensorfile import SIZES, Entry

State = dict[str, Any]

# safetensors' names of torch's dtypes
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
NO_DTYPES: Final[Mapping[str, Any]] = {}
_NAMES: Final = {code: name for name, code in _CODES.items()}


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], State]:
    """The tensors by path, and the rest, which must be JSON with string keys."""
    tensors: dict[str, Any] = {}
    return tensors, _split(state, (), tensors)


def join(tensors: Mapping[str, Any], rest: State) -> State:
    """Put together what `split` took apart.  Changes and returns `rest`."""
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
        assert isinstance(key, str), f"{'/'.join(path)}: JSON has string keys only, not {shown(key)}"
        here = (*path, key.replace("~", "~0").replace("/", "~1"))
        if _is_tensor(value):
            tensors["/".join(here)] = value
        elif isinstance(value, Mapping) and value:
            if inner := _split(value, here, tensors):
                rest[key] = inner
        else:
            rest[key] = value
    return rest


def _is_tensor(value: object) -> bool:
    """Works without importing torch: a process that has a tensor has imported it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def entries(tensors: Mapping[str, Any], dtypes: Mapping[str, Any] = NO_DTYPES) -> list[Entry]:
    """Entries for `tensorfile.stream`.  A tensor is copied to the host only when its turn comes, as its dtype in
    `dtypes` if it has one there.

    Tensors with the widest elements come first, so that each is aligned in the file.
    """
    made = [_entry(name, tensors[name], dtypes.get(name, tensors[name].dtype)) for name in sorted(tensors)]
    return sorted(made, key=lambda entry: -SIZES[entry.dtype])


def _entry(name: str, tensor: Any, dtype: Any) -> Entry:
    return Entry(name, code_of(dtype), tuple(tensor.shape), partial(_bytes, tensor, dtype))


def _bytes(tensor: Any, dtype: Any) -> memoryview:
    return memory_of(tensor.detach().to(dtype).cpu().contiguous())


def memory_of(tensor: Any) -> memoryview:
    """The bytes of a contiguous tensor in the host's memory, for reading or filling."""
    return memoryview(tensor.view(-1).view(sys.modules["torch"].uint8).numpy())


def torch_dtype(code: str) -> Any:
    """The dtype that safetensors calls `code`.  Raises IntegrityError for one that no checkpoint has."""
    import torch  # noqa: PLC0415 seconds of import that only a training rank needs

    if code not in _NAMES:
        raise IntegrityError(f"a checkpoint has no tensor of type {shown(code)}", hint="restore it from a backup")
    return getattr(torch, _NAMES[code])


def code_of(dtype: Any) -> str:
    """safetensors' name of a dtype of torch.  Raises ConfigError for a dtype without one."""
    name = str(dtype).removeprefix("torch.")
    if name not in _CODES:
        raise ConfigError(f"a tensor of {name} cannot be saved", hint=f"there are: {', '.join(_CODES)}")
    return _CODES[name]
