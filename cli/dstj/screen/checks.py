"""Prints the results of checks: ok, warn or fail, what was found, and the way out."""

from collections.abc import Callable
from dataclasses import dataclass

from deepseek_trainer.contract.lines import say


@dataclass(frozen=True, slots=True)
class Warned:
    """The result of a check for what works, but not well."""

    text: str
    hint: str


Check = Callable[[], str | Warned]  # raises JobError if something cannot work


def print_check(level: str, name: str, text: str, hint: str = "") -> None:
    """Print one line, and a second one with the hint."""
    say(f"{level:<5} {name:<10} {text}")
    if hint:
        say(f"{'':<16} -> {hint}")
