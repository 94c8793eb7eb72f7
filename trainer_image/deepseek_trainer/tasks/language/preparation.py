"""How a language job's records become packed rows."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from deepseek_trainer.base_model.place import Place
from deepseek_trainer.base_model.source import source_model
from deepseek_trainer.base_model.tokenizer_files import NAMES as TOKENIZER_NAMES
from deepseek_trainer.base_model.tokenizer_files import load_tokenizer, save_tokenizer, tokenizer_from
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.draws import RowArray
from deepseek_trainer.data.formats.bounds import legible
from deepseek_trainer.data.inputs import TRAIN, VALIDATION, Inputs
from deepseek_trainer.data.preparer import Json, Preparer
from deepseek_trainer.data.reading import Reading
from deepseek_trainer.data.shards import SplitCounts
from deepseek_trainer.storage.vault import Vault
from deepseek_trainer.tasks.language.chat import opens_thoughts_only, with_template
from deepseek_trainer.tasks.language.packing import document_length, row_dtype
from deepseek_trainer.tasks.language.prompts import MAX_PROMPTS, Prompt, write_prompts
from deepseek_trainer.tasks.language.reading import reading
from deepseek_trainer.tasks.language.recognition import FACT, of_format, seen_first
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.row_maker import RowMaker, losses
from deepseek_trainer.tasks.language.shape import Seen
from deepseek_trainer.tasks.language.tokenizer import id_limit, trained_tokenizer, writes_plainly

log = logging.getLogger(__name__)

OPENING: Final = 80  # [characters] of a held-out text that the model is asked to continue
TOKENIZER_BYTES: Final = 1 << 27  # about how much data a tokenizer is trained on; more would hardly change its merges
_OPENS_THOUGHTS: Final = (
    "the chat template opens <think> where an answer is asked for, and writes none where it is there: answers without "
    "reasoning are learned without a thought, and a server will still open one",
    "give the records their reasoning, or a template that does not open it by model.chatTemplate",
)


@dataclass(slots=True)
class LanguagePreparer(Preparer[Record]):
    """Makes rows of texts, of questions with answers, or of pairs of answers."""

    config: TrainingConfig
    tokenizer: Any = field(init=False, default=None)
    first: Seen | None = field(init=False, default=None)  # the record that settled the format, if that was Auto

    def inputs(self, paths: Paths, most: int | None = None) -> Inputs[Record]:
        """Also settles the format."""
        if self.config.data.format is DataFormat.AUTO:
            self.first = seen_first(self.config, paths)
            self.config = of_format(self.config, self.first.format)
        return super(LanguagePreparer, self).inputs(paths, most)

    def reading(self, spec: DataSpec) -> Reading[Record]:
        return reading(spec, self.first)

    def refuse(self, inputs: Inputs[Record]) -> None:
        """Raise DataError if a held-out response, which would be classified, is none of the labels."""
        if not (labels := self.config.evaluation.labels):
            return
        records = islice(inputs.records(VALIDATION), min(MAX_PROMPTS, self.config.evaluation.max_rows))
        known = [record.text in labels for record in records]
        if wrong := known.count(False):
            raise DataError(
                f"{wrong} of {len(known)} held-out responses are none of evaluation.labels: each must be one of them, "
                "letter by letter",
                hint="add the missing labels, or correct the records; spaces and line ends count",
            )

    def shaping(self, model: Path | None, vault: Vault) -> Json:
        """The base model's tokenizer.  One that is trained follows from the data and its size.

        Where the chat template writes more of an answer than the answer, rows that hold only that are not used again.
        """
        architecture = self.config.model.architecture
        template = self.config.model.chat_template
        own = {} if template is None else {"chatTemplate": template}
        if model is None:
            return {"tokenizer": architecture and architecture.vocab_size} | own
        self.tokenizer = with_template(load_tokenizer(model, vault), template)
        is_written = self.config.data.format is not DataFormat.TEXT and not writes_plainly(self.tokenizer)
        written = {"answers": "as the template writes them"} if is_written else {}
        return {"tokenizer": _digest(model, vault)} | own | written

    def begin(self, inputs: Inputs[Record], model: Path | None, directory: Path, vault: Vault) -> None:
        """Train a tokenizer on the data and keep it beside them, unless there is the base's."""
        if model is None:
            self.learn(inputs, None, TOKENIZER_BYTES)
            save_tokenizer(self.tokenizer, directory, vault)

    def learn(self, inputs: Inputs[Record], source: Place | None, enough: int) -> None:
        if source is not None:
            self.tokenizer = with_template(tokenizer_from(source_model(source)[1]), self.config.model.chat_template)
            return
        assert self.config.model.architecture is not None, "the spec asks for exactly one of base and architecture"
        vocab_size = self.config.model.architecture.vocab_size
        texts = (text for record in inputs.sample(enough) for text in record.texts())
        with legible("data.train, of which a tokenizer is made,"):
            self.tokenizer = with_template(trained_tokenizer(texts, vocab_size), self.config.model.chat_template)
        log.info("trained a tokenizer of %d tokens (vocabSize %d)", id_limit(self.tokenizer), vocab_size)

    @property
    def facts(self) -> Json:
        settled = {} if self.first is None else {FACT: self.first.format}
        return settled | {"sequence_length": self.config.data.sequence_length, "vocab_size": id_limit(self.tokenizer)}

    @property
    def dtype(self) -> np.dtype[np.void]:
        return dtype_of(self.facts)

    def maker(self, place: str, *, fills_row: bool) -> RowMaker:
        return RowMaker(place, self.config.data, self.tokenizer, fills_row=fills_row)

    def difficulty(self, row: RowArray) -> float:
        return document_length(row)

    def finish(self, inputs: Inputs[Record], directory: Path, vault: Vault) -> None:
        write_prompts(_prompts(inputs), directory, vault)

    def lost(self, split: str, counts: SplitCounts) -> Iterator[tuple[str, str]]:
        for what, way_out in losses(counts, self.config.data):
            yield f"{split}: {what}", way_out
        asks = self.config.data.format is not DataFormat.TEXT and self.tokenizer is not None
        if split == TRAIN and asks and opens_thoughts_only(self.tokenizer):
            yield _OPENS_THOUGHTS

    def nothing_learned(self, place: str, counts: SplitCounts) -> DataError:
        found = list(losses(counts, self.config.data))
        what = "; ".join(each for each, _ in found)
        return DataError(f"data.{place} has nothing to learn: {what}", hint=found[0][1])


def dtype_of(facts: Json) -> np.dtype[np.void]:
    """The dtype of a packed row, given the facts in the manifest."""
    return row_dtype(facts["sequence_length"], facts["vocab_size"])


def _digest(model: Path, vault: Vault) -> str:
    return hashlib.sha256(b"".join(vault.read(model / name) for name in TOKENIZER_NAMES)).hexdigest()


def _expected(record: Record) -> str:
    calls = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in record.tool_calls]
    return "\n".join(part for part in (record.text, json_text(calls) if calls else "") if part)


def _called(record: Record) -> tuple[str, ...]:
    """What an answer must name that calls tools: each tool, and each value that is a text."""
    values = (value for call in record.tool_calls for value in (call.name, *json.loads(call.arguments).values()))
    return tuple(value for value in values if isinstance(value, str) and value.strip())


def _prompts(inputs: Inputs[Record]) -> Iterator[Prompt]:
    for record in islice(inputs.records(VALIDATION), MAX_PROMPTS):
        if record.prompt is not None:
            yield Prompt(record.prompt, _expected(record), record.must_contain or _called(record), record.tools)
        elif opening := record.text[:OPENING].rpartition(" ")[0]:
            yield Prompt(opening, record.text[len(opening) : 4 * OPENING].strip())
