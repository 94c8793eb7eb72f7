"""The slower tier in two processes."""

from pathlib import Path

from support.session.schedule import ROOT, scope_of

FILES = [str(file.relative_to(ROOT)) for file in sorted((ROOT / "tests" / "e2e").glob("test_*.py"))]


def test_tests_on_the_cluster_are_for_one_process() -> None:
    on_cluster = {file for file in FILES if "cluster" in Path(file).stem} | {"tests/e2e/test_admission.py"}
    assert len(on_cluster) > 5
    assert {scope_of(f"{file}::test_a") for file in on_cluster} == {"the cluster"}


def test_every_other_file_stays_together_and_may_run_beside_them() -> None:
    others = [file for file in FILES if Path(file).name in {"test_local_run.py", "test_ranks.py", "test_zero.py"}]
    assert len(others) == 3
    assert [scope_of(f"{file}::test_a") for file in others] == others
    assert [scope_of(f"{file}::test_b[x::y]") for file in others] == others
