"""Held-out records that a model is asked to answer, kept beside the rows."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.storage.vault import Vault
from deepseek_trainer.tasks.language.conversation import Question, question_from

PROMPTS: Final = "prompts.json"
MAX_PROMPTS: Final = 1000  # evaluation.generations is at most this, and no more are classified


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out record: question, reference answer (a pair's chosen one), and what a right answer must contain."""

    prompt: Question
    response: str
    must_contain: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()  # that the assistant may call: the JSON text of each


def write_prompts(prompts: Iterable[Prompt], directory: Path, vault: Vault) -> None:
    vault.write(directory / PROMPTS, json_text([*map(_plain, prompts)], ensure_ascii=False).encode())


def _plain(prompt: Prompt) -> dict[str, Any]:
    plain = asdict(prompt)
    return plain if prompt.tools else {name: value for name, value in plain.items() if name != "tools"}


def read_prompts(directory: Path, vault: Vault) -> tuple[Prompt, ...]:
    def prompts(listed: Any) -> tuple[Prompt, ...]:
        return tuple(
            Prompt(
                question_from(each["prompt"]),
                each["response"],
                tuple(each["must_contain"]),
                tuple(each.get("tools", ())),
            )
            for each in listed
        )

    return vault.document(directory / PROMPTS, prompts)
