"""Log lines are JSON objects, one for each event: printable and bounded, whatever others put into a message."""

import logging
from datetime import UTC, datetime
from typing import Final

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.foreign import one_line

MAX_TRACEBACK: Final = 16384  # [characters]


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": one_line(record.getMessage()),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-MAX_TRACEBACK:]
        return json_text(line)


def configure(level: str) -> None:
    """Log everything to stderr as JSON.  kopf logs warnings only, since it would log each event that it sees."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)
