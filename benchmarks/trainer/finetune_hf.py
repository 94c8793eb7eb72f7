"""A contestant of bench_finetune.py as a process of its own: Hugging Face's Trainer, or TRL's SFTTrainer with packing.

finetune_hf.py CONTESTANT MODEL PAIRS PASSES DOCUMENTS_A_PASS LENGTH METHOD FIGURES
"""

import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

LORA = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}
WARM = 3  # steps that are not counted


class Watch(TrainerCallback):
    """When each step ended, and how many tokens, padding left out, it saw."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.batches: list[int] = []  # the loader makes one more than is trained on

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.monotonic())
        self.tokens.append(sum(self.batches[: len(self.ends)]))

    def rates(self) -> list[float]:
        pairs = list(zip(self.ends, self.tokens, strict=True))[WARM:]
        return [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(pairs)]


def counting(collate: Any, watch: Watch) -> Any:
    def counted(features: list[dict[str, Any]]) -> Any:
        batch = collate(features)
        mask = batch.get("attention_mask")
        watch.batches.append(int(batch["input_ids"].numel() if mask is None else mask.sum()))
        return batch

    return counted


def plain(model: Any, tokenizer: Any, pairs: list[dict[str, str]], settings: dict[str, Any], watch: Watch) -> Trainer:
    def example(pair: dict[str, str]) -> dict[str, Any]:
        asked = [{"role": "user", "content": pair["prompt"]}]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(pair["response"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = prompt + answer
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(prompt) + answer}

    collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    return Trainer(
        model=model,
        args=TrainingArguments(**settings),
        train_dataset=[example(pair) for pair in pairs],  # type: ignore[arg-type]
        data_collator=counting(collate, watch),
        callbacks=[watch],
    )


def packing(model: Any, tokenizer: Any, pairs: list[dict[str, str]], settings: dict[str, Any], watch: Watch) -> Trainer:
    from datasets import Dataset  # noqa: PLC0415 TRL's, in a directory of its own
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    rows = [
        {
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "completion": [{"role": "assistant", "content": pair["response"]}],
        }
        for pair in pairs
    ]
    own = SFTConfig(**(settings | {"per_device_train_batch_size": 1}), packing=True)
    trainer = SFTTrainer(
        model=model,
        args=own,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    trainer.data_collator = counting(trainer.data_collator, watch)
    return trainer


def main() -> None:
    name, directory, pairs_file, passes, per_pass, length, method, figures = sys.argv[1:]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if method == "LoRA":
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    pairs = [json.loads(line) for line in Path(pairs_file).read_text().splitlines()]
    watch = Watch()
    with tempfile.TemporaryDirectory() as output:
        settings = {
            "output_dir": output, "max_steps": int(passes), "per_device_train_batch_size": int(per_pass),
            "learning_rate": 2e-4, "report_to": [], "save_strategy": "no", "logging_steps": 10, "use_cpu": True,
            "dataloader_pin_memory": False,
        }  # fmt: skip
        if name.endswith("group_by_length"):
            settings["train_sampling_strategy"] = "group_by_length"
        make = packing if name.startswith("TRL") else plain
        trainer = make(
            model, tokenizer, pairs, settings | ({"max_length": int(length)} if make is packing else {}), watch
        )
        trainer.train()
        trainer.save_model(output)
    Path(figures).write_text(json.dumps({"steady": statistics.median(watch.rates()), "tokens": watch.tokens[-1]}))


if __name__ == "__main__":
    main()
