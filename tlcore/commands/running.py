"""`tlcore sweep` and `tlcore train`: a run in this terminal, from the recipe to what is said at its end.

Owns these commands, the order in which their rooms are called, and what an interrupt leaves on the terminal. Called by `cli.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tlcore.commands.options import (
    INTERRUPTED,
    Gpus,
    Name,
    RecipeFile,
    Resume,
    RunStorage,
    Settings,
    Workers,
    overrides,
    stdout_console,
)

if TYPE_CHECKING:
    from tlcore.recipe import Recipe
    from tlcore.report.tracking.curves import Shown
    from tlcore.report.view import SweepView
    from tlcore.storage import RunRef
    from tlcore.sweep import Finals, SweepOptions, SweepOutcome
    from tlcore.train.local import LocalOutcome

JOB_VARIABLE: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's job server for every job that it runs, whoever submitted it."""


def add_to(app: typer.Typer) -> None:
    """Put the commands on the application."""
    app.command()(sweep)
    app.command()(train)


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
    recipe = _recipe(recipe_file, settings, name, storage, workers, gpus)
    from tlcore.sweep import run_sweep

    outcome = _run_on_ray(context.obj, recipe, run_sweep, resume)
    if outcome.recipe.report.baselines:
        _compare(context.obj, outcome, resume)


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
    recipe = _recipe(recipe_file, settings, name, storage, workers, gpus)
    if local:
        _run_without_ray(context.obj, recipe, resume)
        return
    from tlcore.sweep import run_train

    _run_on_ray(context.obj, recipe, run_train, resume, trials=1)


def _recipe(file: str, settings: Settings, name: Name, storage: RunStorage, workers: Workers, gpus: Gpus) -> Recipe:
    """The recipe as the command line leaves it; a fault is told before anything heavy is imported."""
    from tlcore.recipe import load_recipe

    changes = overrides(
        settings, name=name, storage=storage, resources__workers=workers, resources__gpus_per_worker=gpus
    )
    return load_recipe(file, changes)


def _run_on_ray(
    words: Sequence[str],
    recipe: Recipe,
    run: Callable[[Recipe, SweepOptions], SweepOutcome],
    resume: bool,
    trials: int | None = None,
) -> SweepOutcome:
    """Run with a live display, then say what came of it."""
    outcome = _run_live(words, recipe, run, resume, trials)
    _finish(words, outcome)
    if outcome.errors:
        failed, trials = len(outcome.errors), len(outcome.trials)
        typer.echo(f"tlcore: {failed} of {trials} trials failed: {', '.join(outcome.errors)}", err=True)
        if failed == trials:
            raise typer.Exit(1)
    if outcome.untested is not None:
        raise outcome.untested
    return outcome


def _finish(words: Sequence[str], outcome: SweepOutcome) -> None:
    """The end of every run, with Ray and without: the best model as files, its figures on the test examples, the table."""
    from tlcore.report.usage import ended_by_budget
    from tlcore.sweep import finish_sweep

    # a job's working directory is Ray's copy of what was uploaded, which goes with the job
    destination = None if JOB_VARIABLE in os.environ else Path("runs") / outcome.recipe.name / "best"
    try:
        finals = finish_sweep(outcome, destination)
    finally:  # what the trials came to took hours, and is said whatever the disk has against the rest
        _print_run(outcome.run)
        if outcome.exhausted is not None:
            typer.echo(f"\n{ended_by_budget(words, outcome.exhausted.setting, outcome.exhausted.used)}")
    _print_finals(outcome, finals)


def _print_finals(outcome: SweepOutcome, finals: Finals | None) -> None:
    """Where the best model is, what it answers, and why there are no test figures yet."""
    from tlcore.report.tables import chosen_words, prediction_lines

    if finals is not None:
        again = f"as files: tlcore export {finals.checkpoint} DIR"
        typer.echo(f"\nbest model {f'exported to {finals.exported}' if finals.exported else again}")
        if said := chosen_words(finals.step, finals.last_step):
            typer.echo(f"  {said}")
        for line in prediction_lines(finals.examples):
            typer.echo(line)
    if outcome.recipe.data.test is not None and not outcome.complete:
        typer.echo("\ndata.test: not touched, since the sweep did not end; a resume that ends it does")


def _run_live(
    words: Sequence[str],
    recipe: Recipe,
    run: Callable[[Recipe, SweepOptions], SweepOutcome],
    resume: bool,
    trials: int | None = None,
) -> SweepOutcome:
    """Run with a live display. Exits where it was interrupted."""
    from datetime import UTC, datetime

    from tlcore.report.live import live_view
    from tlcore.storage import ensure_embedded
    from tlcore.sweep import SweepOptions, log_directory

    logs = log_directory(recipe.name, datetime.now(UTC))
    ensure_embedded(recipe.storage)
    view = live_view(recipe, resume, trials)
    try:
        with _shown(recipe, view, logs=f"{logs}/ (driver.log, ray/)") as display:
            outcome = run(recipe, SweepOptions(resume=resume, display=display, logs=logs))
    except KeyboardInterrupt as interrupt:
        raise _interrupted(words, view) from interrupt
    if outcome.interrupted:
        _print_run(outcome.run)
        raise _interrupted(words, view)
    return outcome


@contextmanager
def _shown(recipe: Recipe, view: SweepView, logs: str = "") -> Iterator[Shown]:
    """The live display and the trackers beside it. What those lost is said once the table is gone."""
    from tlcore.report.live import open_display
    from tlcore.report.tracking import tracked

    lost: list[str] = []
    try:
        with open_display(view, logs=logs) as screen, tracked(recipe, view, screen, lost.append) as display:
            yield display
    finally:
        for sentence in lost:
            typer.echo(f"tlcore: {sentence}", err=True)


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
    """The same in this process; of torchrun's ranks, rank 0 alone speaks, and exports once the others have gone."""
    from tlcore.engine.process import prepare_process
    from tlcore.report.live import live_view
    from tlcore.storage import ensure_embedded

    ensure_embedded(recipe.storage)
    view = live_view(recipe, resume, trials=1)
    prepare_process(int(recipe.resources.cpus_per_worker))  # before torch is imported
    from tlcore.train.local import TRIAL, run_local

    if os.environ.get("RANK", "0") != "0":
        run_local(recipe, resume=resume)
        return
    try:
        with _shown(recipe, view) as display:
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
    _finish(words, _as_sweep(recipe, outcome))
    if outcome.untested is not None:
        raise outcome.untested


def _as_sweep(recipe: Recipe, outcome: LocalOutcome) -> SweepOutcome:
    """A run without Ray as the sweep of one trial that it is in the store."""
    from tlcore.storage.journal import SweepState, read_journal
    from tlcore.sweep import SweepOutcome

    state = SweepState.from_entries(read_journal(outcome.run.open()))
    best = state.best(recipe.search.metric, recipe.search.mode)
    ended = outcome.interrupted, outcome.exhausted, outcome.untested
    return SweepOutcome(outcome.run, recipe, state, best, Path(), *ended)


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
