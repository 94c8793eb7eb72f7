"""Prints the results of checks: ok, warn or fail, what was found, and the way out."""

from deepseek_trainer.contract.lines import say


def print_check(level: str, name: str, text: str, hint: str = "") -> None:
    """Print one line, and a second one with the hint."""
    say(f"{level:<5} {name:<10} {text}")
    if hint:
        say(f"{'':<16} -> {hint}")
