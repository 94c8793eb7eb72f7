"""The local cluster's way to /progress, which answers from a process that may be anything."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from deepseek_trainer.contract.progress import Progress
from dstj.local.cluster import PROGRESS_BYTES, _progress

OK = b"HTTP/1.0 200 OK\r\n\r\n"


@asynccontextmanager
async def answering(answer: bytes):
    """A port on which every request gets `answer`."""

    async def respond(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_progress_is_what_node_0_answers():
    async with answering(OK + b'{"step": 3}') as port:
        assert await _progress(port) == Progress(step=3)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\xff",
        b"HTTP/1.0 404 Not Found\r\n\r\n{}",
        OK,
        OK + b"not json",
        OK + b"[1]",
        OK + b'"' + PROGRESS_BYTES * b"x" + b'"',
        (2 * PROGRESS_BYTES) * b"x",
    ],
    ids=["nothing", "bytes", "404", "empty", "text", "list", "too long", "no head"],
)
async def test_progress_of_a_broken_answer_is_none(answer):
    async with answering(answer) as port:
        assert await _progress(port) is None


async def test_progress_is_none_while_nobody_listens():
    async with answering(OK) as port:
        pass
    assert await _progress(port) is None
