"""A network with faults on loopback: an HTTP proxy in a process of its own, in front of an S3 server.

Owns the process and its connections; `faults.py` says what is done to a request, `passage.py` carries it over.
Called by the network bench and the storage tests:

    with FaultProxy(upstream="http://127.0.0.1:20123") as proxy:
        proxy.configure(Faults(round_trip_s=0.02, bytes_per_s=8e6, slow_down_rate=0.01))
        ...                                   # requests to proxy.endpoint
        print(proxy.counts())

Requests pass with their heads unchanged, so signatures stay good. Where a header must go (`If-None-Match`) or other keys
are let through (`valid_keys`), the head is signed anew with the store's keys, given in this process's environment. One
upstream connection per client connection. Without faults it carries what the store takes (`python -m jobs.bench.network`
measures that in each run). It speaks TLS when given a certificate, and serves absolute-form requests, so that HTTP_PROXY
may name it. It writes request lines into a file where one is named, as proxies and servers do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from jobs.bench.network.faults import Counts, Fate, Faults, error_body, fate
from jobs.bench.network.http1 import Head, body_parts, read_head
from jobs.bench.network.passage import Pace, Passage, piece_bytes
from jobs.bench.network.resign import resigned

_BUFFER_BYTES = 1 << 20
_STOP_S = 5.0


class _Server:
    """All connections, and the settings and counts they share."""

    def __init__(self, host: str, port: int, keys: Mapping[str, str], log: TextIO | None = None) -> None:
        self._host, self._port, self._keys, self._log = host, port, keys, log
        self._busy = 0
        self.configure(Faults())

    def configure(self, faults: Faults) -> None:
        self.faults, self.counts = faults, Counts()
        self._shared = {way: Pace(faults.total_bytes_per_s) for way in ("up", "down")}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection, request after request."""
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            self.counts.connections += 1
            await asyncio.sleep(self.faults.round_trip_s)
            while (head := await read_head(reader)) is not None:
                if await self._refused(head, reader, writer):
                    break
                self._busy += 1
                self.counts.peak_busy = max(self.counts.peak_busy, self._busy)
                try:
                    if upstream is None:
                        upstream = await asyncio.open_connection(self._host, self._port, limit=_BUFFER_BYTES)
                    passage = Passage(head, self.faults, self.counts, self.counts.requests, self._shared)
                    keep = await passage.carry((reader, writer), upstream, self._head_for_store(head))
                finally:
                    self._busy -= 1
                if not keep:
                    break
        except (OSError, EOFError) as error:
            if os.environ.get("TLCORE_PROXY_DEBUG"):
                print(repr(error), file=sys.stderr)
        except asyncio.CancelledError:
            pass  # the proxy ends, and this task is the connection's own: nobody waits for it
        finally:
            for each in (writer, upstream and upstream[1]):
                if each is not None:
                    each.close()
                    with contextlib.suppress(OSError, ssl.SSLError):
                        await each.wait_closed()

    async def _refused(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Count a request, and answer it here where the store shall not see it; the connection ends then."""
        faults, counts = self.faults, self.counts
        counts.requests += 1
        counts.puts += head.verb == "PUT"
        counts.gets += head.verb == "GET"
        if self._log is not None:
            print(*head.first, file=self._log)
        refusal = self._refusal(head, fate(faults, counts.requests))
        if refusal is None:
            return False
        await asyncio.sleep(faults.round_trip_s)
        writer.write(refusal)
        await writer.drain()
        # Read what is still coming, or the client's system would drop the answer with the connection.
        pace = Pace(faults.bytes_per_s)
        async for part in body_parts(reader, head, "request", piece_bytes(faults)):
            await pace.passed(len(part))
        return True

    def _refusal(self, head: Head, its: Fate) -> bytes | None:
        """The proxy's own answer instead of the store's, None where the store shall answer."""
        faults = self.faults
        if its.slow_down:
            self.counts.slow_downs += 1
            return _answer_of("503 Service Unavailable", "SlowDown", "Please reduce your request rate.", head)
        if faults.conditional == "refused" and head.verb == "PUT" and "if-none-match" in head.headers:
            self.counts.refused += 1
            text = "A header you provided implies functionality that is not implemented."
            return _answer_of("501 Not Implemented", "NotImplemented", text, head)
        if faults.full and head.verb == "PUT":
            self.counts.refused += 1
            text = "Storage backend has reached its minimum free drive threshold."
            return _answer_of("507 Insufficient Storage", "XMinioStorageFull", text, head)
        if faults.valid_keys is not None and head.access_key not in faults.valid_keys:
            self.counts.refused += 1
            return _answer_of("403 Forbidden", "ExpiredToken", "The provided token has expired.", head)
        return None

    def _head_for_store(self, head: Head) -> bytes:
        ignored = self.faults.conditional == "ignored" and "if-none-match" in head.headers
        if not ignored and self.faults.valid_keys is None and not head.target.startswith("http"):
            return head.raw
        drop = {"if-none-match"} if ignored else set()
        return resigned(head, f"{self._host}:{self._port}", self._keys, drop)


def _answer_of(status: str, code: str, message: str, head: Head) -> bytes:
    body = b"" if head.verb == "HEAD" else error_body(code, message, head.target.partition("?")[0])
    lines = (f"HTTP/1.1 {status}", "Content-Type: application/xml", f"Content-Length: {len(body)}", "Connection: close")
    return "\r\n".join((*lines, "", "")).encode() + body


async def _commands() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line


async def _run(options: argparse.Namespace) -> None:
    parts = urlsplit(options.upstream)
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    log = options.log and options.log.open("a", buffering=1)
    server = _Server(str(parts.hostname), int(parts.port or 80), keys, log)
    tls = None
    if options.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.certificate, options.key)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", options.port, limit=_BUFFER_BYTES, ssl=tls)
    print(json.dumps({"port": listener.sockets[0].getsockname()[1]}), flush=True)
    async for line in _commands():
        asked = json.loads(line)
        told = server.counts.to_dict()
        if "faults" in asked:
            server.configure(Faults.from_dict(asked["faults"]))
        print(json.dumps(told), flush=True)
    listener.close()


class FaultProxy:
    """The proxy as the bench and the tests hold it: a child process, told what to do over its standard input.

    Args:
        upstream: `http://host:port` of the S3 server.
        faults: settings from the start.
        keys: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION of the store, where heads are signed anew.
        tls: certificate and key file; the endpoint is https then.
        port: where to listen; 0 is any free port.
        log: file for the request lines, as the client wrote them.
    """

    def __init__(
        self,
        upstream: str,
        faults: Faults | None = None,
        keys: Mapping[str, str] | None = None,
        tls: tuple[Path, Path] | None = None,
        port: int = 0,
        log: Path | None = None,
    ) -> None:
        command = [sys.executable, "-m", "jobs.bench.network.proxy", "--upstream", upstream, "--port", str(port)]
        if tls is not None:
            command += ["--certificate", str(tls[0]), "--key", str(tls[1])]
        if log is not None:
            command += ["--log", str(log)]
        env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | dict(keys or {})
        root = Path(__file__).resolve().parents[3]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=root, env=env, text=True)
        self.port: int = self._told()["port"]
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        if faults is not None:
            self.configure(faults)

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def configure(self, faults: Faults) -> dict[str, Any]:
        """New settings from the next request on, counts from zero; returns the counts so far."""
        return self._ask({"faults": asdict(faults)})

    def counts(self) -> dict[str, Any]:
        """`Counts` since the last `configure`."""
        return self._ask({})

    def close(self) -> None:
        """End the process; open connections break."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Of the proxy's process, for those who measure what it costs."""
        return self._process.pid

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._told()

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fault proxy ended with status {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench.network.proxy", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--log", type=Path)
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
