"""A result is read only as it was exported: all its files, those very files, and nothing else."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.result.manifest import MANIFEST, MAX_BYTES, open_result, open_without_manifest
from deepseek_trainer.result.unseal import decrypt_result
from deepseek_trainer.storage.vault import Purpose, Vault
from support.builders.result import FILES, a_result
from support.builders.vault import JOB, OTHER_KEK, a_vault

KINDS = {
    "sealed": {"sealed": True},
    "clear": {"sealed": False},
    "clear, of a sealed job": {"sealed": True, "clear_files": True},
}
OF_ALL_KINDS = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys(), scope="module")


def vault_of(work: Path, kind: dict[str, bool]) -> Vault:
    return a_vault(work, purpose=Purpose.EXPORT, sealed=kind["sealed"])


def delivered(work: Path, kind: dict[str, bool], target: Path) -> dict[str, bytes]:
    decrypt_result(open_result(work / "export/demo", vault_of(work, kind)), target)
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def refusal(work: Path, kind: dict[str, bool]) -> str:
    """Why the result is refused; nothing of it remains."""
    with pytest.raises(IntegrityError) as caught:
        delivered(work, kind, work / "out")
    assert not (work / "out").exists()
    assert caught.value.code == 77
    return str(caught.value)


@OF_ALL_KINDS
def test_a_result_is_delivered_with_its_subdirectories_for_its_owner_only(tmp_path: Path, kind: dict[str, bool]):
    a_result(tmp_path, **kind)
    assert delivered(tmp_path, kind, tmp_path / "out") == FILES
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "out").rglob("*")} == {0}
    with pytest.raises(ConfigError, match="out exists"):
        delivered(tmp_path, kind, tmp_path / "out")


def removed(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def made_longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def renamed(path: Path) -> None:
    path.rename(path.with_name(f"x{path.name}"))


def moved_down(path: Path) -> None:
    (path.parent / "deeper").mkdir()
    path.rename(path.parent / "deeper" / path.name)


def copied_beside(path: Path) -> None:
    shutil.copy(path, path.with_name(f"x{path.name}"))


def hidden_beside(path: Path) -> None:
    shutil.copy(path, path.with_name(f".{path.name}"))


def linked_to_outside(path: Path) -> None:
    outside = path.parents[3] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def linked_beside(path: Path) -> None:
    path.with_name("link").symlink_to("/etc/hostname")


def linked_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def a_fifo_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_directory_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


ATTACKS = (
    removed,
    cut_short,
    made_longer,
    changed,
    renamed,
    moved_down,
    copied_beside,
    hidden_beside,
    linked_to_outside,
    linked_beside,
    linked_to_nowhere,
    a_fifo_instead,
    a_directory_instead,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@OF_ALL_KINDS
def test_a_result_of_which_one_file_is_not_as_it_was_is_refused(
    tmp_path: Path, made: Path, kind: dict[str, bool], attack: Callable[[Path], None]
):
    for name in files_below(made / "export/demo"):
        shutil.copytree(made, tmp_path / name)
        attack(tmp_path / name / "export/demo" / name)
        refusal(tmp_path / name, kind)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, kind: dict[str, bool]) -> Path:
    """A work volume with a result, to be copied."""
    work = tmp_path_factory.mktemp("made")
    a_result(work, **kind)
    return work


def files_below(directory: Path) -> list[str]:
    return [str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()]


@OF_ALL_KINDS
def test_a_subdirectory_that_was_renamed_moved_up_or_linked_is_refused(tmp_path: Path, kind: dict[str, bool]):
    def move_up(adapter: Path) -> None:
        for path in adapter.iterdir():
            path.rename(adapter.parent / path.name)

    def link(adapter: Path) -> None:
        adapter.rename(adapter.parents[2] / "adapter")
        adapter.symlink_to("../../adapter")

    for i, attack in enumerate((lambda adapter: adapter.rename(adapter.with_name("lora")), move_up, link)):
        attack(a_result(tmp_path / str(i), **kind) / "adapter")
        refusal(tmp_path / str(i), kind)


@OF_ALL_KINDS
def test_files_of_two_results_of_one_name_do_not_mix(tmp_path: Path, kind: dict[str, bool]):
    """Both are of one job and one key, so that each file by itself is authentic."""
    earlier = a_result(tmp_path, files={each: content[::-1] for each, content in FILES.items()}, **kind)
    earlier = earlier.rename(tmp_path / "earlier")
    directory = a_result(tmp_path, **kind)
    for path in files_below(directory):
        kept = (directory / path).read_bytes()
        shutil.copy(earlier / path, directory / path)
        refusal(tmp_path, kind)
        (directory / path).write_bytes(kept)
    assert delivered(tmp_path, kind, tmp_path / "out") == FILES


@OF_ALL_KINDS
def test_a_result_under_another_name_or_of_another_job_is_refused(tmp_path: Path, kind: dict[str, bool]):
    directory = a_result(tmp_path, **kind)
    vault = a_vault(tmp_path, purpose=Purpose.EXPORT, job=JOB, sealed=kind["sealed"])
    moved = directory.rename(directory.with_name("another"))
    with pytest.raises(IntegrityError):
        open_result(moved, vault)
    moved.rename(directory)
    other = (
        Vault("lab/other", Purpose.EXPORT)
        if not kind["sealed"]
        else a_vault(tmp_path / "b", purpose=Purpose.EXPORT, job="lab/other", kek=OTHER_KEK)
    )
    with pytest.raises(IntegrityError):
        open_result(directory, other)


@pytest.mark.parametrize("with_manifest", [False, True])
def test_a_sealed_job_takes_no_result_in_the_clear_from_its_volume(tmp_path: Path, with_manifest: bool):
    a_vault(tmp_path, purpose=Purpose.EXPORT).key_id  # noqa: B018  makes the keyring
    directory = a_result(tmp_path, sealed=False)
    if not with_manifest:
        (directory / MANIFEST).unlink()
    assert "not sealed" in (said := refusal(tmp_path, KINDS["sealed"])) or "no manifest.json.sealed" in said
    with pytest.raises(IntegrityError, match="not sealed"):
        open_without_manifest(directory, vault_of(tmp_path, KINDS["sealed"]))


def test_a_manifest_in_the_clear_does_not_stand_in_for_the_sealed_one(tmp_path: Path):
    """Else who writes to the volume could list files of their own as the result in the clear of a sealed job."""
    kind = KINDS["clear, of a sealed job"]
    directory = a_result(tmp_path, **kind)
    own = a_result(tmp_path / "own", sealed=False, files={"model.safetensors": b"backdoor"})
    shutil.rmtree(directory)
    own.rename(directory)
    assert "not sealed" in refusal(tmp_path, kind)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_result_of_an_earlier_version_is_taken_only_when_that_is_asked_for(tmp_path: Path, sealed: bool):
    kind = {"sealed": sealed}
    directory = a_result(tmp_path, **kind)
    vault_of(tmp_path, kind).on_disk(directory / MANIFEST).unlink()
    assert "--without-manifest" in refusal(tmp_path, kind)
    decrypt_result(open_without_manifest(directory, vault_of(tmp_path, kind)), tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES
    (directory / "link").symlink_to("/etc/hostname")
    with pytest.raises(IntegrityError, match="is a link or no file of a result"):
        open_without_manifest(directory, vault_of(tmp_path, kind))


def test_where_there_is_a_manifest_it_counts_in_any_case(tmp_path: Path):
    directory = a_result(tmp_path)
    (directory / "README.md.sealed").unlink()
    with pytest.raises(IntegrityError, match=r"lacks 'README\.md\.sealed'"):
        open_without_manifest(directory, vault_of(tmp_path, KINDS["sealed"]))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 9999,
        b'{"format": "dstj-export/9"}',
        b'{"format": "dstj-export/1", "job": "lab/demo", "name": "demo", "created": "", "keyId": null, "files": [1]}',
        b" " * (MAX_BYTES + 1),
    ],
    ids=["empty", "list", "fields missing", "deep", "newer", "files", "large"],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes):
    directory = a_result(tmp_path, sealed=False)
    (directory / MANIFEST).write_bytes(content)
    assert "is not a manifest of format" in (said := refusal(tmp_path, KINDS["clear"])) or "are read" in said


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "adapter/../../secret", "", "."])
def test_a_manifest_names_nothing_outside_of_its_directory(tmp_path: Path, name: str):
    directory = a_result(tmp_path, sealed=False)
    (directory.parent / "secret").write_bytes(b"secret")
    manifest = directory / MANIFEST
    manifest.write_text(manifest.read_text().replace('"README.md"', f'"{name}"'))
    (directory / "README.md").unlink()
    assert "lacks" in refusal(tmp_path, KINDS["clear"])


def test_directories_deep_in_each_other_are_refused(tmp_path: Path):
    descriptor = os.open(a_result(tmp_path, sealed=False), os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d", dir_fd=descriptor)
        descriptor, above = os.open("d", os.O_RDONLY, dir_fd=descriptor), descriptor
        os.close(above)
    os.close(descriptor)
    assert "no file of a result" in refusal(tmp_path, KINDS["clear"])
