"""Fixtures of the tests on the real cluster: images, the installed operator, a namespace of one's own.

The rest of tests/e2e needs none of them, but a job that `dstj run` has done.
"""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from xdist.remote import Producer

from support.builders.local_job import Job, longer
from support.cluster import kube, last_words
from support.cluster.kube import Namespace
from support.session.schedule import OneForTheCluster


@dataclass(frozen=True)
class Images:
    """By digest, as the nodes know them."""

    operator: str
    trainer: str


@pytest.fixture(scope="session")
def images() -> Images:
    kube.cluster("up")
    operator = kube.cluster("image", "localhost/deepseek-operator:e2e", "operator/Dockerfile", ".")
    trainer = kube.cluster("image", "localhost/deepseek-trainer:e2e", "trainer_image/Dockerfile", ".")
    return Images(operator, trainer)


@pytest.fixture(scope="session")
def operator(images: Images) -> None:
    installed(images)


def installed(images: Images) -> None:
    """The operator by Helm as a platform team installs it, with a profile called `cpu`."""
    kube.install(images.operator)
    kube.apply(kube.profile("cpu", images.trainer))


@pytest.fixture(scope="module")
def installation(images: Images, operator: None) -> Iterator[Images]:
    """For tests that change the one installation: it is put back after the last of the module."""
    yield images
    installed(images)


@pytest.fixture
def operator_comes_back(operator: None) -> Iterator[None]:
    """For tests that scale it down."""
    yield
    kube.scale_operator(2)


@pytest.fixture
def namespace(operator: None, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    yield from namespace_called(request.node.name)


@pytest.fixture(scope="module")
def team(operator: None, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """One namespace for all tests of a module."""
    yield from namespace_called(request.module.__name__.rpartition(".")[2])


def namespace_called(test: str) -> Iterator[Namespace]:
    words = re.sub(r"[^a-z0-9]+", "-", test.removeprefix("test_"))[:30].strip("-")
    made = Namespace(f"{words}-{secrets.token_hex(2)}")
    yield made
    made.delete()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What `dstj run` makes of a longer job that nothing disturbs; others are compared with it."""
    job = Job(tmp_path_factory.mktemp("whole"), longer)
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    return job


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: a story that takes long and rarely breaks; `make e2e-long` tells it")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneForTheCluster:
    return OneForTheCluster(config, log)


TOLD = pytest.StashKey[list[BaseException]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """What the cluster has to say about a test that failed, in its fixtures or by itself."""
    report = yield
    if report.failed and "images" in getattr(item, "fixturenames", ()) and is_news(item.config, call):
        fixtures = getattr(item, "funcargs", {})
        report.sections.extend(last_words.of_cluster(fixtures.get("namespace") or fixtures.get("team")))
    return report


def is_news(config: pytest.Config, call: pytest.CallInfo[None]) -> bool:
    """A fixture of the session that failed fails every test that asks for it, with the same exception."""
    error = call.excinfo.value if call.excinfo else None
    told = config.stash.setdefault(TOLD, [])
    is_known = any(error is known for known in told)
    told += [] if error is None or is_known else [error]
    return not is_known


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests measured."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    for name, value in (each for report in reports if report.when == "call" for each in report.user_properties):
        terminalreporter.line(f"{name}: {value}")
