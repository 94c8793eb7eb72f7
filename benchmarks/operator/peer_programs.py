"""Peers of peers.py as programs: fetched as Go modules, built, applied to a control plane and started.

A module's source is copied out of Go's module cache and built inside its own module, so that its own versions hold.
Programs are kept below $XDG_CACHE_HOME/dstj/peers (or ~/.cache) until their row changes; a build takes minutes and,
besides Go, nothing but the module proxy.  Manifests are those of the archives; webhooks get an address on loopback in
place of a Service, since nothing here routes to Services.
"""

import base64
import functools
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from peers import Component
from plane import PATIENCE_S, Plane
from processes import wait_until_healthy

from dstj.local.machine import free_ports

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dstj" / "peers"
NAMES = ("IP:127.0.0.1", "DNS:training-operator-ca", "DNS:training-operator.kubeflow.svc")
CERTIFICATES = "k8s-webhook-server/serving-certs"  # below TMPDIR, where all of them look
CONFIGURATION = "/controller_manager_config.yaml"  # in their pods
Document = dict[str, Any]
Ports = Mapping[str, int]


def built(component: Component) -> Path:
    """A directory with the program, `manager`, and its `source`; built where it is not there."""
    key = hashlib.sha256(repr((component.package, component.edits, sorted(component.files.items()))).encode())
    directory = CACHE / f"{component.name}-{component.version}-{key.hexdigest()[:8]}"
    if not (directory / "manager").exists():
        print(f"building {component.module} {component.version}", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        _copy_source(component, directory / "source")
        _build(component, directory)
    return directory


def _copy_source(component: Component, source: Path) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    fetch = ["go", "mod", "download", "-json", f"{component.module}@{component.version}"]
    fetched = json.loads(subprocess.run(fetch, check=True, cwd=CACHE, stdout=subprocess.PIPE).stdout)
    shutil.copytree(fetched["Dir"], source)
    subprocess.run(["chmod", "-R", "u+w", source], check=True)
    for path, text in component.files.items():
        (source / path).write_text(text)
    for path, old, new in component.edits:
        text = (source / path).read_text()
        if old not in text:
            raise SystemExit(f"{component.module} {component.version}: {path} has no {old!r}: mend its row in peers.py")
        (source / path).write_text(text.replace(old, new))


def _build(component: Component, directory: Path) -> None:
    command = ["nice", "-n", "5", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", directory / "manager"]
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    subprocess.run([*command, component.package], check=True, cwd=directory / "source", env=environment)


@contextmanager
def running(plane: Plane, components: Sequence[Component], *, raised: bool) -> Iterator[dict[str, int]]:
    """Apply their manifests and start its programs; their process ids by name, once all of them are ready."""
    _make_certificate(plane.directory / CERTIFICATES)
    with ExitStack() as stack:
        yield {part.name: stack.enter_context(_started(plane, part, raised=raised)) for part in components}


@contextmanager
def _started(plane: Plane, component: Component, *, raised: bool) -> Iterator[int]:
    directory = built(component)
    ports = dict(zip(("webhook", "health"), free_ports(2), strict=True))
    manifests = [_rendered(plane, directory / "source" / each) for each in component.kustomizations]
    for documents in manifests:
        _apply(plane, [_on_loopback(plane, document, ports["webhook"]) for document in documents])
    settings = plane.directory / f"{component.name}.yaml"
    settings.write_text(json.dumps(_settings(component, manifests[0], ports, raised=raised)))
    arguments = _arguments(component, manifests[0], ports, raised=raised)
    command = [directory / "manager", *(word.replace(CONFIGURATION, str(settings)) for word in arguments)]
    environment = os.environ | {
        "KUBECONFIG": str(_kubeconfig(plane, component)),
        "TMPDIR": str(plane.directory),  # of the certificates
    }
    log = plane.directory / f"{component.name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=plane.directory)
    try:
        wait_until_healthy(process, ports["health"], "readyz")
        _wait_until_at_work(log)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_at_work(log: Path) -> None:
    """Until it leads and its caches are full, of which no endpoint tells."""
    end = time.monotonic() + PATIENCE_S
    while "Starting workers" not in log.read_text():
        if time.monotonic() > end:
            raise TimeoutError(f"no worker has started after {PATIENCE_S:.0f} s: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def _rendered(plane: Plane, kustomization: Path) -> list[Document]:
    command = [plane.kubectl, "kustomize", kustomization]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def _on_loopback(plane: Plane, document: Document, port: int) -> Document:
    """Webhooks are called at an address; Secrets, which are all of webhooks, hold the certificate."""
    certificate, key = (plane.directory / CERTIFICATES / f"tls.{part}" for part in ("crt", "key"))
    if document["kind"] == "Secret":
        pair = {f"{who}.crt": certificate for who in ("ca", "tls")} | {f"{who}.key": key for who in ("ca", "tls")}
        return document | {"data": {name: _base64(path) for name, path in pair.items()}}
    for webhook in document.get("webhooks", ()):
        path = webhook["clientConfig"].pop("service")["path"]
        webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": _base64(certificate)}
    return document


def _apply(plane: Plane, documents: list[Document]) -> None:
    """All but Deployments, whose program runs here; CRDs are served afterwards."""
    wanted = [document for document in documents if document["kind"] != "Deployment"]
    flags = ["apply", "--server-side", "--filename=-"]
    _kubectl(plane, *flags, given=json.dumps({"apiVersion": "v1", "kind": "List", "items": wanted}))
    _kubectl(plane, "wait", "--for=condition=Established", "customresourcedefinitions", "--all")


def _arguments(component: Component, documents: Sequence[Document], ports: Ports, *, raised: bool) -> list[str]:
    """Those of its Deployment, and ours."""
    deployment = next(document for document in documents if document["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    flags = [*component.flags, *(component.raised_flags if raised else ())]
    return [*container.get("args", ()), *(flag.format(**ports) for flag in flags)]


def _settings(component: Component, documents: Sequence[Document], ports: Ports, *, raised: bool) -> Document:
    """Its configuration file, with where to listen, and where the Lease is: out of a pod, nobody tells."""
    here = {
        "webhook": {"host": "127.0.0.1", "port": ports["webhook"]},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{ports['health']}"},
        "metrics": {"bindAddress": "0"},
        "leaderElection": {"resourceNamespace": component.account.split(":")[2]},
    }
    files = [document["data"] for document in documents if document["kind"] == "ConfigMap"]
    theirs = [yaml.safe_load(text) for file in files for name, text in file.items() if name == CONFIGURATION[1:]]
    raises = component.raised_settings if raised else {}
    return functools.reduce(_merged, [*theirs, here, component.settings, raises], {})


def _merged(below: Document, above: Mapping[str, Any]) -> Document:
    """`above` over `below`, part by part."""
    return below | {
        name: _merged(below.get(name) or {}, value) if isinstance(value, Mapping) else value
        for name, value in above.items()
    }


def _kubeconfig(plane: Plane, component: Component) -> Path:
    """With the token of its own service account: its own role is all that it may do."""
    namespace, name = component.account.split(":")[2:]
    token = _kubectl(plane, "create", "token", name, f"--namespace={namespace}", "--duration=24h").strip()
    config = json.loads(plane.kubeconfig("load").read_text())
    config["users"][0]["user"] = {"token": token}
    plane.kubeconfig(component.name).write_text(json.dumps(config))
    return plane.kubeconfig(component.name)


def _kubectl(plane: Plane, *arguments: str, given: str | None = None) -> str:
    command = [plane.kubectl, f"--kubeconfig={plane.kubeconfig('load')}", *arguments]
    return subprocess.run(command, check=True, input=given, stdout=subprocess.PIPE, text=True).stdout


def _make_certificate(directory: Path) -> None:
    """One that signs itself is certificate and authority; training-operator takes its key as PKCS#1 only."""
    directory.mkdir(parents=True)
    key, certificate = directory / "tls.key", directory / "tls.crt"
    subprocess.run(["openssl", "genrsa", "-traditional", "-out", key, "2048"], check=True, stderr=subprocess.DEVNULL)
    extensions = [f"subjectAltName={','.join(NAMES)}", "extendedKeyUsage=serverAuth"]
    added = [word for extension in extensions for word in ("-addext", extension)]
    command = ["openssl", "req", "-x509", "-key", key, "-out", certificate, "-days", "365", "-subj", "/CN=webhooks"]
    subprocess.run([*command, *added], check=True)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
