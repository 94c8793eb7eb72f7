"""The programs of the cluster: Debian's container tools, and one Go program built from `kube/`."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

from layout import CACHE, SOURCE
from shell import ClusterError, run, say

VERSION = "v1.34.4"
COMPONENTS = (
    "coredns",
    "etcd",
    "gpus",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "provisioner",
)
PACKAGE_OF = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "openssl": "openssl",
    "ip": "iproute2",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}


def install_packages() -> None:
    """Debian packages that are missing; needs root and apt only then."""
    missing = [package for program, package in PACKAGE_OF.items() if not shutil.which(program)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise ClusterError(f"missing: {' '.join(missing)}: install them with this system's package manager")
    say(f"installing {' '.join(missing)}")
    run("apt-get", "update", "-q")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "install", "-y", "-q", "--no-install-recommends", *missing, env=environment)


def programs() -> Path:
    """Directory with one name per component, built when the sources have changed."""
    directory = CACHE / content_hash()
    if not (directory / "complete").exists():
        build(directory)
    return directory


def content_hash() -> str:
    digest = hashlib.sha256(VERSION.encode())
    for path in sorted(SOURCE.rglob("*")):
        if path.suffix == ".go" or path.name in ("go.mod", "go.sum"):
            digest.update(f"{path.relative_to(SOURCE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def build(directory: Path) -> None:
    if not shutil.which("go"):
        raise ClusterError("no go in PATH: install Go 1.26 or newer")
    say("building Kubernetes: 6 to 10 minutes on 2 cores, seconds when Go's cache is warm")
    directory.mkdir(parents=True, exist_ok=True)
    go_build(directory / "kube", ".")
    go_build(directory / "pause", "./pause")
    for component in COMPONENTS:
        (directory / component).unlink(missing_ok=True)
        (directory / component).symlink_to("kube")
    write_pause_image(directory / "pause.tar", (directory / "pause").read_bytes())
    (directory / "complete").touch()


def go_build(target: Path, package: str) -> None:
    stamps = [
        f"-X k8s.io/{module}.gitVersion={VERSION}" for module in ("component-base/version", "client-go/pkg/version")
    ]
    flags = ["-trimpath", "-buildvcs=false", "-ldflags", " ".join(["-s", "-w", *stamps])]
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    run("nice", "-n", "5", "go", "build", *flags, "-o", target, package, cwd=SOURCE, env=environment)


def write_pause_image(path: Path, program: bytes) -> None:
    """An image archive with one file, the pods' first process."""
    layer = tar_of({"pause": program})
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    manifest = [{"Config": "config.json", "RepoTags": ["localhost/pause:1"], "Layers": ["layer.tar"]}]
    files = {"manifest.json": json.dumps(manifest).encode(), "config.json": config, "layer.tar": layer}
    path.write_bytes(tar_of(files))


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
