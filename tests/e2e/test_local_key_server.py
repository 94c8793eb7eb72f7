"""A job through `dstj run` whose key-encryption key a server keeps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.builders.local_job import Job, short
from support.fakes.vault_server import TransitKey, VaultServer, vault_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[VaultServer]:
    with vault_server(tmp_path / "certificates") as it:
        yield it


@pytest.fixture
def job(tmp_path: Path, server: VaultServer) -> Job:
    def served(spec: dict[str, Any]) -> None:
        short(spec)
        auth, ca = {"serviceAccount": {"role": "trainer"}}, {"configMapName": "vault"}
        transit = {"address": server.address, "keyName": "training", "auth": auth, "caCertificate": ca}
        spec["checkpoint"]["encryption"] = {"keyRef": {"vaultTransit": transit}}

    made = Job(tmp_path / "job", served)
    place = made.home / "configmaps" / "vault" / "ca.crt"
    place.parent.mkdir(parents=True)
    place.write_bytes(server.ca.read_bytes())
    return made


def a_token(directory: Path, content: str = "hvs.good") -> str:
    path = directory / "token"
    path.write_text(content)
    path.chmod(0o600)
    return str(path)


def test_the_key_never_leaves_the_server_and_opens_the_result(tmp_path: Path, job: Job, server: VaultServer) -> None:
    done = job.run("--vault-token", a_token(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.requests.count("/v1/transit/encrypt/training") == 1
    decrypts = server.requests.count("/v1/transit/decrypt/training")
    assert decrypts <= 2 + 4, "twice for the new key, then once for each process of two nodes"
    out = str(tmp_path / "out")
    for command in (["checkpoint", "verify", "pretrain-tiny"], ["result", "pretrain-tiny", "--to", out]):
        done = job.dstj(*command)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
    secrets = (b"hvs.good", *(version for key in server.keys.values() for version in key.versions))
    files = [path for path in job.place.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in files for secret in secrets if secret in path.read_bytes()]
    server.keys["training"] = TransitKey()
    replaced = job.run("--recreate", "--vault-token", a_token(tmp_path))
    assert replaced.returncode == 77, replaced.stdout + replaced.stderr
    assert "does not unwrap for this job" in replaced.stdout + replaced.stderr


def test_a_server_that_denies_ends_the_job_and_says_why(tmp_path: Path, job: Job, server: VaultServer) -> None:
    denied = job.run("--vault-token", a_token(tmp_path, "hvs.expired"))
    assert denied.returncode == 77, denied.stdout + denied.stderr
    assert "denies to encrypt with vault-transit:transit/training" in denied.stdout + denied.stderr
    assert "hvs.expired" not in denied.stdout + denied.stderr
