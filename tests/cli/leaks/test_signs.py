"""Formats are told by their first bytes, and random bytes from others by their evenness."""

import io
import pickle
import random
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from dstj.leaks.signs import BLOCK_BYTES, Evenness, kind_of, magic_in_random

RANDOM = random.Random(7)
TEXT = "It was the best of times, it was the worst of times. "


def written(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def parquet(buffer):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"]}), buffer)


def a_zip(buffer):
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", "b")


FILES = {
    "safetensors": save({"w": torch.zeros(3)}),
    "GGUF model": b"GGUF\x03\0\0\0" + bytes(16),
    "Parquet": written(parquet),
    "PNG": written(lambda buffer: Image.new("RGB", (2, 2)).save(buffer, "PNG")),
    "JPEG": written(lambda buffer: Image.new("RGB", (2, 2)).save(buffer, "JPEG")),
    "gzip": zlib.compress(b"words", wbits=31),
    "zip (torch.save, .npz)": written(lambda buffer: torch.save({"w": torch.zeros(3)}, buffer)),
    "pickle": pickle.dumps({"a": 1}),
    "NumPy array": written(lambda buffer: np.save(buffer, np.zeros(3))),
    "JSON": b'  {"text": "words"}\n{"text": "more"}\n',
    "text": TEXT.encode(),
    "text in UTF-16": TEXT.encode("utf-16"),
    "keyring": b'{\n  "format": "dstj-keyring/1"}',
    "events of a run": b'{"event": "step", "time": 1.0}\n',
}


@pytest.mark.parametrize(("kind", "content"), [*FILES.items(), ("zip (torch.save, .npz)", written(a_zip))])
def test_a_format_is_told_by_its_first_bytes(kind, content):
    assert kind_of(content) == kind


@pytest.mark.parametrize("kind", ["safetensors", "GGUF model", "Parquet", "PNG", "JPEG", "zip (torch.save, .npz)"])
def test_formats_are_told_where_bytes_ought_to_be_random(kind):
    assert magic_in_random(FILES[kind]) == kind


@pytest.mark.parametrize("cut", range(1, 8))
def test_text_is_text_although_a_letter_is_cut(cut):
    assert kind_of(("ab" * 9 + "é€😀").encode()[:-cut]) == "text"


@pytest.mark.parametrize("content", [b"", b"\0" * 50, RANDOM.randbytes(500)])
def test_other_bytes_are_of_no_known_format(content):
    assert kind_of(b"\x28" * bool(content) + content) is None


def evenness_of(content):
    evenness = Evenness()
    for start in range(0, len(content), 4 * BLOCK_BYTES):
        evenness.feed(content[start : start + 4 * BLOCK_BYTES])
    return evenness


@settings(derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 20_000))
def test_random_bytes_are_even(seed, size):
    assert evenness_of(random.Random(seed).randbytes(size)).count == 0


def patched(patch, at, size=16 * BLOCK_BYTES):
    content = bytearray(random.Random(size).randbytes(size))  # one in 100,000 random blocks looks uneven
    content[at : at + len(patch)] = patch
    return bytes(content)


WEIGHTS = np.random.default_rng(7).normal(size=1024)
PATCHES = {
    "text": (TEXT * 40).encode()[:1500],
    "zeros": bytes(1100),
    "weights in FP32": WEIGHTS.astype(np.float32).tobytes(),
    "weights in BF16": torch.tensor(WEIGHTS).bfloat16().view(torch.uint8).numpy().tobytes(),
    "tokens": np.arange(400, 900).astype("<i4").tobytes(),
    "every value in turn": bytes(range(256)) * 8,
    "base64": (b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZn" * 40),
}


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
@given(at=st.integers(0, 12 * BLOCK_BYTES))
def test_a_patch_of_other_bytes_is_found_wherever_it_lies(patch, at):
    found = evenness_of(patched(patch, at))
    assert found.count
    assert at - BLOCK_BYTES < found.first < at + len(patch)


@given(at=st.integers(0, 3000))
def test_a_sentence_is_found_amid_random_bytes(at):
    assert evenness_of(patched(TEXT.encode(), at)).count == 1


def test_a_sentence_alone_is_not_even():
    assert evenness_of(TEXT.encode()).count == 1
