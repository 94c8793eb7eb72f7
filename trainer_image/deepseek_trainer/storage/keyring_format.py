"""The JSON of keyrings, checked by a model before anything is made of it.  Pure: bytes in, bytes out.

Format 2 wraps each DEK once for each recipient, commits to it, and is authenticated; format 1 is read only.
docs/checkpoint-format.md describes both.
"""

from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.foreign import shown

FORMAT: Final = "dstj-keyring/2"
FORMAT_1: Final = "dstj-keyring/1"
MAX_BYTES: Final = 1 << 18  # of a keyring; one data key for one recipient takes about 1 KiB
_MAX_PROBLEM: Final = 200  # [characters]

KeyId: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
KekId: TypeAlias = Annotated[str, Field(pattern=r"^[0-9A-Za-z._:/@-]+$", max_length=200)]
Job: TypeAlias = Annotated[str, Field(pattern=r"^[-0-9a-z.]+/[-0-9a-z.]+$", max_length=512)]
Time: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]
Wrapped: TypeAlias = Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$", max_length=8192)]
Digest: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    """All values are strings, lists and objects; what this version does not know is refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class DataKey(_Part):
    """What a keyring says of a DEK in the clear."""

    id: KeyId
    created: Time
    commitment: Digest  # of the DEK: no other key has the same


class Recipient(_Part):
    """A KEK that opens the keyring: each DEK, by its id, wrapped by it."""

    kek: KekId
    created: Time
    wrapped: dict[KeyId, Wrapped]


class Content(_Part):
    """A keyring of format 2.  After shredding it has neither keys nor recipients."""

    format: Literal["dstj-keyring/2"]
    job: Job
    primary: KeyId | None
    keys: Annotated[tuple[DataKey, ...], Field(max_length=64)]
    recipients: Annotated[tuple[Recipient, ...], Field(max_length=64)]
    mac: Digest | None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        ids = _checked_ids(self.primary, self.keys)
        if len({each.kek for each in self.recipients}) != len(self.recipients):
            raise ValueError("two recipients are one key-encryption key")
        if any(each.wrapped.keys() != ids for each in self.recipients):
            raise ValueError("not every recipient has every key")
        if bool(ids) != bool(self.recipients) or bool(ids) != bool(self.mac):
            raise ValueError("keys, recipients and mac go together")
        return self

    def authenticated(self) -> bytes:
        """What `mac` is made of: all else, as JSON with sorted keys and without spaces."""
        return json_text(self.model_dump(exclude={"mac"}), sort_keys=True, separators=(",", ":")).encode()

    def to_json(self) -> bytes:
        return json_text(self.model_dump(), indent=2).encode() + b"\n"

    @property
    def keks(self) -> tuple[str, ...]:
        """Ids of the KEKs that open it."""
        return tuple(each.kek for each in self.recipients)


class WrappedKey1(BaseModel):
    """A DEK as format 1 has it."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: KeyId
    wrapped: Wrapped
    kek: KeyId
    created: Time


class Content1(BaseModel):
    """A keyring of format 1."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: Literal["dstj-keyring/1"]
    job: Job
    primary: KeyId | None
    keys: Annotated[tuple[WrappedKey1, ...], Field(max_length=64)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        _checked_ids(self.primary, self.keys)
        return self

    @property
    def keks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key.kek for key in self.keys))


def shredded(job: str) -> Content:
    return Content(format=FORMAT, job=job, primary=None, keys=(), recipients=(), mac=None)


def parsed_keyring(raw: bytes) -> Content | Content1:
    """Raises ValueError, whose message is one line that may be shown, for what is no keyring."""
    try:
        return _KEYRING.validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(shown(f"{place}: {first['msg']}" if place else first["msg"], _MAX_PROBLEM)) from None


_KEYRING: Final[TypeAdapter[Content | Content1]] = TypeAdapter(
    Annotated[Content | Content1, Field(discriminator="format")]
)


def _checked_ids(primary: str | None, keys: tuple[DataKey, ...] | tuple[WrappedKey1, ...]) -> set[str]:
    ids = {key.id for key in keys}
    if len(ids) != len(keys):
        raise ValueError("two keys have one id")
    if (primary not in ids) if ids else (primary is not None):
        raise ValueError("primary names none of the keys")
    return ids
