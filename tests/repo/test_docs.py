import re
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from deepseek_operator.controller import metrics
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.telemetry.progress import CHECKPOINT_GAUGES, GAUGES, MEASURED_GAUGES
from dstj.arguments import EXIT_CODES

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PACKAGES = ("operator/deepseek_operator", "trainer_image/deepseek_trainer", "cli/dstj")
TOP = ("operator", "trainer_image", "cli", "crds", "tests", "helm", "examples", "benchmarks", "docs")
COUNTERS = ["dstj_trainer_tokens_total", "dstj_trainer_images_total"]
TRAINER_METRICS = [*(name for name, *_ in (*GAUGES, *MEASURED_GAUGES, *CHECKPOINT_GAUGES)), *COUNTERS]


def named_files(page: str) -> list[str]:
    """Paths in backticks: from the root, or to a module from the root of a package."""
    words = re.findall(r"`([^`\s]+)[^`\n]*`", page)
    return [word for word in words if re.match(rf"({'|'.join(TOP)})/\S|\w+/\w+\.py$", word)]


def is_there(name: str) -> bool:
    return any((ROOT / base / name).exists() for base in ("", *PACKAGES))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def operator_metrics() -> list[str]:
    found = (getattr(metrics, name) for name in metrics.__all__)
    families = [family for metric in found if isinstance(metric, MetricWrapperBase) for family in metric.describe()]
    return [f"{f.name}_total" if f.type == "counter" else f.name for f in families]


@pytest.mark.parametrize("code", sorted({int(code) for code in ExitCode} | {code for code, _ in EXIT_CODES}))
def test_every_exit_code_is_documented(code: int):
    assert re.search(rf"^\| {code} \|", OPERATIONS, re.MULTILINE)


@pytest.mark.parametrize("name", [*TRAINER_METRICS, *operator_metrics()])
def test_every_metric_is_documented(name: str):
    assert f"| `{name}` |" in OPERATIONS


def test_no_metric_is_documented_that_does_not_exist():
    assert set(re.findall(r"`(dstj_\w+)`", OPERATIONS)) == {*TRAINER_METRICS, *operator_metrics()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path):
    prose = re.sub(r"`[^`]*`", "", page.read_text())
    links = re.findall(r"\]\((?!http)([^)#]+)", prose)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_leads_there(page: Path):
    prose = re.sub(r"`[^`]*`", "", page.read_text())
    links = re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", prose)
    assert [anchor for link, anchor in links if anchor not in anchors(page.parent / link if link else page)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page: Path):
    assert [name for name in named_files(page.read_text()) if not is_there(name)] == []


def test_a_page_is_held_to_paths_from_the_root_and_from_a_package():
    page = "`tests/gone.py`, `jobs/gone.py`, `tests/e2e/test_ranks.py -k pairs`, `jobs/decide.py`, jobs/bare.py"
    assert [name for name in named_files(page) if not is_there(name)] == ["tests/gone.py", "jobs/gone.py"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_picture_of_the_architecture_shows_every_room(package: str):
    picture = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    rooms = {init.parent.name for init in (ROOT / package).glob("*/__init__.py")}
    assert {room for room in rooms if not re.search(rf"\b{room}\b", picture)} == set()
    assert len(rooms) >= 4


def test_every_test_that_the_security_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in tests} == set()
    assert len(named) > 20
