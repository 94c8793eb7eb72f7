"""`make cluster-demo`: the main job in real pods on a real two-node Kubernetes on this machine.

Cluster, images, `helm install`, data, `kubectl apply`, live view, result.  What it runs are commands
that you can type yourself; each is printed first.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from demo import ROOT, base_models, out, show

from deepseek_trainer.storage.keyring import KEYRING

CLUSTER = (sys.executable, "tests/e2e/cluster/cluster.py")
STATE = Path(os.environ.get("DSTJ_CLUSTER_STATE", "/var/lib/dstj-cluster"))
PROGRAMS = STATE / "bin"
KUBECONFIG = STATE / "pki" / "admin.conf"
HOME = ROOT / ".dstj" / "cluster-demo"
KEY = HOME / "secrets" / "handbook-key" / "kek"
TEAM = "demo"
JOB = "lora-smollm2"
CLAIMS = {"base-models": "1Gi", "handbook": "100Mi"}
USER = 10001


def main() -> int:
    began = time.monotonic()
    run(*CLUSTER, "up")
    images = {name: build(name, file) for name, file in (("operator", "operator"), ("trainer", "trainer_image"))}
    install(images["operator"])
    prepare_team(images["trainer"])
    kubectl("apply", "-n", TEAM, "-f", f"examples/{JOB}.yaml")
    watch()
    fetch_result(images["trainer"])
    out.print(f"Model, adapter, model card and report.html: {HOME.relative_to(ROOT)}/result")
    out.print(f"That took {time.monotonic() - began:.0f} s. The cluster stays: make cluster-status, make cluster-down")
    return 0


def build(name: str, directory: str) -> str:
    """The image's name by digest."""
    return run(*CLUSTER, "image", f"localhost/deepseek-{name}:demo", f"{directory}/Dockerfile", ".").strip()


def install(image: str) -> None:
    helm = Path(run(sys.executable, "tests/helm/tools.py").strip()) / "helm"
    repository, _, digest = image.partition("@")
    values = ("--set", f"image.repository={repository}", "--set", f"image.digest={digest}")
    where = ("--namespace", "deepseek-system", "--create-namespace")
    run(str(helm), "upgrade", "--install", "deepseek-operator", "helm/deepseek-operator", *where, *values, "--wait")


def prepare_team(trainer: str) -> None:
    """What platform team and data owner do before a job can be submitted."""
    profile = yaml.safe_load((ROOT / "examples" / "profile-cpu.yaml").read_text())
    profile["spec"]["image"] = trainer
    profile["spec"]["resourcesPerNode"]["requests"] = {"cpu": "100m", "memory": "1Gi"}  # two nodes share this machine
    kubectl("delete", "namespace", TEAM, "--ignore-not-found")
    apply(
        "the namespace, the profile, two claims and a pod to fill them", namespace(), profile, *claims(), pod(trainer)
    )
    kubectl("wait", "-n", TEAM, "--for=condition=Ready", "pod/files", "--timeout=120s")
    (model,) = base_models().glob("*.gguf")
    kubectl("cp", "-n", TEAM, str(model), f"files:/volumes/base-models/{model.name}")
    for file in sorted((ROOT / "examples" / "handbook").glob("*.jsonl")):
        kubectl("cp", "-n", TEAM, str(file.relative_to(ROOT)), f"files:/volumes/handbook/{file.name}")
    kubectl("delete", "pod", "-n", TEAM, "files", "--now")
    if not KEY.exists():
        run("dstj", "keys", "generate", "--secret", "handbook-key")
    kubectl("create", "secret", "generic", "handbook-key", "-n", TEAM, f"--from-file=kek={KEY.relative_to(ROOT)}")


def namespace() -> dict[str, Any]:
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM, "labels": restricted}}


def claims() -> list[dict[str, Any]]:
    def claim(name: str, size: str) -> dict[str, Any]:
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": size}}}
        meta = {"name": name, "namespace": TEAM}
        return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}

    return [claim(name, size) for name, size in CLAIMS.items()]


def pod(image: str, *, claims: tuple[str, ...] = tuple(CLAIMS)) -> dict[str, Any]:
    """A pod that only holds volumes, for `kubectl cp`."""
    security = {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}}
    own = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    mounts = [{"name": claim, "mountPath": f"/volumes/{claim}"} for claim in claims]
    volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims]
    holder = {"name": "files", "image": image, "command": ["sleep", "infinity"], "securityContext": own}
    spec = {"containers": [holder | {"volumeMounts": mounts}], "volumes": volumes, "securityContext": security}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "files", "namespace": TEAM}, "spec": spec}


def watch() -> None:
    """`kubectl get -w` until the job is complete."""
    live = subprocess.Popen(printed("kubectl", "get", "dstj", JOB, "-n", TEAM, "-w"), env=environment(), cwd=ROOT)
    try:
        kubectl("wait", "-n", TEAM, "--for=condition=Complete", f"dstj/{JOB}", "--timeout=20m")
    finally:
        live.terminate()
        live.wait()


def fetch_result(trainer: str) -> None:
    apply("a pod to read the work volume", pod(trainer, claims=(f"dstj-{JOB}",)))
    kubectl("wait", "-n", TEAM, "--for=condition=Ready", "pod/files", "--timeout=120s")
    sealed, result = HOME / "sealed", HOME / "result"
    for directory in (sealed, result):
        shutil.rmtree(directory, ignore_errors=True)
    for name in (KEYRING, "export"):
        kubectl("cp", "-n", TEAM, f"files:/volumes/dstj-{JOB}/{name}", str((sealed / name).relative_to(ROOT)))
    kubectl("delete", "pod", "-n", TEAM, "files", "--now")
    places = {"--directory": sealed, "--key-dir": KEY.parent, "--to": result}
    run("dstj", "result", *(str(word) for pair in places.items() for word in pair))
    show(json.loads((result / "evaluation.json").read_text()))


def apply(what: str, *manifests: dict[str, Any]) -> None:
    out.print(f"\n[bold]$ kubectl apply -f -[/]   # {what}")
    subprocess.run(command("kubectl", "apply", "-f", "-"), input=yaml.safe_dump_all(manifests), text=True,
                   env=environment(), cwd=ROOT, check=True)  # fmt: skip


def kubectl(*arguments: str) -> None:
    subprocess.run(printed("kubectl", *arguments), env=environment(), cwd=ROOT, check=True)


def run(*words: str) -> str:
    """Standard output; a command that fails ends the demo."""
    done = subprocess.run(printed(*words), env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    out.print(done.stdout, end="", markup=False)
    return done.stdout


def printed(*words: str) -> list[str]:
    out.print(f"\n[bold]$ {' '.join(words).replace(sys.executable, 'python3')}[/]")
    return command(*words)


def command(*words: str) -> list[str]:
    if words[0] == "dstj":
        return [sys.executable, "-m", "dstj.cli", *words[1:]]
    return [str(PROGRAMS / "kubectl"), *words[1:]] if words[0] == "kubectl" else list(words)


def environment() -> dict[str, str]:
    return os.environ | {"DSTJ_HOME": str(HOME), "KUBECONFIG": str(KUBECONFIG)}


if __name__ == "__main__":
    sys.exit(main())
