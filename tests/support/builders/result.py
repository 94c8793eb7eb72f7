"""Results as a job's export writes them, without training anything."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from deepseek_trainer.result.manifest import File, Manifest, write_manifest
from deepseek_trainer.storage.vault import Purpose
from support.builders.vault import JOB, a_vault

FILES: Mapping[str, bytes] = MappingProxyType(
    {"model.safetensors": b"weights", "README.md": b"card", "adapter/adapter_config.json": b"{}"}
)


def a_result(
    work: Path,
    *,
    sealed: bool = True,
    clear_files: bool = False,
    job: str = JOB,
    files: Mapping[str, bytes] = FILES,
    commit: str | None = None,
    step: int = 20,
) -> Path:
    """A result of `job` in `work`, and its directory.  `clear_files`: as the file of a sealed job may ask for."""
    directory = work / "export" / job.rpartition("/")[2]
    vault = a_vault(work, purpose=Purpose.EXPORT, job=job, sealed=sealed)
    writer = a_vault(work, purpose=Purpose.EXPORT, job=job, sealed=sealed and not clear_files)
    listed = []
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        listed.append(File.of(name, writer.write(directory / name, content)))
    manifest = Manifest(
        job=job,
        name=directory.name,
        created="2026-11-21T00:00:00Z",
        key_id=writer.key_id,
        step=step,
        commit=commit,
        files=tuple(listed),
    )
    write_manifest(manifest, directory, vault)
    return directory
