"""The sealed format: judged by Tink, and refused after any change."""

import io
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tink
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage import segments
from deepseek_trainer.storage.sealing import SealedWriter
from deepseek_trainer.storage.segments import SEGMENT_BYTES
from deepseek_trainer.storage.unsealing import SealedReader
from support.faults.crashes import in_a_child
from support.judges.tink import tink_stream

KEY = bytes(range(32))
AAD = b"lab/demo\nstep 3"
FIRST = SEGMENT_BYTES - 40 - 16  # plaintext bytes of segment 0
NEXT = SEGMENT_BYTES - 16  # plaintext bytes of every other one
SIZES = [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT - 1, FIRST + NEXT, FIRST + NEXT + 1, FIRST + 3 * NEXT + 5]
TINY = 64  # segment size of the exhaustive tests: segments of 8, 48, 48, ... bytes of plaintext


def sealed(plain: bytes, key: bytes = KEY, aad: bytes = AAD) -> bytes:
    sink = io.BytesIO()
    writer = SealedWriter(sink, key, aad)
    writer.write(plain)
    writer.close()
    return sink.getvalue()


def opened(path: Path, content: bytes, key: bytes = KEY, aad: bytes = AAD) -> bytes:
    path.write_bytes(content)
    return read_all(path, key, aad)


def read_all(path: Path, key: bytes = KEY, aad: bytes = AAD) -> bytes:
    with SealedReader(path, key, aad) as reader:
        plain = bytearray(reader.size)
        reader.read_into(memoryview(plain))
    return bytes(plain)


def some_bytes(size: int) -> bytes:
    return os.urandom(1024) * (size // 1024) + os.urandom(size % 1024)


@pytest.fixture(scope="module")
def judge() -> Any:
    return tink_stream(KEY)


@pytest.fixture
def tiny_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", TINY)


@pytest.mark.parametrize("size", SIZES)
def test_tink_opens_what_we_seal(judge: Any, size: int) -> None:
    plain = some_bytes(size)
    with judge.new_decrypting_stream(io.BytesIO(sealed(plain)), AAD) as stream:
        assert stream.read() == plain


@pytest.mark.parametrize("size", SIZES)
def test_we_open_what_tink_seals(judge: Any, size: int, tmp_path: Path) -> None:
    plain, target = some_bytes(size), io.BytesIO()
    kept: list[bytes] = []
    target.close = lambda: kept.append(target.getvalue())  # type: ignore[method-assign]  # tink closes what it fills
    with judge.new_encrypting_stream(target, AAD) as stream:
        stream.write(plain)
    assert opened(tmp_path / "file", kept[0]) == plain


def test_tink_refuses_our_file_under_another_context(judge: Any) -> None:
    with pytest.raises(tink.TinkError), judge.new_decrypting_stream(io.BytesIO(sealed(b"x")), b"other") as stream:
        stream.read()


@pytest.mark.parametrize("size", [0, 8 + 48 + 3])
def test_every_flipped_bit_is_refused(tiny_segments: None, size: int, tmp_path: Path) -> None:
    content, path = sealed(some_bytes(size)), tmp_path / "file"
    path.write_bytes(content)
    with path.open("r+b", buffering=0) as file:
        for bit in range(8 * len(content)):
            place, byte = bit // 8, content[bit // 8]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), place)
            with pytest.raises(IntegrityError):
                read_all(path)
            os.pwrite(file.fileno(), bytes([byte]), place)
    read_all(path)


def read_by_pieces(reader: SealedReader) -> None:
    for _ in reader.pieces():
        pass


@pytest.mark.parametrize(
    "read",
    [lambda reader: reader.read_into(memoryview(bytearray(reader.size))), SealedReader.verify, read_by_pieces],
    ids=["read_into", "verify", "pieces"],
)
def test_flipped_bits_of_a_large_file_are_refused_wherever_they_are(
    read: Callable[[SealedReader], object], tmp_path: Path
) -> None:
    content, path, random = sealed(some_bytes(FIRST + 2 * NEXT + 99_999)), tmp_path / "file", Random(5)
    path.write_bytes(content)
    within = [range(start, min(start + SEGMENT_BYTES, len(content))) for start in range(0, len(content), SEGMENT_BYTES)]
    assert len(within) == 4
    for place in [random.choice(segment) for segment in within for _ in range(8)]:
        with path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), bytes([content[place] ^ 1 << random.randrange(8)]), place)
            with pytest.raises(IntegrityError), SealedReader(path, KEY, AAD) as reader:
                read(reader)
            os.pwrite(file.fileno(), content[place : place + 1], place)
    with SealedReader(path, KEY, AAD) as reader:
        read(reader)


@pytest.mark.parametrize("size", [0, 8, 9, 8 + 48, 8 + 48 + 1])
def test_every_truncation_is_refused_when_the_file_is_opened(tiny_segments: None, size: int, tmp_path: Path) -> None:
    content, path = sealed(some_bytes(size)), tmp_path / "file"
    path.write_bytes(content)
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        with pytest.raises(IntegrityError):
            SealedReader(path, KEY, AAD)


