"""Sweeps that outlive the laptop: submit, attach, stop, through Ray's job server.

Owns what a submitted job looks like (its command line, what is uploaded, what is not) and what the terminal shows of
it. Called by the command and by `make submit`. What runs is what `ray job submit --working-dir . -- python -m
jobs.sweep RECIPE` would run. The driver lands on the head node, which is not spot, with no CPU of its own.

No secret travels: a job's environment is stored in clear on the head and shown on its dashboard, so credentials come
from the nodes' own environment or instance role, and files that usually hold some are left out of the upload.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from tlcore.errors import RequestError, SweepError
from tlcore.recipe import load_recipe
from tlcore.remote.address import find_cluster
from tlcore.remote.jobs import JobFacts, JobServer

Write = Callable[[str], None]

EXCLUDES = (
    *("/.git", "/.venv", "/runs", "/build", "/dist", "*.egg-info", "__pycache__"),
    *(".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"),
    *(".env", ".env.*", ".envrc", ".netrc", ".aws", ".ssh", "*.pem", "*.key", "credentials", "credentials.json"),
)
STOP_WAIT_S = 120
"""A stopped sweep gets this long to commit the checkpoints under way; Ray's own default is 3 s, then SIGKILL."""


@dataclass(frozen=True)
class Submission:
    """One request: a recipe inside `directory`, settings over it, and further words of `tlcore sweep` that change nothing of the
    recipe (--resume)."""

    recipe: str | Path
    overrides: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    directory: Path = field(default_factory=Path.cwd)


def submit(request: Submission, write: Write, say: Write, address: str | None = None, follow: bool = True) -> int:
    """Check the recipe here, submit it, show the job's output and return its exit code (0 at once without `follow`).

    Args:
        write: takes the job's own output, in pieces as they come.
        say: takes our own lines about the job.
    Raises RecipeError before anything is sent, RequestError for the cluster, SweepError when the job server breaks off.
    """
    inside = _inside(request)
    recipe = load_recipe(request.directory / inside, request.overrides)
    words = [inside.as_posix(), *_settings(request.overrides), *request.options]
    server = JobServer(find_cluster(address))
    upload = {"working_dir": str(request.directory), "excludes": list(EXCLUDES)}
    job = start(server, recipe.name, _entrypoint(request.directory, words), upload)
    say(f"job {job} submitted to {server.address.job_server}")
    return _show(server, job, write, say) if follow else 0


def start(server: JobServer, name: str, entrypoint: str, upload: Mapping[str, Any]) -> str:
    """Submit one shell line and return the job's id. `upload` names directories as Ray's runtime environment does."""
    job = job_name(name, datetime.now(UTC), token_hex(2))
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "PYTHONUNBUFFERED": "1"}
    server.submit(job, entrypoint, {**upload, "env_vars": environment})
    return job


def attach(job: str | None, write: Write, say: Write, address: str | None = None) -> int:
    """Show a job's output from its beginning (without a name: the newest job's) and return its exit code."""
    server = JobServer(find_cluster(address))
    facts = server.facts(job) if job else _newest(server)
    say(f"job {facts.job}, {facts.status.lower()}: {facts.entrypoint}")
    return _show(server, facts.job, write, say)


def stop(job: str | None, say: Write, address: str | None = None) -> JobFacts:
    """Stop a job (without a name: the newest that runs) and wait until it is gone. Raises SweepError when it stays."""
    server = JobServer(find_cluster(address))
    facts = server.facts(job) if job else _newest(server, running=True)
    if facts.ended:
        say(f"job {facts.job} had ended already: {facts.status.lower()}")
        return facts
    server.stop(facts.job)
    say(f"job {facts.job} asked to stop; it commits what is under way first")
    deadline = time.monotonic() + STOP_WAIT_S + 30
    while time.monotonic() < deadline:
        facts = server.facts(facts.job)
        if facts.ended:
            say(f"job {facts.job} {facts.status.lower()}")
            return facts
        time.sleep(0.3)
    raise SweepError(f"job {facts.job} was asked to stop and still runs", hint="see the dashboard of its cluster")


def job_name(name: str, now: datetime, entropy: str) -> str:
    """A job's id: readable, sortable, safe as a file name and in a shell."""
    plain = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower()).strip("-")
    return f"{plain or 'job'}-{now:%Y%m%d-%H%M%S}-{entropy}"


def _inside(request: Submission) -> Path:
    """The recipe's path within the upload."""
    recipe = (request.directory / request.recipe).resolve()
    try:
        return recipe.relative_to(request.directory.resolve())
    except ValueError as error:
        raise RequestError(
            f"{request.recipe} lies outside {request.directory}, which is what gets uploaded",
            hint="run it from a directory that holds the recipe",
        ) from error


def _settings(overrides: Mapping[str, str]) -> list[str]:
    return [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]


def _entrypoint(directory: Path, words: Sequence[str]) -> str:
    """From a checkout its own entry module; elsewhere the tlcore that is installed on the nodes."""
    module = ["jobs.sweep"] if (directory / "jobs" / "sweep.py").exists() else ["tlcore", "sweep"]
    return shlex.join(["python", "-m", *module, *words])


def _newest(server: JobServer, running: bool = False) -> JobFacts:
    candidates = [fact for fact in server.submitted() if not (running and fact.ended)]
    if not candidates:
        what = "runs on" if running else "was submitted to"
        raise RequestError(f"no job {what} the cluster at {server.address.job_server}", hint="make submit RECIPE=...")
    return candidates[0]


def _show(server: JobServer, job: str, write: Write, say: Write) -> int:
    try:
        facts = server.follow(job, write)
    except KeyboardInterrupt:
        say(f"\njob {job} goes on without this terminal: tlcore attach {job}, or tlcore stop {job}")
        raise
    if facts.exit_code is None and facts.message and facts.status == "FAILED":
        say(f"job {job} did not run: {facts.message.strip()}")
    code = facts.to_exit_code()
    say(f"job {job} {facts.status.lower()}, exit code {code}")
    return code
