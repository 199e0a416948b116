"""`tlcore validate`, `list` and `show`: a recipe and runs, read and printed.

Owns these commands; parse, call, print. Called by `cli.py`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from tlcore.commands.options import (
    DEFAULT_STORAGE,
    AsJson,
    RecipeFile,
    Settings,
    Storage,
    overrides,
    print_json,
    stdout_console,
)


def add_to(app: typer.Typer) -> None:
    """Put the commands on the application."""
    app.command()(validate)
    app.command("list")(list_sweeps)
    app.command()(show)


def validate(recipe_file: RecipeFile, settings: Settings = None) -> None:
    """Check a recipe and print the plan it comes to."""
    from tlcore.recipe import load_recipe, resolved_plan

    rows = resolved_plan(load_recipe(recipe_file, overrides(settings)))
    width = max(len(row.topic) for row in rows)
    for row in rows:
        typer.echo(f"{row.topic:<{width}}  {row.text}")


def list_sweeps(storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """All runs of a storage, newest first."""
    from datetime import UTC, datetime

    from tlcore.report.runs import all_runs, list_table, run_json
    from tlcore.storage import ensure_embedded

    ensure_embedded(storage)
    runs = all_runs(storage)
    if as_json:
        print_json([run_json(run) for run in runs])
    elif runs:
        stdout_console().print(list_table(runs, datetime.now(UTC)))
    else:
        typer.echo(f"no run in {storage}")


def show(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name, name/run-id, or the run's URL.")],
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """One run with its trials, read from object storage alone. A name means its newest run."""
    from tlcore.report.runs import find_run, read_run, show_json, show_parts, storage_of
    from tlcore.storage import ensure_embedded

    ensure_embedded(storage_of(sweep, storage))
    run = read_run(find_run(sweep, storage))
    if as_json:
        print_json(show_json(run))
        return
    console = stdout_console()
    for part in show_parts(run, console):
        console.print(part, highlight=False)
