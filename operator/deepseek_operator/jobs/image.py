"""Images, which jobs and profiles name by digest."""

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from deepseek_trainer.contract.rules import shown

# Only ASCII is allowed, because a look-alike letter would name another registry.
_DIGEST: Final = "^[a-zA-Z0-9][a-zA-Z0-9._:/-]*@sha256:[0-9a-f]{64}$"
_FIX: Final = (
    "a tag may mean another image tomorrow, so give NAME@sha256:...; "
    "`docker buildx imagetools inspect NAME:TAG` prints the digest"
)


def _by_digest(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(_DIGEST[1:-1], value):
        return value
    raise ValueError(f"{shown(value)} names no image by digest: {_FIX}")


Image = Annotated[str, BeforeValidator(_by_digest), Field(max_length=512, json_schema_extra={"pattern": _DIGEST})]
