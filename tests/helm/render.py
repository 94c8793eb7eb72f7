"""The chart as Helm renders it."""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from helm import tools

Manifest = dict[str, Any]

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "helm" / "deepseek-operator"
IMAGE: Final = {"image": {"repository": "registry.local/operator"}}
MONITORED: Final = {"monitoring": {"podMonitors": "always", "alerts": "always"}}
RELEASE, NAMESPACE = "op", "deepseek-system"


@cache
def program(name: str) -> str:
    return str(tools.directory() / name)


def run(*command: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], input=text, capture_output=True, text=True, check=False)


def rendered(values: Manifest | None = None) -> str:
    """`helm template` with an image and `values`; AssertionError with Helm's words where it fails."""
    text = json.dumps(IMAGE | (values or {}))
    done = run(program("helm"), "template", RELEASE, CHART, "--namespace", NAMESPACE, "--values", "-", text=text)
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifests(values: Manifest | None = None) -> list[Manifest]:
    return [document for document in yaml.load_all(rendered(values), Loader=yaml.CSafeLoader) if document]
