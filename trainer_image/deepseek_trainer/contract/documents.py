"""How JSON is written: whatever it is for, any reader of RFC 8259 reads it."""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: object, **options: Any) -> str:
    """The JSON of `value`, by the `options` of json.dumps.

    A number that is NaN or infinite, which JSON cannot say, becomes null.  Raises what json.dumps raises.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)  # noqa: TID251  the one place
    except ValueError as error:
        return json.dumps(_finite_or(error, value), allow_nan=False, **options)  # noqa: TID251


def _finite_or(error: ValueError, value: object) -> Any:
    try:
        return finite(value)
    except RecursionError:  # it holds itself
        raise error from None


def finite(value: Any) -> Any:
    """`value` with None for each number in it that is NaN or infinite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
