"""Packs tokenised documents into rows of one length, and says what attention may see inside a row.

Each document of a row is isolated from its neighbours: its positions start at 0, and no token
attends to another document's.  Without torch.

Shapes: B rows in a micro-batch, T tokens in a row.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np
import numpy.typing as npt

IGNORED: Final = -100  # a target that is not learned: cross_entropy's ignore_index

Ids = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Document:
    """One tokenised record, or a part of it: its tokens, and for each whether it is learned."""

    tokens: Ids
    learned: Flags

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int) -> "Document":
        return Document(self.tokens[start:stop], self.learned[start:stop])

    @property
    def num_targets(self) -> int:
        """How many tokens are learned.  A document's first never is: nothing comes before it."""
        return int(self.learned[1:].sum())


def split_rows(documents: Iterable[Document], length: int) -> Iterator[list[Document]]:
    """The rows of Text: documents one after the other, in order, cut where a row is full.

    The token before a cut is repeated after it as the next row's first, so that every token but a
    document's first is a target exactly once.  Yields the parts of one row at a time, at most `length` tokens.
    """
    row: list[Document] = []
    room = length
    for document in documents:
        start, whole = 0, len(document)
        while start < whole:
            part = document.part(start, start + room)
            row.append(part)
            start, room = start + len(part), room - len(part)
            if start < whole:
                start -= 1
            if room < 2:  # the first token of a document alone teaches nothing
                yield row
                row, room = [], length
    if row:
        yield row


def best_fit(lengths: Sequence[int], length: int) -> list[list[int]]:
    """The rows of Instruction: which documents share a row, by best fit decreasing; none is cut.

    Each document, the longest first, goes to the row that it fills best.  `lengths` must be at most
    `length`.  Returns indices into `lengths`, in order inside a row, rows in the order of their first document.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # free tokens -> rows that have exactly so many
    rooms: list[int] = []  # the keys of by_room, sorted
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = lengths[document]
        at = bisect.bisect_left(rooms, need)
        if at == len(rooms):
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[at]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        rows[row].append(document)
        left = room - need
        if left not in by_room:
            bisect.insort(rooms, left)
        by_room.setdefault(left, []).append(row)
    return sorted(map(sorted, rows))


def again(documents: Iterator[Document], length: int) -> Iterator[Document]:
    """The documents.  If all together are shorter than a row, they come as often as they fit into it (`rounds`)."""
    few: list[Document] = []
    tokens = 0
    for document in documents:
        few.append(document)
        tokens += len(document)
        if rounds(tokens, length) == 1:
            break
    return chain(few * rounds(tokens, length), documents)


def rounds(tokens: int, length: int) -> int:
    """How often documents of `tokens` together fit into a row, at least 1."""
    return max(1, length // max(1, tokens))


def row_dtype(length: int, vocab_size: int) -> np.dtype[np.void]:
    """How a row lies on disk, little-endian: T tokens as u16 or u32, then two bit sets of T bits each.

    `learned` marks the tokens that are targets, `starts` those with which a document, or the padding, begins.
    """
    token = "<u2" if vocab_size <= 1 << 16 else "<u4"
    bits = -(-length // 8)
    return np.dtype([("tokens", token, (length,)), ("learned", "u1", (bits,)), ("starts", "u1", (bits,))])


def packed_row(parts: Sequence[Document], dtype: np.dtype[np.void], pad: int) -> npt.NDArray[np.void]:
    """One row of `row_dtype`, shape (1,): the parts, then padding, which is never learned."""
    length = dtype["tokens"].shape[0]
    row = np.zeros(1, dtype)
    learned, starts = np.zeros(length, np.bool_), np.zeros(length, np.bool_)
    row["tokens"] = pad
    at = 0
    for part in parts:
        stop = at + len(part)
        row["tokens"][0, at:stop] = part.tokens
        learned[at + 1 : stop] = part.learned[1:]
        starts[at] = True
        at = stop
    starts[at : at + 1] = True
    row["learned"], row["starts"] = np.packbits(learned), np.packbits(starts)
    return row


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Rows as int64 arrays of shape BT; see `batch.TokenBatch`."""

    tokens_BT: npt.NDArray[np.int64]
    targets_BT: npt.NDArray[np.int64]
    position_ids_BT: npt.NDArray[np.int64]
    document_ids_BT: npt.NDArray[np.int64]


def document_length(row: npt.NDArray[np.void]) -> float:
    """The mean length [tokens] of the documents in a row of shape (1,), padding left out: how hard the row is.

    Best-fit packing puts short documents beside long ones, so rows differ less than documents do, and their order shows
    only a tendency.  A Text document that is cut counts in each row with the part that lies there.
    """
    length = row["tokens"].shape[1]
    starts = np.flatnonzero(np.unpackbits(row["starts"][0], count=length))
    last = int(starts[-1])
    is_padding = not np.unpackbits(row["learned"][0], count=length)[last:].any()  # a document has learned tokens
    return (last if is_padding else length) / (len(starts) - is_padding)


def unpacked(rows: npt.NDArray[np.void]) -> Unpacked:
    """The opposite of `packed_row`, for B rows at once."""
    tokens_BT = rows["tokens"].astype(np.int64)
    length = tokens_BT.shape[1]
    learned_BT = np.unpackbits(rows["learned"], axis=1, count=length).view(np.bool_)
    starts_BT = np.unpackbits(rows["starts"], axis=1, count=length).view(np.bool_)
    targets_BT = np.full_like(tokens_BT, IGNORED)
    targets_BT[:, :-1] = np.where(learned_BT[:, 1:], tokens_BT[:, 1:], IGNORED)
    places_T = np.arange(length)
    return Unpacked(
        tokens_BT,
        targets_BT,
        position_ids_BT=places_T - np.maximum.accumulate(np.where(starts_BT, places_T, 0), axis=1),
        document_ids_BT=np.cumsum(starts_BT, axis=1) - 1,
    )
