"""Hugging Face's Trainer as a contestant; needs accelerate."""

import tempfile
from importlib.util import find_spec
from typing import Any

import numpy as np
from corpora import PAD, Corpus, Stream
from setting import MAX_NORM, RATE, Lap, Moment, Setting, adamw, now
from tokenizers import Tokenizer, models
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

IS_THERE = find_spec("accelerate") is not None


class Watch(TrainerCallback):
    """From the first look at the data to the end of the last step; what `train` does before and after is its own."""

    def __init__(self, setting: Setting) -> None:
        self._device, self.start, self.end = setting.world.device, Moment(0, 0), Moment(0, 0)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = now(self._device)

    def on_step_end(self, _: TrainingArguments, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == state.max_steps:
            self.end = now(self._device)


class Examples(Dataset[dict[str, Any]]):
    def __init__(self, documents: list[Any]) -> None:
        self._documents = [document.astype(np.int64) for document in documents]

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._documents[index]}


class HfTrainer:
    """Padded batches of its collator, our optimizer, nothing saved or logged."""

    def __init__(self, setting: Setting, corpus: Corpus) -> None:
        self._setting, self._stream, self.model = setting, Stream(corpus), setting.model()
        self._per_pass, self._watch = setting.documents(corpus), Watch(setting)
        self._optimizer = adamw(self.model, setting.world.device.type == "cuda")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<pad>": PAD}, "<pad>")), pad_token="<pad>"
        )
        self._collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def run(self, steps: int) -> Lap:
        documents = self._stream.take(steps * self._setting.passes * self._per_pass)
        with tempfile.TemporaryDirectory() as place:
            trainer = Trainer(
                self.model,
                self._arguments(place, steps),
                self._collator,
                Examples(documents),
                optimizers=(self._optimizer, None),
                callbacks=[self._watch],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return Lap(sum(map(len, documents)), self._watch.start, self._watch.end)

    def _arguments(self, place: str, steps: int) -> TrainingArguments:
        device = self._setting.world.device
        return TrainingArguments(
            place,
            max_steps=steps,
            per_device_train_batch_size=self._per_pass,
            gradient_accumulation_steps=self._setting.passes,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            max_grad_norm=MAX_NORM,
            bf16=self._setting.bf16,
            use_cpu=device.type == "cpu",
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
