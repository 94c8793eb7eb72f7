"""A small API server on a real socket, for the operator's adapters."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeApi:
    """Answers by method and path, each time the next where there is a list of them; remembers what it was asked."""

    answers: dict[tuple[str, str], tuple[int, Any]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str], Any, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    url: str = ""
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        self.asked.append((request.method, request.path, dict(request.query), body, request.content_type))
        self.tokens.add(request.headers.get("Authorization", ""))
        await self.answering.wait()
        status, answer = self.answers.get((request.method, request.path), (404, {"message": "not found"}))
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, bytes):
            return web.Response(status=status, body=answer)
        return web.json_response(answer, status=status)
