"""Formats tables as kubectl does: columns padded with spaces, nothing cut, easy to grep."""

from collections.abc import Iterator, Sequence

from deepseek_trainer.contract.foreign import one_line


def lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line for each row.  The first row is the head."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
