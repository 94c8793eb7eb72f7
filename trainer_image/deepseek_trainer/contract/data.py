"""What it is trained on."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from deepseek_trainer.contract.images import ImagesSpec
from deepseek_trainer.contract.mixture import BLOCK, Curriculum, MixSource
from deepseek_trainer.contract.rules import FREE, Model, Rule
from deepseek_trainer.contract.volume import VolumePath

LENGTH: Final = 1024  # [tokens] of a row, where the job says nothing
# What `fields` gives other names to: the rest of a record, and the parts of its messages.
MAPPED: Final = ("input", "system", "history", "tools", "reasoning", "weight", "role", "content")

FieldName = Annotated[str, Field(min_length=1, max_length=63)]


class DataFormat(StrEnum):
    TEXT = "Text"
    INSTRUCTION = "Instruction"
    PREFERENCE = "Preference"
    IMAGES = "Images"
    AUTO = "Auto"


class Encoding(StrEnum):
    """How a file of text spells its letters; names of the IANA."""

    UTF_8 = "UTF-8"
    UTF_16 = "UTF-16"
    GB18030 = "GB18030"
    BIG5 = "Big5"
    SHIFT_JIS = "Shift_JIS"
    EUC_JP = "EUC-JP"
    EUC_KR = "EUC-KR"
    WINDOWS_1251 = "Windows-1251"
    WINDOWS_1252 = "Windows-1252"
    ISO_8859_1 = "ISO-8859-1"


class BadRecord(StrEnum):
    FAIL = "Fail"
    SKIP = "Skip"


class MultiTurn(StrEnum):
    EACH_ANSWER = "EachAnswer"
    LAST_ANSWER = "LastAnswer"


class LongRecords(StrEnum):
    DROP = "Drop"
    CUT = "Cut"
    SPLIT = "Split"


_LONG_RECORDS: Final = {  # where the job says nothing
    DataFormat.TEXT: LongRecords.SPLIT,
    DataFormat.INSTRUCTION: LongRecords.CUT,
    DataFormat.PREFERENCE: LongRecords.DROP,
}


class DataSpec(Model):
    """What it is trained on.  Directories are read recursively, by name.

    Texts: .jsonl, .json, .csv, .tsv, .parquet, .txt, each also .gz or .zst.  Images: .png, .jpg, .parquet.
    """

    train: Annotated[VolumePath | None, Field(description="Training records.")] = None
    sources: Annotated[
        tuple[MixSource, ...] | None,
        Field(min_length=2, max_length=16, description="Several places of training records, instead of train."),
    ] = None
    curriculum: Annotated[
        Curriculum | None, Field(description="Easy rows first, in the first epoch of each source. Default: shuffled.")
    ] = None
    balance_by: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=63,
            description="Field that holds a record's class: records of every class are drawn as often, however few "
            "there are. Default: classes play no part.",
        ),
    ] = None
    validation: Annotated[
        VolumePath | None, Field(description="Held-out records; default: a share of train or of all sources.")
    ] = None
    validation_fraction: Annotated[
        float | None,
        Field(
            ge=0,
            le=0.5,
            description="Share of train held out, chosen by record hash; 0: nothing is held out and nothing evaluated. "
            "Default 0.05 without validation.",
        ),
    ] = None
    format: Annotated[
        DataFormat,
        Field(
            description="Text: every token is learned (textField; .txt: a record a file). Instruction: only answers "
            "(promptField, responseField, or messagesField; optional mustContain: the words of a right answer). "
            "Preference: which of two answers is better (promptField or messagesField, chosenField, rejectedField; "
            "see method.preference). Images: which class a picture is of (see images). "
            "Auto: Text or Instruction, as the first record is; all must be of that shape (see docs/data-formats.md)."
        ),
    ] = DataFormat.TEXT
    text_field: Annotated[str, Field(min_length=1, max_length=63, description="Field of a Text record.")] = "text"
    prompt_field: Annotated[
        str, Field(min_length=1, max_length=63, description="Question of an Instruction or Preference record.")
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
            "(system, user, assistant) and content. Every answer is learned. Of a Preference record the messages "
            "before the two answers, instead of a prompt.",
        ),
    ] = "messages"
    chosen_field: Annotated[
        str, Field(min_length=1, max_length=63, description="Better answer of a Preference record.")
    ] = "chosen"
    rejected_field: Annotated[
        str, Field(min_length=1, max_length=63, description="Worse answer of a Preference record.")
    ] = "rejected"
    fields: Annotated[
        dict[FieldName, FieldName] | None,
        Field(
            max_length=len(MAPPED),
            description="What other fields are called in the data, by what they mean: input, system, history, tools, "
            "reasoning of a record; role, content, weight of a message. Default: the usual names, see "
            "docs/data-formats.md.",
        ),
    ] = None
    ignored_fields: Annotated[
        tuple[FieldName, ...] | None,
        Field(
            min_length=1,
            max_length=64,
            description="Fields of records, or of messages, that are left out although they would change what is "
            "learned.",
        ),
    ] = None
    images: Annotated[
        ImagesSpec | None, Field(description="How pictures are read, with format Images, and only then.")
    ] = None
    on_bad_record: Annotated[
        BadRecord,
        Field(
            description="Fail: a record that is malformed, or a file that cannot be read, ends the job before it "
            "trains. Skip: it is left out and counted; a job without any good record fails all the same.",
        ),
    ] = BadRecord.FAIL
    encoding: Annotated[
        Encoding,
        Field(
            description="Of files of text, all alike: .jsonl, .json, .csv, .tsv and .txt. UTF-8 and UTF-16 may begin "
            "with a byte order mark."
        ),
    ] = Encoding.UTF_8
    multi_turn: Annotated[
        MultiTurn,
        Field(
            description="Which answers of a conversation are learned. EachAnswer: all; where the chat template "
            "rewrites earlier turns, as many of models that think do, each answer becomes a record of its own, with "
            "the turns before it. LastAnswer: the last one alone."
        ),
    ] = MultiTurn.EACH_ANSWER
    long_records: Annotated[
        LongRecords | None,
        Field(
            description="What becomes of a record longer than sequenceLength. Drop: it is left out and counted. Cut: "
            "its end is lost. Split: it goes on in the next row. Default: Split for Text, Cut for Instruction, Drop "
            "for Preference, where no other can be chosen; Instruction cannot be split."
        ),
    ] = None
    sequence_length: Annotated[int, Field(ge=16, le=1048576, description="Tokens in one packed row.")] = LENGTH
    sealed: Annotated[
        bool | None,
        Field(description="Encrypt the prepared data. Default: yes where checkpoint.encryption is given."),
        FREE,
    ] = None

    rules: ClassVar = (
        Rule(
            "has(self.train) != has(self.sources)",
            "give exactly one of train and sources",
            lambda self: (self.train is None) != (self.sources is None),
        ),
        Rule(
            "!has(self.sources) || self.sources.all(s, self.sources.exists_one(other, other.name == s.name))",
            "each of sources needs a name of its own",
            lambda self: len({s.name for s in self.sources or ()}) == len(self.sources or ()),
        ),
        Rule(
            "!has(self.sources) || self.sources.map(s, has(s.minimumShare) && s.minimumShare > 0.001"
            " ? int(s.minimumShare * 1000.0 + 0.999999) : 1).sum() <= 1000",
            "minimumShare, rounded up to thousandths, and a thousandth for each of the other sources must sum to "
            "at most 1",
            lambda self: sum(s.minimum_slots for s in self.sources or ()) <= BLOCK,
        ),
        Rule(
            "!(has(self.balanceBy) && has(self.sources))",
            "balanceBy gives every class the same share, sources have their own: give balanceBy with train, or drop it",
            lambda self: self.balance_by is None or self.sources is None,
        ),
        Rule(
            "!(has(self.validation) && has(self.validationFraction))",
            "give validation or validationFraction, not both",
            lambda self: self.validation is None or self.validation_fraction is None,
        ),
        Rule(
            "has(self.images) == (self.format == 'Images')",
            "images belongs to format Images: give both, or neither",
            lambda self: (self.images is not None) == (self.format is DataFormat.IMAGES),
        ),
        Rule(
            f"!has(self.fields) || self.fields.all(meaning, meaning in {list(MAPPED)})",
            f"fields gives other names to {', '.join(MAPPED)}: drop what it maps besides",
            lambda self: set(self.fields or ()) <= set(MAPPED),
        ),
        Rule(
            "!has(self.images) || (!has(self.fields) && !has(self.ignoredFields))",
            "fields and ignoredFields are of texts: drop them with format Images",
            lambda self: self.images is None or (self.fields is None and self.ignored_fields is None),
        ),
        Rule(
            "!has(self.images) || (self.sequenceLength == 1024 && !has(self.curriculum))",
            "sequenceLength and curriculum are of texts, whose rows have a length: drop them with format Images",
            lambda self: self.images is None or (self.sequence_length == LENGTH and self.curriculum is None),
        ),
        Rule(
            "!has(self.longRecords) || self.longRecords != 'Split' || self.format == 'Text'",
            "longRecords Split is of format Text, where every part teaches: choose Cut or Drop, or drop the field",
            lambda self: self.long_records is not LongRecords.SPLIT or self.format is DataFormat.TEXT,
        ),
        Rule(
            "!has(self.longRecords) || self.longRecords == 'Drop' || self.format != 'Preference'",
            "parts of answers do not compare: with format Preference longRecords can only be Drop",
            lambda self: self.long_records in (None, LongRecords.DROP) or self.format is not DataFormat.PREFERENCE,
        ),
        Rule(
            "!has(self.images) || (!has(self.longRecords) && self.multiTurn == 'EachAnswer')",
            "longRecords and multiTurn are of texts: drop them with format Images",
            lambda self: (
                self.images is None or (self.long_records is None and self.multi_turn is MultiTurn.EACH_ANSWER)
            ),
        ),
        Rule(
            "!has(self.images) || self.encoding == 'UTF-8'",
            "encoding is of files of text: drop it with format Images",
            lambda self: self.images is None or self.encoding is Encoding.UTF_8,
        ),
        Rule(
            "self.multiTurn == 'EachAnswer' || self.format == 'Instruction'",
            "multiTurn LastAnswer is of format Instruction: drop it with others",
            lambda self: self.multi_turn is MultiTurn.EACH_ANSWER or self.format is DataFormat.INSTRUCTION,
        ),
        Rule(
            "!has(self.images) || !has(self.balanceBy) || self.balanceBy == self.images.labelField",
            "balanceBy balances the classes of format Images: set it to images.labelField, or drop it",
            lambda self: self.images is None or self.balance_by in (None, self.images.label_field),
        ),
    )

    @property
    def long(self) -> LongRecords:
        """What becomes of records that are longer than a row."""
        return self.long_records or _LONG_RECORDS[self.format]

    @property
    def training_places(self) -> dict[str, VolumePath]:
        """The places of training records by the name of their source.  `train` has the empty name."""
        return {"": self.train} if self.train else {source.name: source for source in self.sources or ()}

    @property
    def places(self) -> tuple[VolumePath, ...]:
        """All places that records come from."""
        return (*self.training_places.values(), *([self.validation] if self.validation else []))
