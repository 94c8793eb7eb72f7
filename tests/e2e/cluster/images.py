"""Images from Dockerfiles, without a daemon and without a registry, given to the nodes' containerd.

An image's layers are unpacked once, in buildah's storage.  A node gets hard links to them as containerd snapshots,
and of the image itself only manifest and config: gigabytes are neither packed nor copied.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build import need_room, tar_of
from layout import CACHE, NODES, STATE, Node
from machines import command_in, inside, is_on
from shell import ClusterError, run, run_shown, say, succeeds, wait_until

STORAGE = CACHE / "images"
ROOM_BYTES = 30 << 30  # below this, images of earlier builds are forgotten
BUILD_BYTES = 25 << 30  # the trainer's image has 7 GB, and its layers exist several times while they are committed
SUITE = "bookworm"
# libstdc++6: torch; the public Python images have it.  usr-is-merged: else usrmerge brings 60 MB of Perl.
PACKAGES = "python3,python3-venv,ca-certificates,libstdc++6,usr-is-merged"
MERGED_USR = Path("/usr/share/mmdebstrap/hooks/merged-usr")
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# What a build needs from a site: its certificate authorities and its package index.
SITE_FILES = ("/etc/ssl/certs", "/etc/pip.conf")
# What `make setup` downloaded need not be downloaded again.
PACKAGE_CACHE = Path(os.environ.get("UV_CACHE_DIR", Path.home() / ".cache" / "uv"))


@dataclass(frozen=True)
class Image:
    """What buildah knows of an image: its documents, and where each layer lies unpacked, lowest first."""

    manifest: bytes
    config: bytes
    layers: tuple[Path, ...]

    @property
    def digest(self) -> str:
        return digest(self.manifest)

    @property
    def chain(self) -> tuple[str, ...]:
        """Name of each layer's snapshot: a digest over it and all below it (OCI image spec, ChainID)."""
        names: list[str] = []
        for diff in json.loads(self.config)["rootfs"]["diff_ids"]:
            names.append(digest(f"{names[-1]} {diff}".encode()) if names else diff)
        return tuple(names)


def provide(name: str, dockerfile: Path, context: Path) -> str:
    """Build an image where something in it has changed, give it to the nodes that are on; its name by digest."""
    registry, slash, _ = name.partition("/")
    if not slash or not (registry == "localhost" or set(".:") & set(registry)):
        raise ClusterError(f"image {name!r} names no registry: write localhost/{name}")
    build(name, dockerfile, context)
    image = inspect(name)
    by_digest = f"{name.rpartition(':')[0] or name}@{image.digest}"
    for node in filter(is_on, NODES):
        give(node, image, (name, by_digest))
    return by_digest


def build(name: str, dockerfile: Path, context: Path) -> None:
    site = [f"--volume={path}:{path}:ro" for path in SITE_FILES if Path(path).exists()]
    base = f"--build-arg=BASE={base_image()}"
    if PACKAGE_CACHE.is_dir():
        site.append(f"--volume={PACKAGE_CACHE}:/root/.cache/uv")
    buildah("rm", "--all")  # what a build that was stopped has left half made: gigabytes
    make_room()
    if not buildah_knows(name):  # else most of its layers are there
        need_room(STORAGE, BUILD_BYTES)
    say(f"building {name}: seconds where nothing has changed, up to 5 minutes for the trainer's")
    with buildah_command() as command:
        run_shown(
            *(*command, "bud", "--isolation=chroot", "--layers", base, *site),
            *("--file", dockerfile, "--tag", name, context),
            describe=last_step,
        )


def last_step(said: list[str]) -> str:
    return next((line for line in reversed(said) if line.startswith("STEP ")), "preparing")[:100]


def make_room() -> None:
    """Forget images of earlier builds where the disk could not hold another; their layers are built again if needed."""
    if STORAGE.is_dir() and shutil.disk_usage(STORAGE).free < ROOM_BYTES:
        say("little space is left: forgetting images that nothing names")
        buildah("rmi", "--prune", "--force")


