"""What the API server says against a request, in plain words.

Its refusals quote the values that break a rule, which may be a whole pod template as JSON, and end in a difference of
two Go structures.  People need the field and the rule.
"""

import json
from itertools import takewhile
from typing import Any, Final

from deepseek_trainer.contract.foreign import MAX_SHOWN

MAX_WORDS: Final = 1024  # [characters]
_QUOTING: Final = frozenset({"Invalid value", "Unsupported value", "Duplicate value", "Not found"})


def in_plain_words(status: dict[str, Any]) -> str:
    """The message of a metav1.Status, without the values that nobody can read."""
    causes = (status.get("details") or {}).get("causes") or ()
    if causes and all(cause.get("field") for cause in causes):
        return "; ".join(dict.fromkeys(_cause(cause) for cause in causes))[:MAX_WORDS]
    first, *others = str(status.get("message", "")).splitlines() or ("",)
    return " ".join([first, *takewhile(lambda line: "{" not in line, others)])[:MAX_WORDS]


def _cause(cause: dict[str, str]) -> str:
    """The field and the rule that it breaks, with the value if it is short."""
    message = cause.get("message", "").partition("\n")[0]
    what, _, rest = message.partition(": ")
    return f"{cause['field']}: {_without_long_value(rest) if what in _QUOTING else rest or message}"


def _without_long_value(text: str) -> str:
    """`text`, which is a value and then the rule that it breaks, without a value that is long."""
    try:
        end = json.JSONDecoder().raw_decode(text)[1]
    except ValueError:  # a Go structure
        return text if len(text) <= MAX_SHOWN else text.rpartition(": ")[2]
    return text if end <= MAX_SHOWN else text[end:].removeprefix(": ")
