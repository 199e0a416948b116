"""What the commands share: arguments and options by type, settings from the command line, JSON on stdout.

Owns the wording of --help for each. Called by the other files of this room.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tlcore.errors import RequestError

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_STORAGE = "s3://tlcore/runs"
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
_WIDE = 240

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, such as train.epochs=2. Repeatable."),
]
Storage = Annotated[str, typer.Option("--storage", metavar="URL", help="Where runs are kept.")]
RunStorage = Annotated[str | None, typer.Option("--storage", metavar="URL", help="In place of the recipe's storage.")]
Name = Annotated[str | None, typer.Option("--name", help="In place of the recipe's name.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the newest run of this name.")]
Workers = Annotated[int | None, typer.Option("--workers", help="In place of resources.workers.")]
Gpus = Annotated[float | None, typer.Option("--gpus", help="In place of resources.gpus_per_worker.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print the table that README has.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def overrides(settings: Sequence[str] | None, **options: str | float | None) -> dict[str, str]:
    """`key=value` words as a mapping, with the options that stand for a setting (`resources__workers=2`) over them.

    Raises RequestError for a word without `=`.
    """
    found: dict[str, str] = {}
    for word in settings or ():
        key, separator, value = word.partition("=")
        if not separator or not key.strip():
            raise RequestError(f"--set {word!r} is not key=value", hint="for example --set train.learning_rate=1e-4")
        found[key.strip()] = value
    given = {key.replace("__", "."): json.dumps(value) for key, value in options.items() if value is not None}
    return found | given


def stdout_console() -> Console:
    """For tables on stdout: as wide as the terminal, and wide enough for every column where there is none."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_WIDE)


def print_json(value: Any) -> None:
    """JSON on stdout, and nothing else."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
