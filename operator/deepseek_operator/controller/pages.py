"""Reads pages that pods serve.  Pods are not trusted: the wait is short, the size bounded, no redirect is followed."""

from typing import Final

import aiohttp

MAX_PAGE: Final = 64 * 1024  # [bytes]
TIMEOUT: Final = aiohttp.ClientTimeout(total=2)


async def read_page(session: aiohttp.ClientSession, address: str, port: int, path: str) -> bytes | None:
    """The page, or None for every answer but a page of at most MAX_PAGE bytes."""
    host = f"[{address}]" if ":" in address else address
    content = b""
    try:
        async with session.get(f"http://{host}:{port}{path}", timeout=TIMEOUT, allow_redirects=False) as answer:
            if answer.status != 200:
                return None
            async for chunk in answer.content.iter_chunked(MAX_PAGE):
                content += chunk
                if len(content) > MAX_PAGE:
                    return None
    except (aiohttp.ClientError, TimeoutError):
        return None
    return content
