"""One vault, sealed or clear: what it writes comes back, and nothing else does."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage import segments
from deepseek_trainer.storage.durable import StorageError
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.vault import Context, Purpose, Vault, associated_data
from support.builders.vault import JOB, KEK, OTHER_KEK, a_vault

DATA = Purpose.DATA
BOTH = pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])


@BOTH
def test_content_comes_back(tmp_path: Path, sealed: bool) -> None:
    vault, content = a_vault(tmp_path, sealed=sealed), os.urandom(3_000_000)
    record = vault.write(tmp_path / "file", content)
    assert vault.read(tmp_path / "file", digest=record.digest) == content
    vault.verify(tmp_path / "file", digest=record.digest)
    on_disk = tmp_path / ("file.sealed" if sealed else "file")
    assert (record.name, record.plain_size, record.size) == ("file", len(content), on_disk.stat().st_size)


@BOTH
def test_pieces_and_arrays_come_back_as_one_content(tmp_path: Path, sealed: bool) -> None:
    import numpy as np

    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    vault = a_vault(tmp_path, sealed=sealed)
    vault.write(tmp_path / "file", iter([b"head", memoryview(array), memoryview(array[:0]), bytearray(b"tail")]))
    assert vault.read(tmp_path / "file") == b"head" + array.tobytes() + b"tail"


@BOTH
def test_any_range_can_be_read(tmp_path: Path, sealed: bool) -> None:
    vault, content = a_vault(tmp_path, sealed=sealed), os.urandom(2_500_000)
    vault.write(tmp_path / "file", content)
    with vault.open_reader(tmp_path / "file") as reader:
        assert reader.read_at(1_048_000, 2000) == content[1_048_000:1_050_000]
        assert reader.read_at(2_499_990, 100) == content[-10:]
        assert b"".join(map(bytes, reader.pieces())) == content


@BOTH
def test_what_replaces_a_file_is_there_at_once(tmp_path: Path, sealed: bool) -> None:
    vault = a_vault(tmp_path, sealed=sealed)
    vault.replace(tmp_path / "HEAD", b"one")
    vault.replace(tmp_path / "HEAD", b"two")
    assert vault.read(tmp_path / "HEAD") == b"two"
    assert not list(tmp_path.glob("*.partial-*"))


@BOTH
def test_another_file_of_the_same_name_is_refused_by_its_digest(tmp_path: Path, sealed: bool) -> None:
    vault = a_vault(tmp_path, sealed=sealed)
    record = vault.write(tmp_path / "file", b"one")
    vault.replace(tmp_path / "file", b"two")
    for read in (vault.read, vault.verify):
        with pytest.raises(IntegrityError, match="not the file that was recorded"):
            read(tmp_path / "file", digest=record.digest)


@BOTH
def test_an_existing_file_is_never_written_over(tmp_path: Path, sealed: bool) -> None:
    vault = a_vault(tmp_path, sealed=sealed)
    vault.write(tmp_path / "file", b"one")
    with pytest.raises(StorageError, match="File exists"):
        vault.write(tmp_path / "file", b"two")
    assert vault.read(tmp_path / "file") == b"one"


@BOTH
def test_nothing_remains_when_the_source_of_the_content_fails(tmp_path: Path, sealed: bool) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(2_000_000)
        raise OSError(5, "the source failed")

    vault = a_vault(tmp_path, sealed=sealed)
    with pytest.raises(OSError, match="the source failed") as caught:
        vault.write(tmp_path / "file", pieces())
    assert not isinstance(caught.value, StorageError)  # not the volume's fault
    assert not list(tmp_path.glob("file*"))


@BOTH
def test_files_are_private_and_a_result_may_be_served_by_its_group(tmp_path: Path, sealed: bool) -> None:
    for purpose, mode in ((Purpose.CHECKPOINT, 0o600), (Purpose.DATA, 0o600), (Purpose.EXPORT, 0o640)):
        vault = a_vault(tmp_path, purpose=purpose, sealed=sealed)
        vault.write(tmp_path / purpose, b"x")
        assert stat.S_IMODE(vault.on_disk(tmp_path / purpose).stat().st_mode) == mode


def test_no_plaintext_is_in_a_sealed_file(tmp_path: Path) -> None:
    a_vault(tmp_path).write(tmp_path / "file", b"private words " * 1000)
    assert b"private" not in (tmp_path / "file.sealed").read_bytes()


@pytest.mark.parametrize("purpose", [Purpose.DATA, Purpose.EXPORT])
def test_a_file_may_be_renamed_with_its_directory_from_partial_to_complete(tmp_path: Path, purpose: Purpose) -> None:
    vault = a_vault(tmp_path, purpose=purpose)
    (tmp_path / "abc.partial-1").mkdir()
    vault.write(tmp_path / "abc.partial-1" / "file", b"x")
    (tmp_path / "abc.partial-1").rename(tmp_path / "abc")
    assert vault.read(tmp_path / "abc" / "file") == b"x"
    (tmp_path / "abc").rename(tmp_path / "def")
    with pytest.raises(IntegrityError, match="moved from another place"):
        vault.read(tmp_path / "def" / "file")


@pytest.mark.parametrize(
    ("changed", "name", "context"),
    [
        ({}, "other", Context(3, 1)),
        ({}, "file", Context(4, 1)),
        ({}, "file", Context(3, 0)),
        ({}, "file", Context()),
        ({"purpose": Purpose.EXPORT}, "file", Context(3, 1)),
        ({"job": "lab/other"}, "file", Context(3, 1)),
    ],
    ids=["name", "step", "rank", "no step and rank", "purpose", "job"],
)
def test_a_file_moved_to_another_place_is_refused(
    tmp_path: Path, changed: dict[str, Any], name: str, context: Context
) -> None:
    vault = a_vault(tmp_path)
    vault.write(tmp_path / "file", b"x", Context(3, 1))
    (tmp_path / "file.sealed").rename(tmp_path / f"{name}.sealed")
    vault.job, vault.purpose = changed.get("job", JOB), changed.get("purpose", Purpose.CHECKPOINT)
    with pytest.raises(IntegrityError, match="does not authenticate"):
        vault.read(tmp_path / name, context)


def test_a_sealing_vault_refuses_what_is_not_sealed(tmp_path: Path) -> None:
    a_vault(tmp_path, sealed=False).write(tmp_path / "file", b"planted")
    with pytest.raises(IntegrityError, match="not sealed, and this job reads sealed files only"):
        a_vault(tmp_path).read(tmp_path / "file")


def test_plaintext_under_a_sealed_name_is_refused(tmp_path: Path) -> None:
    vault = a_vault(tmp_path)
    vault.write(tmp_path / "other", b"x")
    (tmp_path / "file.sealed").write_bytes(b"planted" * 20)
    with pytest.raises(IntegrityError, match="not a sealed file"):
        vault.read(tmp_path / "file")


def test_a_vault_without_a_key_names_what_it_lacks(tmp_path: Path) -> None:
    a_vault(tmp_path).write(tmp_path / "file", b"x")
    with pytest.raises(IntegrityError, match="is sealed, and this job has no key"):
        a_vault(tmp_path, sealed=False).read(tmp_path / "file")


@BOTH
def test_a_missing_file_is_named(tmp_path: Path, sealed: bool) -> None:
    with pytest.raises(IntegrityError, match=r"file.* is missing"):
        a_vault(tmp_path, sealed=sealed).read(tmp_path / "file")


def test_an_older_data_key_still_opens_what_it_sealed(tmp_path: Path) -> None:
    class TwoKeys(JobKeys):
        def to_read(self) -> Any:
            return (OTHER_KEK, *super().to_read())

    a_vault(tmp_path).write(tmp_path / "file", b"x")
    vault = Vault(JOB, Purpose.CHECKPOINT, TwoKeys(tmp_path / "keyring.json", JOB, [KEK]))
    assert vault.read(tmp_path / "file") == b"x"


def test_a_file_is_bound_to_seven_lines() -> None:
    assert associated_data(JOB, "checkpoint", "rank-00001.json", context=Context(7, 1)) == (
        b"dstj-sealed/1\nlab/demo\ncheckpoint\n-\n7\n1\nrank-00001.json"
    )
    assert associated_data(JOB, "data", "tokens.bin", directory="abc") == (
        b"dstj-sealed/1\nlab/demo\ndata\nabc\n-\n-\ntokens.bin"
    )


def test_segment_size_is_part_of_the_format() -> None:
    assert segments.SEGMENT_BYTES == 1_048_576


def test_a_name_is_the_same_in_every_vault_of_a_job_and_another_one_in_every_job(tmp_path: Path) -> None:
    one, again, export, other = (
        a_vault(tmp_path / work, purpose=purpose)
        for work, purpose in (("one", DATA), ("one", DATA), ("one", Purpose.EXPORT), ("other", DATA))
    )
    clear = a_vault(tmp_path, sealed=False)
    for digest in (bytes([i] * 32).hex() for i in range(20)):
        name = one.name_of(digest)
        assert name == again.name_of(digest) == export.name_of(digest)
        assert len({digest, name, other.name_of(digest), one.name_of(name), one.name_of(digest[:32])}) == 5
        assert re.fullmatch("[0-9a-f]{40}", name)
        assert clear.name_of(digest) == digest
