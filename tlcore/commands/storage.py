"""`tlcore checkpoints` and `tlcore store`: what is kept, and the server that keeps it.

Owns these two groups of commands; parse, call, print. Called by `cli.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tlcore.commands.options import DEFAULT_STORAGE, AsJson, Storage, print_json, stdout_console

if TYPE_CHECKING:
    from tlcore.storage import Status

checkpoints = typer.Typer(no_args_is_help=True, help="Checkpoints of a run: list, verify, collect garbage, fetch.")
store = typer.Typer(no_args_is_help=True, help="The embedded object store on this machine.")

Where = Annotated[str, typer.Argument(metavar="WHERE", help="URL of a run, trial or checkpoint, or a run's name.")]
Trial = Annotated[str | None, typer.Option("--trial", metavar="NAME", help="Only this trial of the run, such as t003.")]


@checkpoints.command("list")
def list_checkpoints(
    where: Where, storage: Storage = DEFAULT_STORAGE, trial: Trial = None, as_json: AsJson = False
) -> None:
    """Committed checkpoints of a run or trial."""
    from tlcore.report.checkpoints import damaged_json, find_checkpoints, manifest_json, manifest_table
    from tlcore.report.runs import storage_of
    from tlcore.storage import ensure_embedded

    ensure_embedded(storage_of(where, storage))
    found = find_checkpoints(where, storage, trial)
    if as_json:
        print_json([*map(manifest_json, found.manifests), *map(damaged_json, found.damaged)])
        return
    if found.manifests:
        stdout_console().print(manifest_table(found.manifests))
    elif not found.damaged:
        typer.echo("no checkpoint was committed yet")
    for each in found.damaged:
        typer.echo(f"{each.trial} step {each.step}: DAMAGED, {each.text}", err=True)


@checkpoints.command()
def verify(where: Where, storage: Storage = DEFAULT_STORAGE, trial: Trial = None, as_json: AsJson = False) -> None:
    """Read every byte of the checkpoints and compare digests; exit 1 when one is not whole."""
    from tlcore.report.checkpoints import Verdict, find_checkpoints, judge, verdict_json, verdict_line
    from tlcore.report.runs import storage_of
    from tlcore.report.working import Working
    from tlcore.storage import ensure_embedded

    ensure_embedded(storage_of(where, storage))
    found = find_checkpoints(where, storage, trial)
    verdicts = [Verdict.on_damaged(each) for each in found.damaged]
    gone: list[str] = []
    with Working(in_bytes=True) as working:
        for manifest in found.manifests:
            what, total, proved = f"{manifest.trial} step {manifest.step}", manifest.totals.state_bytes, 0

            def more(size: int, what: str = what, total: int = total) -> None:
                nonlocal proved
                proved += size
                working.update(what, proved, total)

            verdict = judge(found.store, manifest, more)
            if verdict is None:
                gone.append(what)
            else:
                verdicts.append(verdict)
    verdicts.sort(key=lambda each: (each.trial, each.step))
    whole = sum(not each.problems for each in verdicts)
    if as_json:
        print_json([verdict_json(each) for each in verdicts])
    else:
        for each in verdicts:
            typer.echo(verdict_line(each, verdicts))
        for name in gone:
            typer.echo(f"{name}: deleted or replaced meanwhile")
        typer.echo(f"{whole} of {len(verdicts)} whole")
    raise typer.Exit(0 if whole == len(verdicts) and (verdicts or not gone) else 1)


@checkpoints.command()
def gc(
    run: Annotated[str, typer.Argument(metavar="RUN", help="URL of a run, or its name.")],
    storage: Storage = DEFAULT_STORAGE,
    grace_hours: Annotated[
        float, typer.Option(help="Leave what is younger, or was deleted less than so long ago; at least 2.")
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what no checkpoint of a run needs; of a sweep that has ended, also what its recipe keeps no longer.

    Safe while the run goes on.
    """
    from tlcore.checkpoint import check_grace
    from tlcore.checkpoint import gc as collect
    from tlcore.report.checkpoints import gc_json, gc_lines, pruned_json, pruned_lines, require_run
    from tlcore.report.runs import find_run, storage_of
    from tlcore.report.working import Working
    from tlcore.storage import ensure_embedded
    from tlcore.train.retention import prune_ended

    grace_s = grace_hours * 3600
    check_grace(grace_s)  # before anything is deleted
    ensure_embedded(storage_of(run, storage))
    ref = find_run(run, storage)
    run_store = ref.open()
    require_run(run_store)
    with Working() as working:
        pruned = prune_ended(ref, dry_run)
        report = collect(run_store, grace_s=grace_s, dry_run=dry_run, progress=working.update)
    if as_json:
        print_json({"run": ref.url, **gc_json(report), **pruned_json(pruned)})
        return
    for line in pruned_lines(pruned, dry_run):
        typer.echo(line)
    for line in gc_lines(report):
        typer.echo(line)


@checkpoints.command()
def fetch(
    where: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT", help="A checkpoint's URL, or a trial's or run's: its best, of the best trial."
        ),
    ],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A directory, or another s3:// prefix.")],
    storage: Storage = DEFAULT_STORAGE,
    trial: Trial = None,
    as_json: AsJson = False,
) -> None:
    """Copy one checkpoint, proved byte by byte; goes on where an interrupted fetch stopped."""
    from dataclasses import asdict

    from tlcore.checkpoint import CheckpointRef, fetch_checkpoint
    from tlcore.report.checkpoints import choose_checkpoint
    from tlcore.report.figures import count, size
    from tlcore.report.runs import storage_of
    from tlcore.report.working import Working
    from tlcore.storage import ensure_embedded, open_store

    ensure_embedded(storage_of(where, storage))
    ensure_embedded(destination)
    source, manifest = choose_checkpoint(where, storage, trial)
    target = open_store(destination)
    what = f"{manifest.trial} step {manifest.step}"
    with Working(in_bytes=True) as working:
        report = fetch_checkpoint(source, manifest, target, lambda done, total: working.update(what, done, total))
    url = str(CheckpointRef(target.url, manifest.trial, manifest.step))
    if as_json:
        print_json({"source": f"{source.url}/{manifest.key}", "checkpoint": url, **asdict(report)})
        return
    copied = f"{size(report.bytes_copied)} copied, {size(report.bytes_total - report.bytes_copied)} there already"
    typer.echo(f"{what} of {source.url}: {count(report.chunks, 'chunk')}, {copied}")
    typer.echo(url)


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