def base_image() -> str:
    """Debian with Python and little else, made once; stands in for the Dockerfiles' public base image."""
    recipe = digest(" ".join((SUITE, PACKAGES, *LEFT_OUT)).encode()).removeprefix("sha256:")[:12]
    name = f"localhost/dstj-base:{recipe}"
    if not buildah_knows(name):
        say("making the base image: about a minute")
        directory = STORAGE / "base"
        directory.mkdir(parents=True, exist_ok=True)
        bootstrap(directory / "base.tar")
        (directory / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        buildah("bud", "--quiet", "--isolation=chroot", "--tag", name, directory)
        (directory / "base.tar").unlink()
    return name


def bootstrap(archive: Path) -> None:
    sources = [
        path for path in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list") if Path(path).exists()
    ]
    without = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    # Dockerfiles written for the public Python images say `python`.
    link = "--customize-hook=ln -s python3 $1/usr/bin/python"
    run(
        "mmdebstrap",
        "--quiet",
        "--variant=essential",
        f"--include={PACKAGES}",
        f"--hook-dir={MERGED_USR}",
        *without,
        link,
        SUITE,
        archive,
        *sources[:1],
    )


def buildah(*arguments: str | Path) -> str:
    with buildah_command() as command:
        return run(*command, *arguments)


@contextmanager
def buildah_command() -> Iterator[list[str]]:
    """In mounts of its own, which end with it, as what it notes of them does."""
    with tempfile.TemporaryDirectory(prefix="dstj-buildah-") as notes:
        storage = [f"--root={STORAGE}/storage", f"--runroot={notes}", "--storage-driver=overlay"]
        yield ["nice", "-n", "5", "unshare", "--mount", "buildah", *storage]


def buildah_knows(name: str) -> bool:
    try:
        buildah("inspect", "--type", "image", name)
    except ClusterError:
        return False
    return True


def inspect(name: str) -> Image:
    found = json.loads(buildah("inspect", "--type", "image", name))
    images = {image["id"]: image for image in stored("overlay-images/images.json")}
    layers = {layer["id"]: layer for layer in stored("overlay-layers/layers.json")}
    paths, layer = [], images[found["FromImageID"]].get("layer")
    while layer:
        paths.append(STORAGE / "storage/overlay" / layer / "diff")
        layer = layers[layer].get("parent")
    return Image(found["Manifest"].encode(), found["Config"].encode(), tuple(reversed(paths)))


def stored(path: str) -> list[dict[str, Any]]:
    return list(json.loads((STORAGE / "storage" / path).read_text()))


def give(node: Node, image: Image, wanted: tuple[str, ...]) -> None:
    known = digests(node)
    if all(known.get(name) == image.digest for name in wanted):
        return
    say(f"{wanted[0]} -> {node.name}")
    below: str | None = None
    for directory, snapshot in zip(image.layers, image.chain, strict=True):
        link_layer(node, directory, snapshot, below)
        below = snapshot
    import_archive(node, archive_of(image, wanted))


def link_layer(node: Node, layer: Path, snapshot: str, below: str | None) -> None:
    if has_snapshot(node, snapshot):
        return
    active = f"dstj-{snapshot}"
    if has_snapshot(node, active):  # left by an interrupted run
        ctr(node, "snapshots", "rm", active)
    ctr(node, "snapshots", "prepare", active, *([below] if below else []))
    target = upper_directory(node, ctr(node, "snapshots", "mounts", "/mnt", active))
    link = "--link" if target.stat().st_dev == layer.stat().st_dev else "--reflink=auto"
    run("cp", "--archive", link, f"{layer}/.", target)
    ctr(node, "snapshots", "commit", snapshot, active)


def upper_directory(node: Node, mount: str) -> Path:
    """Where a snapshot is written, from the mount command that shows it.

    As the host names it: seen from the node it is on another mount, and links do not cross mounts.
    """
    words = mount.split()
    options = dict(option.partition("=")[::2] for option in words[words.index("-o") + 1].split(","))
    inner = options.get("upperdir") or words[words.index("bind") + 1]
    return STATE / node.name / "containerd" / Path(inner).relative_to("/var/lib/containerd")


def archive_of(image: Image, wanted: tuple[str, ...]) -> bytes:
    """An OCI archive without layers: containerd asks for none whose snapshot it has."""
    kind = json.loads(image.manifest)["mediaType"]
    entry = {"mediaType": kind, "digest": image.digest, "size": len(image.manifest)}
    manifests = [entry | {"annotations": {"io.containerd.image.name": name}} for name in wanted]
    blobs = {f"blobs/sha256/{digest(blob).removeprefix('sha256:')}": blob for blob in (image.manifest, image.config)}
    layout = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    index = {"index.json": json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()}
    return tar_of(layout | blobs | index)


def import_archive(node: Node, archive: bytes) -> None:
    command = command_in(node, "ctr", "--namespace=k8s.io", "images", "import", "-")
    done = subprocess.run(command, input=archive, capture_output=True, check=False)
    if done.returncode:
        raise ClusterError(f"{node.name} refuses the image: {done.stderr.decode().strip()}")


def await_containerd(node: Node) -> None:
    version = command_in(node, "ctr", "version")
    wait_until(f"containerd answers on {node.name}", lambda: succeeds(*version), 30)


def digests(node: Node) -> dict[str, str]:
    """What the node has, by name: the digest of each image's manifest."""
    rows = [line.split() for line in ctr(node, "images", "ls").splitlines()[1:]]
    return {row[0]: row[2] for row in rows}


def has_snapshot(node: Node, name: str) -> bool:
    return succeeds(*command_in(node, "ctr", "--namespace=k8s.io", "snapshots", "info", name))


def ctr(node: Node, *arguments: str) -> str:
    return inside(node, "ctr", "--namespace=k8s.io", *arguments)


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
