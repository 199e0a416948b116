"""The `tlcore` command: parse, call, print.

Owns option names, what goes to stdout and stderr, and exit codes; no logic. Every command imports the rooms it calls
inside itself, so that `tlcore validate` and `tlcore --help` load neither torch nor ray. Errors on purpose
(`tlcore.errors`) become one message on stderr and their own exit code: 1 the work failed, 2 the request was wrong; an
interrupt is 130.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tlcore.errors import RequestError, TlcoreError

DEFAULT_STORAGE = "s3://tlcore/runs"
INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distributed transfer learning: sweeps of DeepSpeed-sharded fine-tuning over object storage.",
)
checkpoints = typer.Typer(no_args_is_help=True, help="Checkpoints of a run: list, verify, collect garbage.")
store = typer.Typer(no_args_is_help=True, help="The embedded object store on this machine.")
app.add_typer(checkpoints, name="checkpoints")
app.add_typer(store, name="store")

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, such as train.epochs=2. Repeatable."),
]
Storage = Annotated[str, typer.Option("--storage", metavar="URL", help="Where runs are kept.")]
RunStorage = Annotated[str | None, typer.Option("--storage", metavar="URL", help="In place of the recipe's storage.")]
Name = Annotated[str | None, typer.Option("--name", help="In place of the recipe's name.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the newest run of this name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the only place that turns exceptions into messages."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        app(args=[word for word in words if word != "--debug"], prog_name="tlcore")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except TlcoreError as error:
        if debug:
            raise
        typer.echo(f"tlcore: {error}", err=True)
        return error.exit_code
    except Exception as error:  # the last handler of the process: a user gets one line, --debug the traceback
        if debug:
            raise
        typer.echo(f"tlcore: {type(error).__name__}: {error}", err=True)
        typer.echo("  not foreseen by tlcore; run again with --debug to see where", err=True)
        return 1
    return 0


def overrides(settings: Sequence[str] | None) -> dict[str, str]:
    """`key=value` words as a mapping. Raises RequestError for a word without `=`."""
    found: dict[str, str] = {}
    for word in settings or ():
        key, separator, value = word.partition("=")
        if not separator or not key.strip():
            raise RequestError(f"--set {word!r} is not key=value", hint="for example --set train.learning_rate=1e-4")
        found[key.strip()] = value
    return found


def print_json(value: Any) -> None:
    """JSON on stdout, and nothing else."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. May stand anywhere on the line.")] = False,
) -> None:
    """Declared for --help; `main` takes `--debug` off the line before it is parsed."""


@app.command()
def validate(recipe_file: RecipeFile, settings: Settings = None) -> None:
    """Check a recipe and print the plan it comes to."""
    from tlcore.recipe import load_recipe, resolved_plan

    rows = resolved_plan(load_recipe(recipe_file, overrides(settings)))
    width = max(len(row.topic) for row in rows)
    for row in rows:
        typer.echo(f"{row.topic:<{width}}  {row.text}")


