"""The `tlcore` command: parse, call, print.

Owns option names, what goes to stdout and stderr, and exit codes; no logic. Every command imports the rooms it calls
inside itself, so that `tlcore validate` and `tlcore --help` load neither torch nor ray. Errors on purpose
(`tlcore.errors`) become one message on stderr and their own exit code: 1 the work failed, 2 the request was wrong; an
interrupt is 130.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tlcore import cli_models, cli_plan, cli_select, cli_storage
from tlcore.cli_options import (
    DEFAULT_STORAGE,
    AsJson,
    Gpus,
    Name,
    RecipeFile,
    Resume,
    RunStorage,
    Settings,
    Storage,
    Workers,
    overrides,
    print_json,
    stdout_console,
)
from tlcore.errors import TlcoreError

if TYPE_CHECKING:
    from tlcore.recipe import Recipe
    from tlcore.report.view import SweepView
    from tlcore.storage import RunRef
    from tlcore.sweep import SweepOptions, SweepOutcome

INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distributed transfer learning: sweeps of DeepSpeed-sharded fine-tuning over object storage.",
)
cli_models.add_to(app)
cli_plan.add_to(app)
cli_select.add_to(app)
app.add_typer(cli_storage.checkpoints, name="checkpoints")
app.add_typer(cli_storage.store, name="store")


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


@app.command()
def validate(recipe_file: RecipeFile, settings: Settings = None) -> None:
    """Check a recipe and print the plan it comes to."""
    from tlcore.recipe import load_recipe, resolved_plan

    rows = resolved_plan(load_recipe(recipe_file, overrides(settings)))
    width = max(len(row.topic) for row in rows)
    for row in rows:
        typer.echo(f"{row.topic:<{width}}  {row.text}")


@app.command()
def sweep(
    context: typer.Context,
    recipe_file: RecipeFile,
    settings: Settings = None,
    name: Name = None,
    storage: RunStorage = None,
    workers: Workers = None,
    gpus: Gpus = None,
    resume: Resume = False,
) -> None:
    """Run a hyperparameter sweep, here or on the Ray cluster at RAY_ADDRESS."""
    from tlcore.recipe import load_recipe

    changes = overrides(
        settings, name=name, storage=storage, resources__workers=workers, resources__gpus_per_worker=gpus
    )
    recipe = load_recipe(recipe_file, changes)
    from tlcore.sweep import run_sweep

    outcome = _run_on_ray(context.obj, recipe, run_sweep, resume)
    if outcome.recipe.report.baselines:
        _compare(context.obj, outcome, resume)


@app.command()
def train(
    context: typer.Context,
    recipe_file: RecipeFile,
    settings: Settings = None,
    name: Name = None,
    storage: RunStorage = None,
    workers: Workers = None,
    gpus: Gpus = None,
    resume: Resume = False,
    local: Annotated[bool, typer.Option("--local", help="Without Ray: this process, or torchrun's ranks.")] = False,
) -> None:
    """Train the recipe as it stands, without its search."""
    from tlcore.recipe import load_recipe

    changes = overrides(
        settings, name=name, storage=storage, resources__workers=workers, resources__gpus_per_worker=gpus
    )
    recipe = load_recipe(recipe_file, changes)
    if local:
        _run_without_ray(context.obj, recipe, resume)
        return
    from tlcore.sweep import run_train

    _run_on_ray(context.obj, recipe, run_train, resume, trials=1)


def _run_on_ray(
    words: Sequence[str],
    recipe: Recipe,
    run: Callable[[Recipe, SweepOptions], SweepOutcome],
    resume: bool,
    trials: int | None = None,
) -> SweepOutcome:
    """Run with a live display, then say what came of it."""
    from pathlib import Path

    from tlcore.report.tables import prediction_lines
    from tlcore.report.usage import ended_by_budget
    from tlcore.sweep import finish_sweep

    outcome = _run_live(words, recipe, run, resume, trials)
    finals = finish_sweep(outcome, Path("runs") / recipe.name / "best")
    _print_run(outcome.run)
    if outcome.exhausted is not None:
        typer.echo(f"\n{ended_by_budget(words, outcome.exhausted.setting, outcome.exhausted.used)}")
    if finals is not None:
        typer.echo(f"\nbest model exported to {finals.exported}")
        for line in prediction_lines(finals.examples):
            typer.echo(line)
    if outcome.errors:
        failed, trials = len(outcome.errors), len(outcome.trials)
        typer.echo(f"tlcore: {failed} of {trials} trials failed: {', '.join(outcome.errors)}", err=True)
        if failed == trials:
            raise typer.Exit(1)
    return outcome


def _run_live(
    words: Sequence[str],
    recipe: Recipe,
    run: Callable[[Recipe, SweepOptions], SweepOutcome],
    resume: bool,
    trials: int | None = None,
) -> SweepOutcome:
    """Run with a live display. Exits where it was interrupted."""
    from datetime import UTC, datetime

    from tlcore.report.live import live_view, open_display
    from tlcore.report.tensorboard import tracked
    from tlcore.storage import ensure_embedded
    from tlcore.sweep import SweepOptions, log_directory

    logs = log_directory(recipe.name, datetime.now(UTC))
    ensure_embedded(recipe.storage)
    view = live_view(recipe, resume, trials)
    try:
        with (
            open_display(view, logs=f"{logs}/ (driver.log, ray/)") as screen,
            tracked(recipe, view, screen) as display,
        ):
            outcome = run(recipe, SweepOptions(resume=resume, display=display, logs=logs))
    except KeyboardInterrupt as interrupt:
        raise _interrupted(words, view) from interrupt
    if outcome.interrupted:
        _print_run(outcome.run)
        raise _interrupted(words, view)
    return outcome


def _compare(words: Sequence[str], sweep: SweepOutcome, resume: bool) -> None:
    """The best trial against the baselines that the recipe names, once the sweep is over."""
    from tlcore.report.worth import worth_lines
    from tlcore.sweep import baseline_recipe, run_sweep, was_begun

    if sweep.best is None or not sweep.complete:
        typer.echo("\nreport.baselines: not run, since the sweep did not end; a resume that ends it runs them")
        return
    recipe = baseline_recipe(sweep.recipe, sweep.best)
    typer.echo(
        f"\nnow {sweep.best.trial}'s settings again and as {', '.join(sweep.recipe.report.baselines)}, {recipe.name}:"
    )
    outcome = _run_live(words, recipe, run_sweep, resume and was_begun(recipe))
    typer.echo("")
    for line in worth_lines(outcome.state, recipe.search.metrics[0], recipe.search.modes[0]):
        typer.echo(line)
    if outcome.errors:
        typer.echo(f"tlcore: {len(outcome.errors)} of {len(outcome.trials)} of them failed", err=True)


def _run_without_ray(words: Sequence[str], recipe: Recipe, resume: bool) -> None:
    """The same in this process; of torchrun's ranks, rank 0 alone speaks."""
    import os

    from tlcore.engine.process import prepare_process
    from tlcore.report.live import live_view, open_display
    from tlcore.report.tensorboard import tracked
    from tlcore.report.usage import ended_by_budget
    from tlcore.storage import ensure_embedded

    ensure_embedded(recipe.storage)
    view = live_view(recipe, resume, trials=1)
    prepare_process(int(recipe.resources.cpus_per_worker))  # before torch is imported
    from tlcore.train.local import TRIAL, run_local

    if os.environ.get("RANK", "0") != "0":
        run_local(recipe, resume=resume)
        return
    try:
        with open_display(view) as screen, tracked(recipe, view, screen) as display:
            outcome = run_local(
                recipe,
                resume=resume,
                on_event=display.on_event,
                on_progress=lambda facts: display.on_progress({TRIAL: facts}),
            )
    except KeyboardInterrupt as interrupt:
        raise _interrupted(words, view) from interrupt
    if outcome.interrupted:
        _print_run(outcome.run)
        raise _interrupted(words, view)
    _print_run(outcome.run)
    if outcome.exhausted is not None:
        typer.echo(f"\n{ended_by_budget(words, outcome.exhausted.setting, outcome.exhausted.used)}")


def _print_run(run: RunRef) -> None:
    """The end of a run, read back from storage as `tlcore show` does."""
    from tlcore.report.runs import read_run, show_parts

    console = stdout_console()
    console.print()
    for part in show_parts(read_run(run), console):
        console.print(part, highlight=False)


def _interrupted(words: Sequence[str], view: SweepView) -> typer.Exit:
    """Say how to go on, if there is anything to go on with."""
    from tlcore.report.tables import resume_line

    typer.echo(resume_line(words) if view.rows() else "interrupted before the first trial", err=True)
    return typer.Exit(INTERRUPTED)


@app.command("list")
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


@app.command()
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
    from tlcore.remote.preflight import preflight, preflight_table

    report = preflight(storage, address)
    if as_json:
        print_json(report.to_dict())
    else:
        stdout_console().print(preflight_table(report))
        for problem in report.problems:
            typer.echo(problem)
    raise typer.Exit(report.exit_code)
