"""What is in the images that the two Dockerfiles give, layer by layer as buildah keeps them."""

import json
import os
import re
import stat
import sys
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from support.cluster import kube

# In a process of its own: the cluster's modules have names like `build` and `api`.
INSPECT = """
import json, sys, images
found = images.inspect(sys.argv[1])
print(json.dumps([json.loads(found.config), [str(layer) for layer in found.layers]]))
"""
COMPILER = re.compile(
    r"([a-z0-9_]+-linux-gnu-)?(cc|c\+\+|gcc|g\+\+|clang|clang\+\+|cpp|tcc|nvcc|cc1|cc1plus)(-[\d.]+)?"
)
SBOM = "app/sbom.cdx.json"
NAMES = ("operator", "trainer")


@dataclass(frozen=True)
class Image:
    name: str
    document: dict[str, Any]
    layers: tuple[Path, ...]  # unpacked, lowest first

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.document["config"])

    @cached_property
    def contents(self) -> list[dict[PurePosixPath, Path]]:
        """By layer: every file's path in a container, and where it lies here."""
        return [
            {
                PurePosixPath(top, file).relative_to(layer): Path(top, file)
                for top, _, names in os.walk(layer)
                for file in names
            }
            for layer in self.layers
        ]

    @cached_property
    def size_bytes(self) -> int:
        """Of the files of all layers, unpacked; one that a later layer replaces is still there to be pulled."""
        inodes = {
            (status.st_ino, status.st_size) for layer in self.contents for status in map(os.lstat, layer.values())
        }
        return sum(size for _, size in inodes)

    @cached_property
    def files(self) -> dict[PurePosixPath, Path]:
        """As a container sees them; overlayfs marks what a layer removed by a character device."""
        seen: dict[PurePosixPath, Path] = {}
        for layer in self.contents:
            seen |= layer
        return {path: place for path, place in seen.items() if not stat.S_ISCHR(place.lstat().st_mode)}

    @property
    def distributions(self) -> set[str]:
        """Python packages that are installed, by their normalised names."""
        found = (
            path.parent.name for path in self.files if path.match("app/venv/lib/*/site-packages/*.dist-info/METADATA")
        )
        return {normalised(name.partition("-")[0]) for name in found}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def built(images: Any) -> dict[str, Image]:
    return {name: inspected(name) for name in NAMES}


def inspected(name: str) -> Image:
    environment = os.environ | {"PYTHONPATH": str(kube.CLUSTER.parent)}
    answer = kube.run(sys.executable, "-c", INSPECT, f"localhost/deepseek-{name}:e2e", env=environment)
    document, layers = json.loads(answer)
    return Image(name, document, tuple(map(Path, layers)))


def test_the_operators_image_is_small_and_has_no_torch(built: dict[str, Image], record_property: Any) -> None:
    for image in built.values():
        record_property(f"image of the {image.name}: MB in the files of its layers", image.size_bytes // 10**6)
    assert built["operator"].size_bytes < 200 * 10**6
    assert not {"torch", "transformers", "numpy"} & built["operator"].distributions
    assert "torch" in built["trainer"].distributions, "so it would be seen"


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_no_compiler_and_no_library_of_perl(built: dict[str, Image], name: str) -> None:
    files = built[name].files
    assert PurePosixPath("usr/bin/python3") in files, "so programs would be seen"
    assert [path for path in files if COMPILER.fullmatch(path.name) and not path.match("*.py")] == []
    assert [path for path in files if path.is_relative_to("usr/share/perl")] == []


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_labelled_and_runs_as_a_user_of_no_name(built: dict[str, Image], name: str) -> None:
    project = tomllib.loads((kube.ROOT / "pyproject.toml").read_text())["project"]
    labels = built[name].config["Labels"]
    assert built[name].config["User"] == "10001:10001"
    assert labels["org.opencontainers.image.title"] == f"deepseek-{name}"
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert {"org.opencontainers.image.description", "org.opencontainers.image.licenses"} <= labels.keys()


@pytest.mark.parametrize(("name", "package"), [("operator", "kopf"), ("trainer", "torch")])
def test_an_images_bill_of_materials_names_every_python_package_in_it(
    built: dict[str, Image], name: str, package: str
) -> None:
    bill = json.loads(built[name].files[PurePosixPath(SBOM)].read_bytes())
    assert bill["bomFormat"] == "CycloneDX"
    named = {normalised(component["name"]): component["version"] for component in bill["components"]}
    assert package in named
    assert named.keys() == built[name].distributions
    assert all(named.values())
