"""`tlcore checkpoints` and `tlcore store`: what is kept, and the server that keeps it.

Owns these two groups of commands; parse, call, print. Called by `cli.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tlcore.cli_options import DEFAULT_STORAGE, AsJson, Storage, print_json, stdout_console

if TYPE_CHECKING:
    from tlcore.storage import Status

checkpoints = typer.Typer(no_args_is_help=True, help="Checkpoints of a run: list, verify, collect garbage.")
store = typer.Typer(no_args_is_help=True, help="The embedded object store on this machine.")

Where = Annotated[str, typer.Argument(metavar="URL", help="URL of a run, trial or checkpoint, or a run's name.")]


@checkpoints.command("list")
def list_checkpoints(where: Where, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """Committed checkpoints of a run or trial."""
    from tlcore.report.runs import find_checkpoints, manifest_json, manifest_table, storage_of
    from tlcore.storage import ensure_embedded

    ensure_embedded(storage_of(where, storage))
    _, manifests = find_checkpoints(where, storage)
    if as_json:
        print_json([manifest_json(manifest) for manifest in manifests])
    else:
        stdout_console().print(manifest_table(manifests))


@checkpoints.command()
def verify(where: Where, storage: Storage = DEFAULT_STORAGE) -> None:
    """Read every byte of the checkpoints and compare digests; exit 1 when one is not whole."""
    from tlcore.checkpoint import verify as problems_of
    from tlcore.report.figures import size
    from tlcore.report.runs import find_checkpoints, storage_of
    from tlcore.storage import ensure_embedded

    ensure_embedded(storage_of(where, storage))
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
    from tlcore.report.runs import find_run, storage_of
    from tlcore.storage import ensure_embedded

    ensure_embedded(storage_of(run, storage))
    report = collect(find_run(run, storage).open(), datetime.now(UTC), grace_hours * 3600, dry_run)
    went = "would go" if dry_run else "deleted"
    typer.echo(f"{went}: {count(report.deleted, 'chunk')}, {size(report.deleted_bytes)}")
    typer.echo(f"kept: {count(report.kept, 'chunk')}, {size(report.kept_bytes)}")


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


def _print_status(status: Status, as_json: bool) -> None:
    if as_json:
        print_json(status.to_dict())
    elif status.running:
        typer.echo(f"running at {status.endpoint}, bucket {status.bucket}, data in {status.directory}")
    else:
        typer.echo(f"stopped, data in {status.directory}")
