"""`tlcore submit`, `attach`, `stop` and `preflight`: a cluster that runs elsewhere, seen from this terminal.

Owns these commands; parse, call, print. Called by `cli.py`.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tlcore.commands.options import (
    AsJson,
    Name,
    RecipeFile,
    Resume,
    RunStorage,
    Settings,
    overrides,
    print_json,
    stdout_console,
)

Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="URL", help="The cluster's job server; else RAY_ADDRESS, else the local cluster."
    ),
]
Job = Annotated[str | None, typer.Argument(metavar="JOB", help="The job's name; without one, the newest.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands on the application."""
    for command in (submit, attach, stop, preflight):
        app.command()(command)


def _write(text: str) -> None:
    """A piece of a job's output, as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(line: str) -> None:
    typer.echo(line, err=True)


def submit(
    recipe_file: RecipeFile,
    settings: Settings = None,
    name: Name = None,
    storage: RunStorage = None,
    resume: Resume = False,
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="Come back at once; see `tlcore attach`.")] = False,
) -> None:
    """Run a sweep on a cluster, so that it outlives this terminal; shows its output and ends with its exit code."""
    from pathlib import Path

    from tlcore.remote.submit import Submission, submit

    changes = overrides(settings, name=name, storage=storage)
    request = Submission(Path(recipe_file), changes, ["--resume"] if resume else [])
    raise typer.Exit(submit(request, _write, _say, address, follow=not detach))


def attach(job: Job = None, address: Address = None) -> None:
    """Show a submitted job's output from its beginning, and end with its exit code."""
    from tlcore.remote.submit import attach

    raise typer.Exit(attach(job, _write, _say, address))


def stop(job: Job = None, address: Address = None) -> None:
    """Stop a submitted job; it commits what is under way first."""
    from tlcore.remote.submit import stop

    stop(job, _say, address)


def preflight(
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Also write to and read from this storage.")
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Every node of a cluster, or this machine: versions, devices, storage, and one collective across all."""
    from tlcore.remote.preflight import preflight, preflight_table

    report = preflight(storage, address)
    if as_json:
        print_json(report.to_dict())
    else:
        stdout_console().print(preflight_table(report))
        for line in (*report.problems, *report.notes):
            typer.echo(line)
    raise typer.Exit(report.exit_code)
