"""Shows text of which a part is learned: in colour on a terminal, else between marks."""

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final

from deepseek_trainer.contract.foreign import one_line
from deepseek_trainer.contract.lines import say

BEGIN: Final = "[["
END: Final = "]]"
Piece = tuple[str, bool]  # text, and whether it is learned


def show(pieces: Iterable[Piece]) -> None:
    """Print the text line by line, each behind a bar, with its control characters escaped."""
    for line in _by_line(pieces):
        if sys.stdout.isatty():
            _in_colour(line)
        else:
            say("| " + "".join(f"{BEGIN}{text}{END}" if is_learned else text for text, is_learned in line))


def _by_line(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    line: list[Piece] = []
    for text, is_learned in pieces:
        first, *others = text.split("\n")
        line.append((one_line(first), is_learned))
        for other in others:
            yield _joined(line)
            line = [(one_line(other), is_learned)]
    if line:
        yield _joined(line)


def _joined(line: list[Piece]) -> list[Piece]:
    filled = [piece for piece in line if piece[0]]
    return [
        ("".join(text for text, _ in group), is_learned)
        for is_learned, group in groupby(filled, key=lambda each: each[1])
    ]


def _in_colour(line: list[Piece]) -> None:
    from rich.console import Console
    from rich.text import Text

    shown = Text().append("| ", style="dim")
    for text, is_learned in line:
        shown.append(text, style="bold green" if is_learned else "dim")
    Console(highlight=False).print(shown, soft_wrap=True)