@app.command("list")
def list_sweeps(storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """All runs of a storage, newest first."""
    from datetime import UTC, datetime

    from rich.console import Console

    from tlcore.report.runs import all_runs, list_table, run_json
    from tlcore.storage import ensure_embedded

    ensure_embedded(storage)
    runs = all_runs(storage)
    if as_json:
        print_json([run_json(run) for run in runs])
    elif runs:
        Console().print(list_table(runs, datetime.now(UTC)))
    else:
        typer.echo(f"no run in {storage}")


@app.command()
def show(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Name, name/run-id, or the run's URL.")],
    storage: Storage = DEFAULT_STORAGE,
    as_json: AsJson = False,
) -> None:
    """One run with its trials, read from object storage alone. A name means its newest run."""
    from rich.console import Console

    from tlcore.report.runs import find_run, read_run, show_json, show_parts
    from tlcore.storage import ensure_embedded

    ensure_embedded(sweep if "://" in sweep else storage)
    run = read_run(find_run(sweep, storage))
    if as_json:
        print_json(show_json(run))
        return
    console = Console()
    for part in show_parts(run, console):
        console.print(part, highlight=False)


Where = Annotated[str, typer.Argument(metavar="URL", help="URL of a run, trial or checkpoint, or a run's name.")]


@checkpoints.command("list")
def list_checkpoints(where: Where, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """Committed checkpoints of a run or trial."""
    from rich.console import Console

    from tlcore.report.runs import find_checkpoints, manifest_json, manifest_table
    from tlcore.storage import ensure_embedded

    ensure_embedded(where if "://" in where else storage)
    _, manifests = find_checkpoints(where, storage)
    if as_json:
        print_json([manifest_json(manifest) for manifest in manifests])
    else:
        Console().print(manifest_table(manifests))


@checkpoints.command()
def verify(where: Where, storage: Storage = DEFAULT_STORAGE) -> None:
    """Read every byte of the checkpoints and compare digests; exit 1 when one is not whole."""
    from tlcore.checkpoint import verify as problems_of
    from tlcore.report.figures import size
    from tlcore.report.runs import find_checkpoints
    from tlcore.storage import ensure_embedded

    ensure_embedded(where if "://" in where else storage)
    run_store, manifests = find_checkpoints(where, storage)
    broken = 0
    for manifest in manifests:
        problems = problems_of(run_store, manifest)
        broken += bool(problems)
        said = "; ".join(map(str, problems)) or f"whole, {size(manifest.totals.state_bytes)}"
        typer.echo(f"{manifest.trial} step {manifest.step}: {said}")
    typer.echo(f"{len(manifests) - broken} of {len(manifests)} whole")
    raise typer.Exit(1 if broken else 0)


@checkpoints.command()
def gc(
    run: Annotated[str, typer.Argument(metavar="RUN", help="URL of a run, or its name.")],
    storage: Storage = DEFAULT_STORAGE,
    grace_hours: Annotated[float, typer.Option(help="Leave what is younger.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Delete the chunks that no checkpoint of a run needs."""
    from datetime import UTC, datetime

    from tlcore.checkpoint import gc as collect
    from tlcore.report.figures import count, size
    from tlcore.report.runs import find_run
    from tlcore.storage import ensure_embedded

    ensure_embedded(run if "://" in run else storage)
    report = collect(find_run(run, storage).open(), datetime.now(UTC), grace_hours * 3600, dry_run)
    went = "would go" if dry_run else "deleted"
    typer.echo(f"{went}: {count(report.deleted, 'chunk')}, {size(report.deleted_bytes)}")
    typer.echo(f"kept: {count(report.kept, 'chunk')}, {size(report.kept_bytes)}")


Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="URL", help="The cluster's job server; else RAY_ADDRESS, else the local cluster."
    ),
]
Job = Annotated[str | None, typer.Argument(metavar="JOB", help="The job's name; without one, the newest.")]


def _write(text: str) -> None:
    """A piece of a job's output, as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.command()
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

    options = [
        *(["--name", name] if name else []),
        *(["--storage", storage] if storage else []),
        *(["--resume"] if resume else []),
    ]
    request = Submission(Path(recipe_file), overrides(settings), options)
    raise typer.Exit(submit(request, _write, _say, address, follow=not detach))


@app.command()
def attach(job: Job = None, address: Address = None) -> None:
    """Show a submitted job's output from its beginning, and end with its exit code."""
    from tlcore.remote.submit import attach

    raise typer.Exit(attach(job, _write, _say, address))


@app.command()
def stop(job: Job = None, address: Address = None) -> None:
    """Stop a submitted job; it commits what is under way first."""
    from tlcore.remote.submit import stop

    stop(job, _say, address)


@app.command()
def preflight(
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Also write to and read from this storage.")
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Every node of a cluster, or this machine: versions, devices, storage, and one collective across all."""
    from rich.console import Console

    from tlcore.remote.address import find_cluster
    from tlcore.remote.local_cluster import read_note
    from tlcore.remote.preflight import preflight, preflight_table

    report = preflight(storage, find_cluster(address) if address or read_note() else None)
    if as_json:
        print_json(report.to_dict())
    else:
        Console().print(preflight_table(report))
        for problem in report.problems:
            typer.echo(problem)
    raise typer.Exit(report.exit_code)


@store.command()
def up() -> None:
    """Start it, unless it runs."""
    from tlcore.storage import EmbeddedStore

    _print_status(EmbeddedStore().up(), as_json=False)


@store.command()
def down() -> None:
    """Stop it; its data stays."""
    from tlcore.storage import EmbeddedStore

    embedded = EmbeddedStore()
    embedded.down()
    _print_status(embedded.status(), as_json=False)


@store.command()
def status(as_json: AsJson = False) -> None:
    """Whether it runs, and where."""
    from tlcore.storage import EmbeddedStore

    _print_status(EmbeddedStore().status(), as_json)


@store.command()
def env() -> None:
    """Environment for other S3 tools, to use as: eval "$(tlcore store env)"."""
    import shlex

    from tlcore.storage import EmbeddedStore

    for name, value in EmbeddedStore().env().items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def _print_status(status: Any, as_json: bool) -> None:
    if as_json:
        print_json(status.to_dict())
    elif status.running:
        typer.echo(f"running at {status.endpoint}, bucket {status.bucket}, data in {status.directory}")
    else:
        typer.echo(f"stopped, data in {status.directory}")
