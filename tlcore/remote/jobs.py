"""Ray's job server, with its errors said in tlcore's words.

Owns talking to it: submit, facts, logs, stop. Knows no recipe. Called by `submit.py`. Ray's own client does the work
(it packs and uploads the working directory); the token goes along as a header, so that nothing of this process's
environment has to change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from tlcore.errors import RequestError, SweepError, TlcoreError
from tlcore.remote.address import ClusterAddress, job_server_answers, token_refused

_OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_POLL_S = 0.5
_ENDED = tuple(status.value for status in JobStatus if status.is_terminal())
_CHATTY = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
_LOST_LOG_S = 60.0


@dataclass(frozen=True)
class JobFacts:
    """One job as the cluster tells it. `status` is Ray's word: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    job: str
    status: str
    entrypoint: str
    message: str
    exit_code: int | None
    started_s: float | None

    @property
    def ended(self) -> bool:
        return self.status in _ENDED

    def to_exit_code(self) -> int:
        """What the terminal should end with: the job's own code; 1 when it was stopped or never ran."""
        if self.status == JobStatus.SUCCEEDED:
            return 0
        return self.exit_code if self.exit_code else 1


class _Shown:
    """How much of a log has been written. Ray sends a log from its beginning on every connection."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._length = 0

    def take(self, text: str, begin: int) -> None:
        """`text` stands at `begin` (in characters) of the log; write what of it is new."""
        fresh = text[max(0, self._length - begin) :]
        if fresh:
            self._write(fresh)
            self._length = begin + len(text)


class JobServer:
    """A connection to one cluster's jobs. Raises RequestError at once when the server or its token is wrong.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, address: ClusterAddress, clock: Callable[[], float] = time.monotonic) -> None:
        if not job_server_answers(address):
            raise RequestError(
                f"no Ray job server answers at {address.job_server} (named by {address.named_by})",
                hint="is the cluster up, and is its port forwarded to here? A local one: make cluster-up",
            )
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        self.address = address
        self._clock, self._answered_s = clock, clock()
        with _translated(address), _no_overriding():
            self._client = JobSubmissionClient(address.job_server, headers=address.headers)

    def submit(self, job: str, entrypoint: str, runtime: Mapping[str, Any]) -> None:
        """Start `entrypoint`, a shell line, in a Ray runtime environment; directories it names are uploaded.

        `runtime` is stored in clear and shown on the dashboard: no secrets.
        """
        with _translated(self.address):
            self._client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=dict(runtime))

    def facts(self, job: str) -> JobFacts:
        """Raises RequestError for a job this cluster does not know."""
        try:
            with _translated(self.address):
                facts = _facts(job, self._client.get_job_info(job))
        except SweepError as error:
            if "status code 404" not in error.message:
                raise
            raise self._unknown(job) from error
        self._answered_s = self._clock()
        return facts

    def submitted(self) -> list[JobFacts]:
        """Jobs that came through the job server, newest first."""
        with _translated(self.address):
            found = [(info.submission_id, info) for info in self._client.list_jobs()]
        facts = [_facts(job, info) for job, info in found if job]
        return sorted(facts, key=lambda fact: fact.started_s or 0.0, reverse=True)

    def stop(self, job: str) -> None:
        """Ask for it; the job then has the time its environment grants (RAY_JOB_STOP_WAIT_TIME_S)."""
        with _translated(self.address):
            self._client.stop_job(job)

    def log(self, job: str) -> str:
        """All the job has said so far."""
        with _translated(self.address):
            return str(self._client.get_job_logs(job))

    def follow(self, job: str, write: Callable[[str], None]) -> JobFacts:
        """Hand every piece of the job's output to `write` until it has ended.

        A broken connection is taken up again where it broke; raises SweepError when the cluster stays away for a
        minute.
        """
        shown = _Shown(write)
        self._answered_s = self._clock()
        while True:
            try:
                facts = self.facts(job)
                if facts.ended:
                    shown.take(self.log(job), begin=0)
                    return facts
                asyncio.run(self._tail(job, shown))
            except (aiohttp.ClientError, SweepError, RuntimeError) as error:
                if self._clock() - self._answered_s > _LOST_LOG_S:
                    hint = f"the job may still run: tlcore attach {job}"
                    raise SweepError(f"lost the log of {job}: {error}", hint=hint) from error
                time.sleep(_POLL_S)

    async def _tail(self, job: str, shown: _Shown) -> None:
        """Show the log as it grows; returns once the job has ended, for Ray closes the stream only seconds later."""
        stream = asyncio.create_task(self._stream(job, shown))
        try:
            while not stream.done():
                await asyncio.wait([stream], timeout=_POLL_S)
                if (await asyncio.to_thread(self.facts, job)).ended:
                    return
            stream.result()
        finally:
            stream.cancel()

    async def _stream(self, job: str, shown: _Shown) -> None:
        position = 0
        async for piece in self._client.tail_job_logs(job):
            shown.take(piece, begin=position)
            position += len(piece)

    def _unknown(self, job: str) -> RequestError:
        known = ", ".join(fact.job for fact in self.submitted()[:5]) or "none"
        return RequestError(
            f"the cluster at {self.address.job_server} knows no job {job!r}", hint=f"newest jobs: {known}"
        )


def _facts(job: str, info: JobDetails) -> JobFacts:
    return JobFacts(
        job=job,
        status=str(info.status.value),
        entrypoint=info.entrypoint or "",
        message=info.message or "",
        exit_code=info.driver_exit_code,
        started_s=info.start_time / 1000 if info.start_time else None,
    )


@contextlib.contextmanager
def _no_overriding() -> Iterator[None]:
    """Ray's client lets these variables win over the address it was given; here the address was chosen already."""
    hidden: dict[str, Any] = {name: os.environ.pop(name) for name in _OVERRIDING if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _translated(address: ClusterAddress) -> Iterator[None]:
    try:
        yield
    except TlcoreError:
        raise
    except AuthenticationError as error:
        raise token_refused(address, 403) from error
    except (requests.RequestException, ConnectionError) as error:
        raise SweepError(f"the job server at {address.job_server} broke off: {error}") from error
    except (RuntimeError, ValueError) as error:
        raise SweepError(f"the job server at {address.job_server} refused: {error}") from error
