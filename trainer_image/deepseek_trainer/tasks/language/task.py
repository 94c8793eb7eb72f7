"""Language models: text, questions with answers, and pairs of answers."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.base_model.source import generation_settings, prepared_model, prepared_settings
from deepseek_trainer.base_model.tokenizer_files import files_of, load_tokenizer
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataFormat
from deepseek_trainer.contract.method import PreferenceLoss
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.data.draws import Draws, RowArray
from deepseek_trainer.data.shards import SplitCounts
from deepseek_trainer.evaluation.classification import HEADLINES, classification
from deepseek_trainer.evaluation.text_scores import text_scores
from deepseek_trainer.model.blocks import family
from deepseek_trainer.model.description import config_json, generation_json, lacking
from deepseek_trainer.model.loading import load_model
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.storage.vault import Vault
from deepseek_trainer.tasks.language.answers import Reference, answer, score_answers
from deepseek_trainer.tasks.language.batch import TokenBatch, collate
from deepseek_trainer.tasks.language.conversation import as_text
from deepseek_trainer.tasks.language.labels import label_scores
from deepseek_trainer.tasks.language.loss import CausalLoss
from deepseek_trainer.tasks.language.odds_ratio import OddsRatioLoss
from deepseek_trainer.tasks.language.preference import PairLoss
from deepseek_trainer.tasks.language.preparation import dtype_of
from deepseek_trainer.tasks.language.prompts import Prompt, read_prompts
from deepseek_trainer.tasks.language.recognition import settled
from deepseek_trainer.tasks.language.row_maker import records_of_row
from deepseek_trainer.tasks.language.tokenizer import prompt_ids, stop_ids, text_ids, token_bytes
from deepseek_trainer.tasks.task import Answer, Ask, Assessment, Json, Task, Usage

SPECIAL: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
ANSWERED_AT_ONCE: Final = 16  # prompts in one batch of a rank


class LanguageTask(Task[TokenBatch]):
    """Teaches a decoder of tokens."""

    unit: ClassVar = "tokens"

    def __init__(self, config: TrainingConfig, paths: Paths, vault: Vault, directory: Path) -> None:
        self._config = settled(config, directory, vault)
        self._paths, self._vault, self._directory = paths, vault, directory

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The base model's, or the one that was trained on the data, with the job's chat template if it has one."""
        base = self._config.model.base
        home = self._directory if base is None else prepared_model(self._config, self._paths, self._vault)
        tokenizer = load_tokenizer(home, self._vault)
        if self._config.model.chat_template is not None:  # tried where the data are prepared
            tokenizer.chat_template = self._config.model.chat_template
        return tokenizer

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """The held-out prompts, at most 1000, in the order of the data."""
        return read_prompts(self._directory, self._vault)

    @property
    def usage(self) -> Usage:
        return Usage(
            pipeline="text-generation",
            auto_class="AutoModelForCausalLM",
            limits=("Answers can be wrong, however fluent.",),
            settings={"sequenceLength": self._config.data.sequence_length},
            loss_unit="pair" if self._config.preference else "token",
        )

    def dtype(self, facts: Json) -> np.dtype[np.void]:
        return dtype_of(facts)

    def collate(self, rows: RowArray, draws: Draws | None = None) -> TokenBatch:
        return collate(rows, draws)

    def records_of_row(self, counts: SplitCounts) -> float:
        """Texts and answers may be repeated to fill a row, and count each time; pairs are not."""
        data = self._config.data
        length = 1 if data.format is DataFormat.PREFERENCE else data.sequence_length
        return records_of_row(counts, length)

    def model(self) -> PreTrainedModel:
        return load_model(self._config, self._paths, self._vault, torch.device("cpu"))

    def loss(self, model: nn.Module, autocast: torch.autocast, optimization: OptimizationSpec) -> Loss[TokenBatch]:
        """The loss of the job's data.  For pairs of answers, by DPO, `model` as it is now is also the reference."""
        if preference := self._config.preference:
            if preference.loss is PreferenceLoss.ORPO:
                return OddsRatioLoss(model, autocast, optimization, preference.odds_ratio_weight)
            return PairLoss(model, autocast, optimization, preference.beta)
        return CausalLoss(model, autocast, optimization, self._token_bytes())

    def assess(self, ask: Ask) -> Assessment:
        """Let the model answer held-out prompts, and choose among labels."""
        prompts = self.prompts[: self._config.evaluation.generations]
        answers = self._answers(ask, prompts)
        scores: Json = {}
        if prompts and self._asks:
            scores |= (measured := _answer_scores(answers, prompts))
            ask.event("answers", **measured)
        if labels := self._config.evaluation.labels:
            scores["classification"] = (found := self._classified(ask, labels))
            ask.event("classification", **{name: found[name] for name in HEADLINES if name in found})
        return Assessment(scores, answers)

    def samples(self, before: Sequence[str], after: Sequence[str]) -> Sequence[Answer]:
        return [
            Answer(as_text(prompt.prompt), prompt.response, old, new)
            for prompt, old, new in zip(self.prompts, before, after, strict=False)
        ]

    def companions(self, model: PreTrainedModel, dtype: str) -> dict[str, bytes]:
        """config.json, generation_config.json and the tokenizer's files."""
        special = {name: getattr(self.tokenizer, name) for name in SPECIAL}
        base, generation = self._said_by_base()
        with understood("what the base model says beside its weights"):
            changes = {**lacking(base or {}, special), **family(model).without}
            return {
                "config.json": config_json(model, base, dtype, self._config.export.dtype, changes),
                "generation_config.json": generation_json(generation, special, stop_ids(self.tokenizer)),
                **files_of(self.tokenizer),
            }

    def _said_by_base(self) -> tuple[Json | None, Json]:
        """Its config.json, None from scratch, and its generation settings."""
        if self._config.model.base is None:
            return None, {}
        home = prepared_model(self._config, self._paths, self._vault)
        settings = prepared_settings(home, self._vault)
        ids = {name: settings[name] for name in SPECIAL if settings.get(name) is not None}
        return settings, generation_settings(home, self._vault) or ids

    @property
    def _asks(self) -> bool:
        """Whether prompts are questions.  Otherwise they are openings of texts, which have no right continuation."""
        return self._config.data.format is not DataFormat.TEXT

    def _token_bytes(self) -> Tensor | None:
        sizes = token_bytes(self.tokenizer)
        return None if sizes is None else torch.from_numpy(sizes)

    def _answers(self, ask: Ask, prompts: Sequence[Prompt]) -> list[str]:
        length = self._config.evaluation.max_new_tokens

        def answered(model: nn.Module, mine: Sequence[Prompt]) -> list[str]:
            return answer(model, self.tokenizer, mine, length, encode=_asked if self._asks else _opened)

        return ask.over(prompts, ANSWERED_AT_ONCE, answered)

    def _classified(self, ask: Ask, labels: Sequence[str]) -> Json:
        prompts = self.prompts[: self._config.evaluation.max_rows]

        def scored(model: nn.Module, mine: Sequence[Prompt]) -> list[list[float]]:
            return label_scores(model, self.tokenizer, mine, labels, ask.batch_size)

        at_once = max(1, ask.batch_size // len(labels))  # one forward pass, if that has room for all labels
        scores: Any = ask.over(prompts, at_once, scored)
        return classification([prompt.response for prompt in prompts], scores, labels)


def _asked(tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> list[int]:
    return prompt_ids(tokenizer, prompt.prompt, prompt.tools)


def _opened(tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> list[int]:
    return text_ids(tokenizer, as_text(prompt.prompt))


def _answer_scores(answers: Sequence[str], prompts: Sequence[Prompt]) -> Json:
    score = score_answers(answers, [Reference(prompt.response, prompt.must_contain) for prompt in prompts])
    return {"right": score.right, "asked": score.total} | text_scores(answers, [p.response for p in prompts])
