"""The `tlcore` command: parse, call, print.

Owns option names, what goes to stdout and stderr, and exit codes; no logic. Every command imports the rooms it calls
inside itself, so that `tlcore validate` and `tlcore --help` load neither torch nor ray. Errors on purpose
(`tlcore.errors`) become one message on stderr and their own exit code: 1 the work failed, 2 the request was wrong; an
interrupt is 130.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from tlcore.commands import captions, cluster, models, plan, reading, running, select, storage
from tlcore.commands.options import INTERRUPTED
from tlcore.errors import TlcoreError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distributed transfer learning: sweeps of DeepSpeed-sharded fine-tuning over object storage.",
)
for each in (reading, plan, select, running, cluster, models, captions):
    each.add_to(app)
app.add_typer(storage.checkpoints, name="checkpoints")
app.add_typer(storage.store, name="store")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the only place that turns exceptions into messages."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        app(args=[word for word in words if word != "--debug"], prog_name="tlcore", obj=words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except TlcoreError as error:
        typer.echo(traceback.format_exc() if debug else f"tlcore: {error}", err=True)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 (the last handler of the process: one line, and --debug for the traceback)
        seen = f"tlcore: {type(error).__name__}: {error}\n  not foreseen by tlcore; run again with --debug to see where"
        typer.echo(traceback.format_exc() if debug else seen, err=True)
        return 1
    return 0


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. May stand anywhere on the line.")] = False,
) -> None:
    """Declared for --help; `main` takes `--debug` off the line before it is parsed."""
