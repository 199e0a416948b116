"""`tlcore select`: which pre-trained model to start from.

Owns the option names and the table. Called by `cli.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tlcore.commands.options import AsJson, RecipeFile, Settings, overrides, print_json, stdout_console
from tlcore.errors import RequestError

if TYPE_CHECKING:
    from tlcore.recipe import Recipe

SOURCE = "model.source"


def add_to(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command()(select)


def select(
    recipe_file: RecipeFile,
    settings: Settings = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source", help="A candidate, as model.source takes it; once for each. Else the recipe's choices."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=20, help="Training samples to look at.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Rank pre-trained models for the recipe's data without fine-tuning: LogME, H-score and a linear probe of one pass each."""
    from tlcore.recipe import apply_point, load_recipe

    recipe = load_recipe(recipe_file, overrides(settings))
    wanted = list(dict.fromkeys(source or _choices(recipe)))
    if len(wanted) < 2:
        raise RequestError(
            f"one candidate alone, {wanted[0]!r}, leaves nothing to rank",
            hint="give --source several times, or model.source a choice in search.space",
        )
    variants = [apply_point(recipe, {SOURCE: each}) for each in wanted]
    from tlcore.engine.process import prepare_process
    from tlcore.storage import ensure_embedded

    for place in (recipe.data.train, *wanted):
        ensure_embedded(place)
    prepare_process()
    from tlcore.transfer.select import rank_sources

    found = rank_sources(recipe, variants, samples, lambda each: typer.echo(f"features of {each}", err=True))
    failed = {each.source for each in found if each.error}
    memory = _memory([variant for variant in variants if variant.model.source not in failed])
    if as_json:
        print_json([{**each.to_dict(), "worker_bytes": memory.get(each.source)} for each in found])
    else:
        _print([each.to_dict() for each in found], memory)
    best = [each.source for each in found if each.rank is not None][:3]
    if not best:
        raise RequestError("no candidate could be scored", hint="what is printed says why of each")
    if not as_json:
        typer.echo(
            f"to let a sweep decide among the first: search: {{space: {{{SOURCE}: {{choice: [{', '.join(best)}]}}}}}}"
        )


def _choices(recipe: Recipe) -> list[str]:
    domain = recipe.search.space.get(SOURCE)
    listed = domain.listed if domain is not None else None
    return [str(value) for value in listed or ()] or [recipe.model.source]


def _memory(variants: list[Recipe]) -> dict[str, int | None]:
    """Bytes that a worker needs with each source, None where that could not be told."""
    from tlcore.errors import TlcoreError
    from tlcore.sweep.cluster.estimates import EstimatorProcess

    found: dict[str, int | None] = {}
    with EstimatorProcess() as estimate:
        for variant in variants:
            try:
                found[variant.model.source] = estimate(variant, False).get("host_bytes")
            except TlcoreError:
                found[variant.model.source] = None
    return found


def _print(rows: list[dict[str, object]], memory: dict[str, int | None]) -> None:
    from rich.table import Table

    from tlcore.report import figures

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("rank", "source", "parameters", "worker", "LogME", "H-score", "probe", "similarity"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for row in rows:
        need = memory.get(str(row["source"]))
        if row["error"]:
            table.add_row("-", str(row["source"]), "-", "-", str(row["error"]))
            continue
        scores = (f"{row[name]:.3f}" for name in ("logme", "h_score", "probe", "similarity"))
        size = figures.ABSENT if need is None else figures.size(need)
        table.add_row(str(row["rank"]), str(row["source"]), f"{row['parameters']:,}", size, *scores)
    stdout_console().print(table)
