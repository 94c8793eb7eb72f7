#!/usr/bin/env python3
"""Print the directory of helm, helm-unittest, kubeconform and promtool; build it when it is missing.

The versions are those of `tools/go.mod`, where one module holds all three: they share most of their dependencies, and
helm-unittest cannot be built by `go install` because it replaces one.  Built once per content of that module into
`~/.cache/dstj/tools/<content>/bin`; promtool comes from Debian's `prometheus` unless the machine has one.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

MODULE: Final = Path(__file__).resolve().parent / "tools"
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dstj" / "tools"
PACKAGES: Final = (
    "helm.sh/helm/v3/cmd/helm",
    "github.com/helm-unittest/helm-unittest/cmd/helm-unittest",
    "github.com/yannh/kubeconform/cmd/kubeconform",
)


def directory() -> Path:
    """Where the programs are, complete.  Several callers wait for one build."""
    place = CACHE / content_hash() / "bin"
    place.mkdir(parents=True, exist_ok=True)
    with (place.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place.parent / "complete").exists():
            build(place)
            provide_promtool(place / "promtool")
            (place.parent / "complete").touch()
    return place


def content_hash() -> str:
    sources = (Path(__file__), MODULE / "go.mod", MODULE / "go.sum")
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def build(place: Path) -> None:
    sys.stderr.write("building helm, helm-unittest and kubeconform: 3 to 5 minutes on 2 cores\n")
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false -p=2"}
    command = ["nice", "-n", "10", "go", "build", "-trimpath", "-ldflags", link_flags(), "-o", f"{place}/", *PACKAGES]
    subprocess.run(command, cwd=MODULE, env=environment, check=True)


def link_flags() -> str:
    """What Helm's own build stamps: without it, `helm template` takes the cluster for Kubernetes 1.20."""
    _, minor, _ = version("k8s.io/client-go").split(".")
    stamps = {"helm.sh/helm/v3/internal/version.version": version("helm.sh/helm/v3")}
    for package in ("chartutil", "lint/rules"):
        stamps[f"helm.sh/helm/v3/pkg/{package}.k8sVersionMajor"] = "1"
        stamps[f"helm.sh/helm/v3/pkg/{package}.k8sVersionMinor"] = minor
    return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in stamps.items())])


def version(module: str) -> str:
    """Version of a module that go.mod requires."""
    words = (line.split() for line in (MODULE / "go.mod").read_text().splitlines())
    return next(line[1] for line in words if line and line[0] == module)


def provide_promtool(target: Path) -> None:
    if found := shutil.which("promtool"):
        target.symlink_to(found)
        return
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "update", "-q"], stdout=sys.stderr, check=True)
        subprocess.run(["apt-get", "download", "-q", "prometheus"], cwd=scratch, stdout=sys.stderr, check=True)
        (package,) = Path(scratch).glob("prometheus_*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, scratch], check=True)
        shutil.copy2(Path(scratch) / "usr" / "bin" / "promtool", target)


def module(path: str, release: str) -> Path:
    """Directory of a Go module's files, downloaded once into Go's own cache."""
    command = ["go", "mod", "download", "-json", f"{path}@{release}"]
    answer = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout
    return Path(next(line.split('"')[3] for line in answer.splitlines() if '"Dir"' in line))


if __name__ == "__main__":
    sys.stdout.write(f"{directory()}\n")
