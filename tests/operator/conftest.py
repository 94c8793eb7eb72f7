"""The operator's adapters, connected to a small API server."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from deepseek_operator.controller.client import Api
from deepseek_operator.controller.cluster import KubernetesCluster
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.jobs.look import Live
from deepseek_operator.settings import Settings
from support.builders.operator import NOW
from support.fakes.api_server import FakeApi


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    fake = FakeApi()
    fake.answering.set()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", fake.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield fake
    fake.answering.set()
    await runner.cleanup()


@pytest.fixture
async def api(fake: FakeApi) -> AsyncIterator[Api]:
    configuration = Configuration(host=fake.url)
    configuration.api_key["BearerToken"] = "Bearer secret"
    async with ApiClient(configuration) as client:
        yield Api(client, deadline_s=2)


@pytest.fixture
async def cluster(api: Api) -> AsyncIterator[KubernetesCluster]:
    async with aiohttp.ClientSession() as session:
        yield KubernetesCluster(JOBS, api, session, Settings(), now=lambda: NOW)


@pytest.fixture
def world(cluster: KubernetesCluster, fake: FakeApi) -> Live:
    """The world of a training job, over the API server that also answers as its pods."""
    return Live(cluster, Settings(), NOW, metrics_port=int(fake.url.rsplit(":", 1)[1]))
