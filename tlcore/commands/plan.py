"""`tlcore plan`: can every point of the space run here.

Owns the option names and the exit code. Called by `cli.py`.
"""

from __future__ import annotations

import typer

from tlcore.commands.options import (
    AsJson,
    Name,
    RecipeFile,
    RunStorage,
    Settings,
    Workers,
    overrides,
    print_json,
    stdout_console,
)

NOTHING_FITS = 2


def add_to(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command()(plan)


def plan(
    recipe_file: RecipeFile,
    settings: Settings = None,
    name: Name = None,
    storage: RunStorage = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """For every kind of point of the space: batch, memory per worker by ZeRO stage, and whether it can run here.

    On the cluster at RAY_ADDRESS, else on this machine. Exit code 2 when nothing fits.
    """
    from tlcore.recipe import load_recipe
    from tlcore.report.plan_table import plan_parts
    from tlcore.sweep.planning import make_plan, summary

    changes = overrides(settings, name=name, storage=storage, resources__workers=workers)
    found = make_plan(load_recipe(recipe_file, changes))
    if as_json:
        print_json(found)
    else:
        console = stdout_console()
        console.print(plan_parts(found), highlight=False)
        typer.echo(summary(found))
    if not found["fits"]:
        raise typer.Exit(NOTHING_FITS)
