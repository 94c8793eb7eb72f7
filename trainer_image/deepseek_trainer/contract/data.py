"""What it is trained on."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from deepseek_trainer.contract.rules import Model, Rule
from deepseek_trainer.contract.volume import VolumePath


class DataFormat(StrEnum):
    TEXT = "Text"
    INSTRUCTION = "Instruction"


class BadRecord(StrEnum):
    FAIL = "Fail"
    SKIP = "Skip"


class DataSpec(Model):
    """What it is trained on.  Directories are read recursively in name order: .jsonl, .csv, .parquet, .txt files."""

    train: Annotated[VolumePath, Field(description="Training records.")]
    validation: Annotated[VolumePath | None, Field(description="Held-out records; default: a share of train.")] = None
    validation_fraction: Annotated[
        float | None,
        Field(
            gt=0, le=0.5, description="Share of train held out, chosen by record hash. Default 0.05 without validation."
        ),
    ] = None
    format: Annotated[
        DataFormat,
        Field(
            description="Text: every token is learned (textField; .txt: a record a file). Instruction: only answers "
            "(promptField, responseField, or messagesField; optional mustContain: the words of a right answer)."
        ),
    ] = DataFormat.TEXT
    text_field: Annotated[str, Field(min_length=1, max_length=63, description="Field of a Text record.")] = "text"
    prompt_field: Annotated[
        str, Field(min_length=1, max_length=63, description="Question of an Instruction record.")
    ] = "prompt"
    response_field: Annotated[
        str, Field(min_length=1, max_length=63, description="Answer of an Instruction record.")
    ] = "response"
    messages_field: Annotated[
        str,
        Field(
            min_length=1,
            max_length=63,
            description="Conversation of an Instruction record, where it has one: a list of messages with a role "
            "(system, user, assistant) and content. Every answer is learned.",
        ),
    ] = "messages"
    on_bad_record: Annotated[
        BadRecord,
        Field(
            description="Fail: a record that is malformed, or a file that cannot be read, ends the job before it "
            "trains. Skip: it is left out and counted; a job without any good record fails all the same.",
        ),
    ] = BadRecord.FAIL
    sequence_length: Annotated[int, Field(ge=16, le=1048576, description="Tokens in one packed row.")] = 1024
    sealed: Annotated[
        bool | None, Field(description="Encrypt the prepared data. Default: yes where checkpoint.encryption is given.")
    ] = None

    rules: ClassVar = (
        Rule(
            "!(has(self.validation) && has(self.validationFraction))",
            "give validation or validationFraction, not both",
            lambda self: self.validation is None or self.validation_fraction is None,
        ),
    )
