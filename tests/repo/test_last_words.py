"""A test that fails shows what the cluster's components said last; here of a cluster that is not there."""

from pathlib import Path

import pytest

from support.cluster import kube, last_words

pytest_plugins = ["pytester"]
PLAIN = ("-p", "no:cacheprovider", "-p", "no:asyncio")
COMPONENTS = {
    "control": ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "provisioner"),
    "node-0": ("containerd", "kubelet", "kube-proxy", "gpus", "kube-router"),
}
CONFTEST = Path(__file__).parents[1] / "e2e" / "conftest.py"


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A long log of each component, below a cluster's state that has nothing else."""
    directory = tmp_path / "state" / "logs"
    for machine, names in COMPONENTS.items():
        (directory / machine).mkdir(parents=True)
        for name in (*names, "audit"):
            lines = [f"line {number} of {name}" for number in range(10_000)]
            (directory / machine / f"{name}.log").write_text("\n".join(lines))
    monkeypatch.setattr(kube, "LOGS", directory)
    monkeypatch.setattr(kube, "STATE", directory.parent)
    return directory


def test_every_component_has_its_last_words_and_no_more(logs: Path) -> None:
    sections = dict(last_words.of_components(logs))
    assert set(sections) == {f"{machine}: {name}" for machine, names in COMPONENTS.items() for name in names}
    for heading, text in sections.items():
        assert text.endswith(f"line 9999 of {heading.partition(': ')[2]}")
        assert len(text) == last_words.MAX_LOG


@pytest.mark.parametrize("fails", ["fixture", "test"])
def test_a_failed_fixture_and_a_failed_test_without_a_namespace_show_them(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, logs: Path, fails: str
) -> None:
    def cluster(*arguments: str) -> str:
        assert fails == "test", "no cluster today"
        return "image"

    monkeypatch.setattr(kube, "cluster", cluster)
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile("def test_one(images): assert False\ndef test_two(images): assert False")
    shown = pytester.runpytest_inprocess(*PLAIN).stdout.str()
    times = {"fixture": 1, "test": 2}[fails]  # what fails every test is told once
    for names in COMPONENTS.values():
        for name in names:
            assert shown.count(f"line 9999 of {name}\n") == times, shown[-2000:]
    assert "line 9999 of audit" not in shown


def test_a_test_that_uses_no_cluster_shows_none(pytester: pytest.Pytester, logs: Path) -> None:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile("def test_one(): assert False")
    assert "line 9999" not in pytester.runpytest_inprocess(*PLAIN).stdout.str()