@pytest.mark.parametrize("extra", [1, 15, 16, 17, TINY - 1, TINY, 2 * TINY])
@pytest.mark.parametrize("size", [0, 8, 100])
def test_appended_bytes_are_refused(tiny_segments: None, size: int, extra: int, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        opened(tmp_path / "file", sealed(some_bytes(size)) + bytes(extra))


def test_swapped_segments_are_refused(tiny_segments: None, tmp_path: Path) -> None:
    content = sealed(some_bytes(8 + 3 * 48))
    swapped = content[:TINY] + content[2 * TINY : 3 * TINY] + content[TINY : 2 * TINY] + content[3 * TINY :]
    with pytest.raises(IntegrityError, match="segment 2 of 4"):
        opened(tmp_path / "file", swapped)


def test_a_segment_of_another_file_is_refused(tiny_segments: None, tmp_path: Path) -> None:
    one, other = sealed(bytes(100)), sealed(bytes(100))
    with pytest.raises(IntegrityError, match="segment 2 of 3"):
        opened(tmp_path / "file", one[:TINY] + other[TINY : 2 * TINY] + one[2 * TINY :])


def test_a_wrong_key_and_a_wrong_context_are_refused(tmp_path: Path) -> None:
    content = sealed(b"weights")
    with pytest.raises(IntegrityError, match="does not authenticate"):
        opened(tmp_path / "file", content, key=bytes(32))
    with pytest.raises(IntegrityError, match="does not authenticate"):
        opened(tmp_path / "file", content, aad=b"lab/other\nstep 3")


def test_the_target_is_wiped_when_a_segment_does_not_authenticate(tiny_segments: None, tmp_path: Path) -> None:
    content = bytearray(sealed(b"secret" * 50))
    content[TINY + 3] ^= 1
    (tmp_path / "file").write_bytes(content)
    with SealedReader(tmp_path / "file", KEY, AAD) as reader:
        target = bytearray(b"#" * reader.size)
        with pytest.raises(IntegrityError):
            reader.read_into(memoryview(target))
    assert target[8:56] == bytes(48)


def test_a_file_cut_while_it_is_read_is_refused(tiny_segments: None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(sealed(bytes(300)))
    with SealedReader(path, KEY, AAD) as reader:
        os.truncate(path, 100)
        with pytest.raises(IntegrityError, match="cut short"):
            reader.read_at(100, 10)


def test_a_forked_child_seals_and_opens_with_threads_of_its_own(tmp_path: Path) -> None:
    plain = some_bytes(FIRST + NEXT)
    sealed(plain)  # the parent's threads are there

    def child() -> None:
        assert opened(tmp_path / "file", sealed(plain)) == plain
        (tmp_path / "done").touch()

    in_a_child(child)
    assert (tmp_path / "done").exists()


def test_two_files_of_the_same_content_have_nothing_in_common() -> None:
    assert sealed(b"same")[1:] != sealed(b"same")[1:]


def test_digest_covers_the_tags_of_all_segments(tiny_segments: None, tmp_path: Path) -> None:
    sink = io.BytesIO()
    writer = SealedWriter(sink, KEY, AAD)
    writer.write(bytes(300))
    writer.close()
    (tmp_path / "file").write_bytes(sink.getvalue())
    with SealedReader(tmp_path / "file", KEY, AAD) as reader:
        assert reader.verify() == writer.digest == reader.read_into(memoryview(bytearray(reader.size)))
    assert (writer.size, writer.plain_size) == (len(sink.getvalue()), 300)


def test_a_sink_that_takes_less_than_it_is_given_gets_all_bytes(tmp_path: Path) -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data[:7]))

    sink = Slow()
    writer = SealedWriter(sink, KEY, AAD)
    writer.write(b"weights" * 100)
    writer.close()
    assert opened(tmp_path / "file", sink.getvalue()) == b"weights" * 100


@settings(max_examples=100)
@given(pieces=st.lists(st.binary(max_size=250), max_size=6), data=st.data())
def test_any_pieces_come_back_and_any_range_can_be_read(
    pieces: list[bytes], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT_BYTES", TINY)
        sink, path = io.BytesIO(), tmp_path_factory.getbasetemp() / "any"
        writer = SealedWriter(sink, KEY, AAD)
        for piece in pieces:
            writer.write(piece)
        writer.close()
        path.write_bytes(sink.getvalue())
        plain = b"".join(pieces)
        with SealedReader(path, KEY, AAD) as reader:
            assert b"".join(bytes(piece) for piece in reader.pieces()) == plain
            for _ in range(5):
                offset = data.draw(st.integers(0, len(plain) + 10))
                length = data.draw(st.integers(0, len(plain) + 10))
                assert reader.read_at(offset, length) == plain[offset : offset + length]


def test_small_files_take_no_fresh_memory_for_segments(tmp_path: Path) -> None:
    path = tmp_path / "file"
    opened(path, sealed(b"the first one"))
    tracemalloc.start()
    try:
        opened(path, sealed(b"another one"))
        assert tracemalloc.get_traced_memory()[1] < SEGMENT_BYTES // 4
    finally:
        tracemalloc.stop()


def test_a_file_that_was_closed_gives_none_of_its_plaintext(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(sealed(b"x"))
    with SealedReader(path, KEY, AAD) as reader:
        assert reader.read_at(0, 1) == b"x"
    with pytest.raises((OSError, ValueError)):
        reader.read_at(0, 1)
