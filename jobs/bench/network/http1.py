"""As much of HTTP/1.1 as the fault proxy needs: heads, and bodies in parts.

Owns the parsing. Called by `proxy.py` and `resign.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote

_ACCESS_KEY = re.compile(r"Credential=([^/,\s]+)/")


@dataclass(frozen=True)
class Head:
    """The head of a request or an answer, with the empty line that ends it."""

    raw: bytes

    @cached_property
    def first(self) -> list[str]:
        """The three words of the first line."""
        return self.raw.partition(b"\r\n")[0].decode("latin-1").split(" ", 2)

    @property
    def verb(self) -> str:
        """Of a request."""
        return self.first[0]

    @property
    def target(self) -> str:
        """Of a request: path and query, or a whole URL where the client takes this for its HTTP proxy."""
        return self.first[1]

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.first[1])

    @cached_property
    def headers(self) -> dict[str, str]:
        """By lower-case name."""
        lines = self.raw.decode("latin-1").split("\r\n")[1:]
        return {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name
        }

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def length(self) -> int | None:
        """Bytes of the body; None where the head does not say."""
        stated = self.headers.get("content-length")
        return int(stated) if stated is not None else None

    @property
    def has_body(self) -> bool:
        """Whether a request with this head brings a body."""
        return self.chunked or bool(self.length)

    @property
    def keeps_alive(self) -> bool:
        return "close" not in self.headers.get("connection", "").lower()

    @property
    def access_key(self) -> str | None:
        """The access key id that signed a request, in its header or in its URL."""
        found = _ACCESS_KEY.search(self.headers.get("authorization", "") or unquote(self.target))
        return found[1] if found else None


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next head; None where the connection has ended."""
    try:
        return Head(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None


async def body_parts(reader: asyncio.StreamReader, head: Head, kind: str, most: int) -> AsyncIterator[bytes]:
    """The body as it stands on the wire, in parts of at most `most` bytes; `kind` is "request" or "answer".

    Raises EOFError where the connection ends within it.
    """
    if head.chunked:
        while True:
            line = await reader.readuntil(b"\r\n")
            yield line
            left = int(line.partition(b";")[0], 16)
            if left == 0:
                while True:
                    line = await reader.readuntil(b"\r\n")
                    yield line
                    if line == b"\r\n":
                        return
            async for part in _exactly(reader, left + 2, most):
                yield part
    elif head.length is not None:
        async for part in _exactly(reader, head.length, most):
            yield part
    elif kind == "answer":
        while part := await reader.read(most):
            yield part


async def _exactly(reader: asyncio.StreamReader, left: int, most: int) -> AsyncIterator[bytes]:
    while left:
        part = await reader.read(min(left, most))
        if not part:
            raise EOFError("the connection ended within a body")
        left -= len(part)
        yield part
