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


TRAINER_METRICS = [*(name for name, *_ in (*GAUGES, *MEASURED_GAUGES, *CHECKPOINT_GAUGES)), "dst_trainer_tokens_total"]


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
    assert set(re.findall(r"`(dst_\w+)`", OPERATIONS)) == {*TRAINER_METRICS, *operator_metrics()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path):
    prose = re.sub(r"`[^`]*`", "", page.read_text())
    links = re.findall(r"\]\((?!http)([^)#]+)", prose)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_test_that_the_security_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in tests} == set()
    assert len(named) > 20
