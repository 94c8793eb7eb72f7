"""Mounts volumes without a kubelet, as links and files below the job's own directory."""

from pathlib import Path

from deepseek_trainer.contract.errors import TryAgainError
from deepseek_trainer.storage.durable import remove, replace_file
from dstj.local.claims import Sources
from dstj.local.kubelet import Manifest, field_of, mounts


def mount_all(pod: Manifest, root: Path, sources: Sources) -> None:
    """Put every volume of `pod` in its place below `root`.  An emptyDir is the pod's scratch and needs nothing."""
    for mount in mounts(pod):
        place = root / mount.path.lstrip("/")
        volume = mount.volume
        if "persistentVolumeClaim" in volume:
            _link(place, sources.claims[volume["persistentVolumeClaim"]["claimName"]])
        elif "downwardAPI" in volume:
            items = volume["downwardAPI"]["items"]
            _write(place, {item["path"]: field_of(pod, item["fieldRef"]["fieldPath"]) for item in items})
        elif "secret" in volume:
            _link_secret(place, sources.secrets[volume["secret"]["secretName"]])
        elif "projected" in volume and sources.key_server:
            _make_anew(place)
            sources.key_server.lay_into(place)


def _link(place: Path, target: Path) -> None:
    if not target.is_dir():
        raise TryAgainError(
            f"{target}, which the job mounts, is gone", hint="put it back, or give another directory with --volume"
        )
    if place == target:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def _write(place: Path, data: dict[str, str]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, text in data.items():
        replace_file(place / name, text.encode())


def _link_secret(place: Path, secret: Path) -> None:
    """Link the keys instead of copying them: a key that is deleted or rotated must not live on beside what it seals."""
    _remove(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(secret)


def _make_anew(place: Path) -> None:
    _remove(place)
    place.mkdir(parents=True, mode=0o700)


def _remove(place: Path) -> None:
    if place.is_symlink():
        place.unlink()
    remove(place, ignore_errors=True)
