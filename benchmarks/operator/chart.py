"""What the chart installs beside the operator's pods: its account, rights, Lease and admission policies."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[2]
NAMESPACE: Final = "deepseek-system"
RELEASE: Final = "deepseek-operator"
_RBAC, _ADMISSION = "/apis/rbac.authorization.k8s.io/v1", "/apis/admissionregistration.k8s.io/v1"
COLLECTIONS: Final = {
    "ServiceAccount": f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts",
    "Lease": f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases",
    "Role": f"{_RBAC}/namespaces/{NAMESPACE}/roles",
    "RoleBinding": f"{_RBAC}/namespaces/{NAMESPACE}/rolebindings",
    "ClusterRole": f"{_RBAC}/clusterroles",
    "ClusterRoleBinding": f"{_RBAC}/clusterrolebindings",
    "ValidatingAdmissionPolicy": f"{_ADMISSION}/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": f"{_ADMISSION}/validatingadmissionpolicybindings",
}


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object, after the collection in which it is to be made."""
    tools = [sys.executable, str(ROOT / "tests" / "helm" / "tools.py")]
    helm = subprocess.run(tools, check=True, stdout=subprocess.PIPE, text=True).stdout.strip() + "/helm"
    image = ["--set", "image.repository=registry.example.com/operator", "--set", f"image.digest=sha256:{64 * '0'}"]
    command = [helm, "template", RELEASE, str(ROOT / "helm" / RELEASE), f"--namespace={NAMESPACE}", *image]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    for manifest in yaml.safe_load_all(text):
        if manifest and manifest["kind"] in COLLECTIONS:
            yield COLLECTIONS[manifest["kind"]], manifest
