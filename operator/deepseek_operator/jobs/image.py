"""Images, which jobs and profiles name by digest."""

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from deepseek_trainer.contract.foreign import shown

# Only ASCII is allowed, because a look-alike letter would name another registry.
_BY_DIGEST: Final = "^[a-zA-Z0-9][a-zA-Z0-9._:/-]*@sha256:[0-9a-f]{64}$"
_RULE: Final = (
    "must be NAME@sha256:DIGEST, since a tag may mean another image tomorrow; "
    "`docker buildx imagetools inspect NAME:TAG` prints the digest"
)


def _by_digest(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(_BY_DIGEST[1:-1], value):
        return value
    raise ValueError(f"{_RULE}; given: {shown(value)}")


# A rule and no pattern, because the API server says of a pattern only that it does not match.
Image = Annotated[
    str,
    BeforeValidator(_by_digest),
    Field(
        max_length=512,
        json_schema_extra={"x-kubernetes-validations": [{"rule": f"self.matches('{_BY_DIGEST}')", "message": _RULE}]},
    ),
]
