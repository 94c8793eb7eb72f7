"""Prints errors on the terminal: what is wrong, then what to do."""

import sys


def print_error(problem: str, hint: str = "") -> None:
    """Print one error on stderr."""
    print(f"dstj: error: {problem}", file=sys.stderr)
    if hint:
        print(f"dstj: hint: {hint}", file=sys.stderr)
