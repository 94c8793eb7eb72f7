"""The real cluster as its users have it: kubectl, namespaces, claims with files, and waiting for what ought to come."""

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from deepseek_operator.api.names import API_VERSION, KIND
from deepseek_operator.jobs.labels import attempt_of
from deepseek_operator.jobs.resources import GPU
from support.builders.operator import SPEC, merged
from support.cluster import api
from support.cluster.api import Manifest, Server, path_of

Found = TypeVar("Found")

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "tests" / "e2e" / "cluster" / "cluster.py"
STATE = Path(os.environ.get("DSTJ_CLUSTER_STATE", "/var/lib/dstj-cluster"))
KUBECONFIG = STATE / "pki" / "admin.conf"
VOLUMES = STATE / "volumes"
LOGS = STATE / "logs"
AUDIT_LOG = LOGS / "control" / "audit.log"
CHART = ROOT / "helm" / "deepseek-operator"
RELEASE = "deepseek-operator"
OPERATOR_NAMESPACE = "deepseek-system"
SELECTOR = "app.kubernetes.io/name=deepseek-operator,pod-template-hash"  # not the pod of `helm test`
PAUSE = {  # the spec of a pod that does nothing, as namespaces under the `restricted` standard let it
    "restartPolicy": "Never",
    "securityContext": {"runAsNonRoot": True, "runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "pause",
            "image": "localhost/pause:1",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
}


def cluster(*arguments: str) -> str:
    """Run cluster.py; its standard output."""
    return run(sys.executable, str(CLUSTER), *arguments).strip()


def run(*command: str, input: str | None = None, env: dict[str, str] | None = None) -> str:
    """Standard output; AssertionError with what it said where it fails."""
    done = subprocess.run(command, input=input, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def kubectl(*arguments: str, input: str | None = None) -> str:
    return run(*kubectl_command(*arguments), input=input)


def refused(*arguments: str, input: str | None = None) -> str:
    """What the API server says to a command that must fail."""
    done = subprocess.run(kubectl_command(*arguments), input=input, capture_output=True, text=True, check=False)
    assert done.returncode != 0, f"kubectl {' '.join(arguments)} was accepted:\n{done.stdout}"
    return done.stderr


def kubectl_command(*arguments: str) -> tuple[str, ...]:
    return (str(STATE / "bin" / "kubectl"), f"--kubeconfig={KUBECONFIG}", *arguments)


def everything(*arguments: str) -> set[str]:
    """`kind/name` of what `kubectl get ARGUMENTS` finds of any kind, events aside; with -n of those with namespaces."""
    namespaced = ["--namespaced=true"] if "-n" in arguments else []
    kinds = kubectl("api-resources", "--verbs=list", "-o", "name", *namespaced).split()
    left_out = {"events", "events.events.k8s.io", "componentstatuses"}
    return set(kubectl("get", ",".join(sorted({*kinds} - left_out)), "-o", "name", *arguments).split())


def server(**headers: str) -> Server:
    """A connection to the API server as its admin, or as whom the headers say."""
    return Server(KUBECONFIG, **headers)


def apply(*manifests: Manifest) -> None:
    """As a GitOps pipeline does: server-side, under its own field manager."""
    kubectl(
        "apply",
        "--server-side",
        "--field-manager=e2e",
        "--force-conflicts",
        "-f",
        "-",
        input=yaml.safe_dump_all(manifests),
    )


def helm(*arguments: str) -> str:
    tools = run(sys.executable, str(ROOT / "tests" / "helm" / "tools.py")).strip()
    return run(f"{tools}/helm", f"--kubeconfig={KUBECONFIG}", "--namespace", OPERATOR_NAMESPACE, *arguments)


def install(image: str, *settings: str) -> None:
    """The chart with the operator's image by digest, or an upgrade to it."""
    repository, _, digest = image.partition("@")
    values = [f"image.repository={repository}", f"image.digest={digest}", *settings]
    sets = [word for value in values for word in ("--set", value)]
    helm("upgrade", "--install", "--create-namespace", "--wait", "--timeout=3m", RELEASE, str(CHART), *sets)


def operator_pods() -> list[Manifest]:
    """Without those that have failed: one that a full disk evicted stays listed, and comes to nothing any more."""
    found = {"labelSelector": SELECTOR, "fieldSelector": "status.phase!=Failed"}
    return api.admin(KUBECONFIG).list(path_of(OPERATOR_NAMESPACE, "pods"), **found)


def operator_restarts() -> dict[str, int]:
    """How often the container of each of the operator's pods was started again."""
    return {pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in operator_pods()}


def asked_by_operator(mark: int, name: str) -> list[tuple[str, str]]:
    """Verb and kind of its requests about objects of that name, in the audit log from its byte `mark` on."""
    user = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{RELEASE}"
    with AUDIT_LOG.open() as log:
        log.seek(mark)
        events = [json.loads(line) for line in log if line.endswith("\n")]  # the last one may be under way
    asked = ((event["verb"], event.get("objectRef", {})) for event in events if event["user"]["username"] == user)
    return [(verb, about["resource"]) for verb, about in asked if about.get("name") == name]


def scale_operator(replicas: int) -> None:
    """Returns when it has that many pods, and when they are ready."""
    where = (f"deployment/{RELEASE}", "-n", OPERATOR_NAMESPACE)
    kubectl("scale", *where, f"--replicas={replicas}")
    wait_until(f"{replicas} pods of the operator", lambda: len(operator_pods()) == replicas)
    kubectl("rollout", "status", *where, "--timeout=120s")


def profile(name: str, image: str) -> Manifest:
    """A TrainingProfile for small jobs: one thread, as much of the machine as is free."""
    resources = {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "4Gi"}}
    spec = {"image": image, "resourcesPerNode": resources}
    return {"apiVersion": API_VERSION, "kind": "TrainingProfile", "metadata": {"name": name}, "spec": spec}


def example(name: str, **changes: Any) -> Manifest:
    """examples/<name>.yaml with `changes` over its spec; None removes a field."""
    manifest = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    manifest["spec"] = merged(manifest["spec"], changes)
    return manifest


def a_job(name: str, changes: Manifest, **meta: Any) -> Manifest:
    """The smallest job with `changes` over its spec; its image exists nowhere."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, **meta},
        "spec": merged(SPEC, changes),
    }


def wait_until(what: str, look: Callable[[], Found | None], timeout_s: float = 60.0, every_s: float = 0.1) -> Found:
    """The first thing that `look` finds; AssertionError after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(every_s)
    return found


class Namespace:
    """One team's namespace: Pod Security `restricted`, and allowed to be scraped by nobody."""

    def __init__(self, name: str) -> None:
        self.name = name
        meta = {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
        status, answer = api.admin(KUBECONFIG).answer("POST", "/api/v1/namespaces", json.dumps({"metadata": meta}))
        assert status == 201, answer

    def delete(self) -> None:
        kubectl("delete", "namespace", self.name, "--wait=false", "--ignore-not-found")

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        return kubectl("--namespace", self.name, *arguments, input=input)

    def apply(self, *manifests: Manifest) -> None:
        apply(*({**manifest, "metadata": {**manifest["metadata"], "namespace": self.name}} for manifest in manifests))

    def get(self, resource: str, name: str) -> Manifest | None:
        return api.admin(KUBECONFIG).read(path_of(self.name, resource, name))

    def list(self, resource: str, selector: str = "") -> list[Manifest]:
        return api.admin(KUBECONFIG).list(path_of(self.name, resource), labelSelector=selector)

    def dry_run(self, manifest: Manifest, validation: str = "Strict", by: Server | None = None) -> tuple[int, Manifest]:
        """How the API server answers a creation that it only tries: 201 and the object, or a status that refuses it."""
        path = path_of(self.name, f"{manifest['kind'].lower()}s")
        query = f"dryRun=All&fieldValidation={validation}"
        status, text = (by or api.admin(KUBECONFIG)).answer("POST", f"{path}?{query}", json.dumps(manifest))
        return status, json.loads(text)

    def refusal(self, manifest: Manifest, by: Server | None = None) -> str:
        """What the API server says against the creation; '' where it says nothing."""
        status, answer = self.dry_run(manifest, by=by)
        return "" if status == 201 else str(answer["message"])

    def claim(self, name: str, content: Path | None = None, size: str = "1Gi") -> Path:
        """A bound claim with a copy of `content`; its directory as this machine sees it."""
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": size}}}
        self.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})
        directory = self.directory_of(name)
        if content:
            shutil.copytree(content, directory, dirs_exist_ok=True)
        return directory

    def directory_of(self, claim: str) -> Path:
        """Where a bound claim's volume lies."""

        def bound() -> str | None:
            found = self.get("persistentvolumeclaims", claim)
            return found["spec"].get("volumeName") if found and found["status"].get("phase") == "Bound" else None

        return VOLUMES / wait_until(f"claim {claim} is bound", bound)

    def key(self, secret: str) -> bytes:
        """A Secret with a fresh 32-byte key, as `dstj keys generate` would write it; the key."""
        key = secrets.token_bytes(32)
        data = {"kek": base64.b64encode(key).decode()}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}, "data": data})
        return key


