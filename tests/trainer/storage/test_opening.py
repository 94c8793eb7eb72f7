"""Files that others can write are opened only where they are files, in their place, and bounded."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.contract.errors import ConfigError, IntegrityError, JobError
from deepseek_trainer.storage.opening import content_of, opened, opened_own, opened_to_append


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    (tmp_path / "claim").mkdir()
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "claim" / "file").write_bytes(b"content")
    return tmp_path / "claim"


def test_a_file_is_read(claim: Path) -> None:
    assert content_of(claim / "file", below=claim, max_bytes=7) == b"content"


def test_links_within_the_claim_are_followed(claim: Path) -> None:
    (claim / "link").symlink_to("../claim/file")
    assert content_of(claim / "link", below=claim, max_bytes=7) == b"content"


@pytest.mark.parametrize("target", ["../outside", "/etc/hostname", "directory/out"])
def test_links_out_of_the_claim_are_refused(claim: Path, target: str) -> None:
    (claim / "directory").symlink_to("..")
    (claim.parent / "out").symlink_to("outside")
    (claim / "link").symlink_to(target)
    with pytest.raises(ConfigError, match="link to a file outside"):
        opened(claim / "link", below=claim)


def test_a_claim_that_is_itself_a_link_is_no_way_out(claim: Path) -> None:
    (claim.parent / "mounted").symlink_to("claim")
    assert content_of(claim.parent / "mounted" / "file", below=claim.parent / "mounted", max_bytes=7) == b"content"


def test_a_fifo_does_not_hang_its_reader(claim: Path) -> None:
    os.mkfifo(claim / "fifo")
    with pytest.raises(IntegrityError, match="fifo' is a FIFO"):
        opened(claim / "fifo", refusal=IntegrityError)


def test_only_files_are_read(claim: Path) -> None:
    for place, kind in ((claim, "a directory"), (Path("/dev/zero"), "a device")):
        with pytest.raises(ConfigError, match=kind):
            opened(place)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(claim / "socket"))
        with pytest.raises(OSError, match="No such device"):
            opened(claim / "socket")


def test_a_larger_file_is_refused(claim: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 7 bytes, at most 6 are read"):
        content_of(claim / "file", max_bytes=6)


def test_a_refused_file_is_closed_and_its_name_is_shown_on_one_line(claim: Path) -> None:
    os.mkfifo(claim / "evil\n\x1b[2J")
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(ConfigError) as refused:
        opened(claim / "evil\n\x1b[2J")
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


Open = Callable[[Path], Any]
OWN = pytest.mark.parametrize("open_", [opened_own, opened_to_append], ids=["reading", "appending"])


@OWN
def test_a_file_of_our_own_is_opened(claim: Path, open_: Open) -> None:
    with open_(claim / "file") as file:
        assert file.name
    with opened_to_append(claim / "new") as file:
        file.write("line\n")
    assert (claim / "new").read_text() == "line\n"
    with opened_own(claim / "file") as file:
        assert file.read() == b"content"


@OWN
@pytest.mark.parametrize("target", ["../outside", "file", "/dev/zero", "link", "nowhere"])
def test_a_file_of_our_own_is_no_link_wherever_that_leads(claim: Path, open_: Open, target: str) -> None:
    (claim / "link").symlink_to(target)
    with pytest.raises(JobError, match="link' is a link"):
        open_(claim / "link")
    assert (claim.parent / "outside").read_bytes() == b"secret"
    assert not (claim / "nowhere").exists()


@OWN
def test_a_directory_of_our_own_is_no_link(claim: Path, open_: Open) -> None:
    (claim / "step").symlink_to("..")
    with pytest.raises(JobError, match="step' is a link"):
        open_(claim / "step" / "outside")


@OWN
@pytest.mark.parametrize("has_reader", [True, False])
def test_a_fifo_in_the_place_of_our_own_file_hangs_nobody(claim: Path, open_: Open, has_reader: bool) -> None:
    os.mkfifo(claim / "fifo")
    reader = os.open(claim / "fifo", os.O_RDONLY | os.O_NONBLOCK) if has_reader else None
    with pytest.raises(JobError, match="fifo' is a FIFO"):
        open_(claim / "fifo")
    if reader is not None:
        os.close(reader)


@OWN
def test_what_the_kernel_refuses_besides_is_left_to_the_caller(claim: Path, open_: Open) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        open_(claim / "nowhere" / "file")
    assert missing.value.filename
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(OSError, match="directory"):
        open_(claim / "file" / "below")
    assert len([*Path("/proc/self/fd").iterdir()]) == before
