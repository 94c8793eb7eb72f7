"""The programs of the cluster: Debian's container tools, one Go program built from `kube/`, and a firewall."""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from pathlib import Path

from layout import CACHE, SOURCE
from shell import ClusterError, run, run_shown, say

VERSION = "v1.34.4"
FIREWALL = "github.com/cloudnativelabs/kube-router/v2@v2.1.0"
FIREWALL_SUM = "h1:xWsptKtmZ44L+NjwFKoFAFlVdxCz8fka9A/eYJe95Ok="  # of its sources, as a go.sum would say it
# Without these edits it keeps to no policy by IPv6, and to old ones by both: file, mistake, correction.
FIREWALL_EDITS = (
    # Rules name IPv6 sets without their prefix, and ip6tables refuses them all: its issue 1653.
    (
        "pkg/controllers/netpol/policy.go",
        r'(--match-set", )(\w+)',
        r"\1npc.ipSetHandlers[ipFamily].Name(\2)",
    ),
    # Policies say nothing of ICMP, and without it isolated pods do not find their neighbours.
    (
        "pkg/controllers/netpol/pod.go",
        r'(comment = "\\"rule for stateful firewall for pod)',
        r'if ipFamily == api.IPv6Protocol { filterTableRules.WriteString("-I " + podFwChainName + '
        r'" 1 -p ipv6-icmp -j ACCEPT \\n") }\n\1',
    ),
    # Each family writes the sets of the other back as it had read them before.
    (
        "pkg/utils/ipset.go",
        r'(content := strings.Split\(line, " "\)\n)',
        r'\1if len(content) > 1 && strings.HasPrefix(content[1], IPv6SetPrefix+":") != ipset.isIpv6 { continue }\n',
    ),
)
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
BUILD_BYTES = 6 << 30  # sources, Go's cache and the programs
UNUSED_S = 7 * 24 * 3600.0
PATIENCE_S = 600.0
LOCK_PAUSE_S = 5.0
LOCK_HELD = ("Could not get lock", "Unable to acquire the dpkg frontend lock", "Unable to lock directory")
PACKAGE_OF = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ipset": "ipset",
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
    apt_get("update", "-q")
    apt_get("install", "-y", "-q", "--no-install-recommends", *missing)


def apt_get(*arguments: str) -> None:
    """Waits for whoever installs or updates packages now: a new machine does so by itself for its first minutes."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    end, told = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            run("apt-get", *arguments, env=environment)
            return
        except ClusterError as error:
            if not any(words in str(error) for words in LOCK_HELD) or time.monotonic() > end:
                raise
        if not told:
            say(f"another program holds the lock of the package manager: waiting up to {PATIENCE_S / 60:.0f} minutes")
        told = True
        time.sleep(LOCK_PAUSE_S)


def programs() -> Path:
    """Directory with one name per component, built when the sources have changed."""
    directory = CACHE / content_hash()
    if not (directory / "complete").exists():
        forget_unused()
        build(directory)
    (directory / "complete").touch()
    return directory


def forget_unused() -> None:
    """Delete the programs of sources that nobody has used for long, in any checkout and by any cluster."""
    for mark in (*CACHE.glob("*/complete"), *CACHE.glob("modules/*/kube-router")):
        if time.time() - mark.stat().st_mtime > UNUSED_S:
            shutil.rmtree(mark.parent)


def content_hash() -> str:
    digest = hashlib.sha256(f"{VERSION} {FIREWALL_SUM} {FIREWALL_EDITS}".encode())
    for path in sorted(SOURCE.rglob("*")):
        if path.suffix == ".go" or path.name in ("go.mod", "go.sum"):
            digest.update(f"{path.relative_to(SOURCE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def build(directory: Path) -> None:
    if not shutil.which("go"):
        raise ClusterError("no go in PATH: install Go 1.26 or newer")
    say("building Kubernetes: 6 to 10 minutes on 2 cores, seconds when Go's cache is warm")
    need_room(CACHE, BUILD_BYTES)
    directory.mkdir(parents=True, exist_ok=True)
    go_build(directory / "kube", ".")
    go_build(directory / "pause", "./pause")
    for component in COMPONENTS:
        (directory / component).unlink(missing_ok=True)
        (directory / component).symlink_to("kube")
    (directory / "kube-router").unlink(missing_ok=True)
    (directory / "kube-router").symlink_to(firewall())
    write_pause_image(directory / "pause.tar", (directory / "pause").read_bytes())
    (directory / "complete").touch()


def firewall() -> Path:
    """kube-router, built once, whatever becomes of `kube/`.

    It is built inside its own module, whose go.sum has the checksums of all that it uses; FIREWALL_SUM has its own.
    """
    key = hashlib.sha256(f"{FIREWALL_SUM} {FIREWALL_EDITS}".encode()).hexdigest()[:16]
    target = CACHE / "modules" / key / "kube-router"
    if not target.exists():
        say("building kube-router: 1 to 2 minutes on 2 cores")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            source = Path(shutil.copytree(firewall_source(), f"{scratch}/source", copy_function=shutil.copyfile))
            mend(source)
            go_build(Path(scratch) / "built", "./cmd/kube-router", source)
            (Path(scratch) / "built").replace(target)
    return target


def mend(source: Path) -> None:
    for name, mistake, correction in FIREWALL_EDITS:
        text, count = re.subn(mistake, correction, (source / name).read_text())
        if not count:
            raise ClusterError(f"{FIREWALL}: nothing in {name} looks like {mistake!r}: is it mended there?")
        (source / name).write_text(text)


def firewall_source() -> Path:
    """Where Go keeps the module's files, which nobody may write there."""
    found = json.loads(run("go", "mod", "download", "-json", FIREWALL, cwd="/"))
    if found["Sum"] != FIREWALL_SUM:
        raise ClusterError(f"{FIREWALL} has the checksum {found['Sum']}, not {FIREWALL_SUM}: these are other sources")
    return Path(found["Dir"])


def go_build(target: Path, package: str, source: Path = SOURCE) -> None:
    stamps = [
        f"-X k8s.io/{module}.gitVersion={VERSION}" for module in ("component-base/version", "client-go/pkg/version")
    ]
    flags = ["-trimpath", "-buildvcs=false", "-ldflags", " ".join(["-s", "-w", *stamps])]
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    run("go", "mod", "download", cwd=source, env=environment)
    total = len(run("go", "list", "-deps", package, cwd=source, env=environment).split())
    run_shown(
        *("nice", "-n", "5", "go", "build", "-v", *flags, "-o", target, package),
        describe=lambda said: f"{len(said)} of at most {total} packages",
        cwd=source,
        env=environment,
    )


def need_room(directory: Path, size: int) -> None:
    """Raises ClusterError where the disk of `directory` has less than `size` free bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    say(f"takes up to {size >> 30} GB below {directory}, where {free >> 30} GB are free")
    if free < size:
        raise ClusterError(
            f"{directory} has {free >> 30} GB free and {size >> 30} GB are needed: make room, "
            "or let XDG_CACHE_HOME and DSTJ_CLUSTER_STATE name another disk"
        )


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
