"""Prints errors on the terminal: what is wrong, then what to do."""

import sys

from deepseek_trainer.contract.lines import say


def print_error(problem: str, hint: str = "") -> None:
    """Print one error on stderr."""
    say(f"dstj: error: {problem}", file=sys.stderr)
    if hint:
        say(f"dstj: hint: {hint}", file=sys.stderr)
