"""Fields that would change what is learned, and of which nothing is made: they are refused, never passed over.

Whoever wants them left out says so in `data.ignoredFields`.  Errors name fields that are known here, never the content.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.data.fields import Fields, is_empty


@dataclass(frozen=True, slots=True)
class Known:
    """Why a field is refused, the way out, and which of its values are."""

    why: str
    way_out: str = ""
    is_meant: Callable[[Any], bool] = lambda value: not is_empty(value)


def is_switch(value: Any) -> bool:
    """Whether it says no more than that something was on, as a field `reasoning` does in some data."""
    return value in ("on", "off")


def _is_false(value: Any) -> bool:
    return value in (0, False) or (isinstance(value, str) and value.strip().lower() in ("0", "0.0", "false"))


def _is_true(value: Any) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() == "true")


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


def _is_uneven(value: Any) -> bool:
    """Whether it is a weight that not every record has."""
    return value is not True and value not in (1, "1", "1.0")


_MEDIA: Final = Known("pictures, videos and sound are not read with texts")
_MASK: Final = Known("which tokens are learned follows from the roles", 'set "weight": 0 in messages that are not')
_LEFT_OUT: Final = Known("it says that the record is not learned", "take the record away", _is_false)
_BOOLEAN: Final = Known("it says whether an answer is a good one, and every answer is learned", "", _is_boolean)
_PAIR: Final = Known("it belongs to a pair of answers", "set data.format: Preference")
_BEGUN: Final = Known("it begins an answer that somebody else ends", "write prompt and response as they are", _is_true)
_PART: Final = Known("it is a part of the prompt or of the answer", "write it into the prompt or the response")


_MASKED: Final = {
    **dict.fromkeys(["mask", "loss_mask", "loss_scale", "train_detail"], _MASK),
    **dict.fromkeys(["train", "loss"], _LEFT_OUT),
    "weight": Known("records have no weight", 'set "weight": 0 in messages that are not learned', _is_uneven),
}
_MANY_MEDIA: Final = dict.fromkeys(["images", "videos", "audios"], _MEDIA)
_OF_RECORDS: Final = {
    **_MASKED,
    **_MANY_MEDIA,
    **dict.fromkeys(["image", "video", "audio"], _MEDIA),
    **dict.fromkeys(["label", "kto_tag"], _BOOLEAN),
    **dict.fromkeys(["prefix", "suffix"], _PART),
    "function_call": _PART,
    "chat_template_kwargs": Known("it changes what the chat template writes"),
}
_PAIRS: Final = dict.fromkeys(["chosen", "rejected", "rejected_response", "rejected_messages"], _PAIR)
_REFUSED: Final[Mapping[DataFormat, Mapping[str, Known]]] = {
    DataFormat.TEXT: _MASKED | _MANY_MEDIA,
    DataFormat.INSTRUCTION: _OF_RECORDS | _PAIRS,
    DataFormat.PREFERENCE: _OF_RECORDS | {"rejected_messages": _PAIRS["rejected_messages"]},
}
_IN_MESSAGES: Final = {
    **dict.fromkeys(["mask", "loss_mask", "loss_scale", "train_detail"], _MASK),
    **_MANY_MEDIA,
    **dict.fromkeys(["image", "video", "audio"], _MEDIA),
    **dict.fromkeys(["prefix", "partial"], _BEGUN),
    **dict.fromkeys(["chosen", "rejected"], _PAIR),
    "tools": Known("tools belong to the record", "give the record a field 'tools'"),
    "refusal": Known("it is an answer beside the content", "write it into the content"),
    "name": Known("chat templates do not write who speaks", "write the name into the content"),
}


_SETTINGS: Final = {
    DataFormat.TEXT: ("text_field",),
    DataFormat.INSTRUCTION: ("prompt_field", "response_field", "messages_field"),
    DataFormat.PREFERENCE: ("prompt_field", "messages_field", "chosen_field", "rejected_field"),
}


def refused(spec: DataSpec) -> Mapping[str, Known]:
    """What records of the job cannot have, by name.  Whoever learns one answer of a pair leaves out the other."""
    named = {getattr(spec, setting) for setting in _SETTINGS[spec.format]} | set((spec.fields or {}).values())
    left = named | (_PAIRS.keys() if named & _PAIRS.keys() else set())
    return {name: known for name, known in _REFUSED[spec.format].items() if name not in left}


def refuse_in_record(record: Fields, known: Mapping[str, Known]) -> None:
    """Raise DataError for a field that is one of the `refused`, and was not read."""
    _refuse(record, known)


def refuse_in_message(message: Fields) -> None:
    """Raise DataError for a field that messages cannot have, of those that were not read."""
    _refuse(message, _IN_MESSAGES)


def refuse_unread(fields: Fields, names: Iterable[str], repeated: Iterable[str] = ()) -> None:
    """Raise DataError if one of `names` says something, other than `repeated` texts, and was not read."""
    left, known = fields.unread(), {text.strip() for text in repeated}
    for name in names:
        value = left.get(name)
        is_text = isinstance(value, str) and value.strip() not in known and not is_switch(value)
        if is_text or isinstance(value, list | dict):
            _refuse_field(fields.place, name, "another field was read in its place", "take one of them away")


def _refuse(fields: Fields, known: Mapping[str, Known]) -> None:
    for name, value in fields.unread().items():
        if name in known and known[name].is_meant(value):
            _refuse_field(fields.place, name, known[name].why, known[name].way_out)


def _refuse_field(place: str, name: str, why: str, way_out: str) -> NoReturn:
    raise DataError(
        f"{place}: field {shown(name)} cannot be used: {why}",
        hint=f"{way_out and f'{way_out}, or '}leave it out by data.ignoredFields: [{name}]",
    )