class TrainingJob:
    """One DeepSeekTrainingJob in a namespace, as applied, and what can be seen of it."""

    def __init__(self, namespace: Namespace, manifest: Manifest) -> None:
        self.namespace, self.name, self.manifest = namespace, manifest["metadata"]["name"], manifest
        namespace.apply(manifest)

    @property
    def found(self) -> Manifest | None:
        return self.namespace.get("deepseektrainingjobs", self.name)

    @property
    def status(self) -> Manifest:
        return (self.found or {}).get("status") or {}

    @property
    def pods(self) -> list[Manifest]:
        """Of the newest attempt, by index."""
        found = self.namespace.list("pods", f"training.dstj.io/job-name={self.name}")
        newest = max((attempt_of(pod) for pod in found), default=0)
        return sorted((pod for pod in found if attempt_of(pod) == newest), key=lambda pod: pod["metadata"]["name"])

    @property
    def work(self) -> Path:
        return self.namespace.directory_of(f"dstj-{self.name}")

    @property
    def events(self) -> list[dict[str, Any]]:
        """What rank 0 logged, of all attempts."""
        file = self.work / "logs" / "events.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def steps(self) -> list[int]:
        """Every step that was done, in the order of doing."""
        return [event["step"] for event in self.events if event["event"] == "step"]

    def trains_again(self, attempt: int) -> bool:
        """Whether `attempt` resumed and did a step."""
        names = [event["event"] for event in self.events if event.get("attempt", attempt) == attempt]
        return "resumed" in names and "step" in names[names.index("resumed") :]

    def wait_for(self, phase: str, timeout_s: float = 120.0) -> Manifest:
        """The status that says `phase`; fails at once where the job ends in another one."""

        def look() -> Manifest | None:
            status = self.status
            ended = status.get("phase") in {"Succeeded", "Failed"}
            assert not ended or status["phase"] == phase, f"wanted {phase}: {json.dumps(status, indent=1)}"
            return status if status.get("phase") == phase else None

        return wait_until(f"{self.name} is {phase}, not {self.status.get('phase')}", look, timeout_s)

    def wait_for_step(self, step: int, timeout_s: float = 180.0) -> None:
        wait_until(f"step {step} of {self.name}", lambda: max(self.steps, default=0) >= step or None, timeout_s)

    def condition(self, type_: str) -> Manifest | None:
        return next((c for c in self.status.get("conditions", ()) if c["type"] == type_), None)


def gpus_of(pod: Manifest) -> tuple[str, ...]:
    """How many each container may use; the GPUs of one that has ended go to the next."""
    containers = (*pod["spec"]["initContainers"], *pod["spec"]["containers"])
    return tuple(container["resources"]["limits"][GPU] for container in containers)
