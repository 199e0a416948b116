"""What a sweep leaves for TensorBoard and MLflow, read by their own readers; and trackers that are slow, lost or not installed."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import record_writer

from tests.told_sweep import BEGAN, WHOLE, entry, recipe, result
from tlcore.errors import RequestError
from tlcore.report.tracking import displays, tracked
from tlcore.report.tracking.behind import Behind
from tlcore.report.tracking.curves import BoardLost, Curves
from tlcore.report.tracking.tensorboard import TensorBoard
from tlcore.report.view import SweepView

pytestmark = pytest.mark.unit


def feed(board: Curves, view: SweepView, *events: dict[str, Any]) -> None:
    for event in events:
        view.apply(event)
        board.on_event(event)


def board_in(directory: Path, *before: dict[str, Any]) -> tuple[Curves, SweepView]:
    view = SweepView("tiny", "eval_accuracy", "max", 1, before)
    return Curves(TensorBoard(directory), view), view


def scalars(directory: Path, trial: str = "t000") -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(directory / BEGAN / trial))
    read.Reload()
    return {tag: [(each.step, round(each.value, 4)) for each in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_reports_and_the_progress_between_them(tmp_path: Path) -> None:
    board, view = board_in(tmp_path)
    feed(board, view, *WHOLE[:2])
    for step, loss in ((1, 0.9), (3, 0.7), (2, 0.8)):  # a step that comes again, after a loss, is not written again
        board.on_progress({"t000": {"step": step, "loss": loss, "samples_per_s": None}, "t001": {"step": None}})
    feed(board, view, *WHOLE[2:])
    board.close()
    found = scalars(tmp_path)
    assert found["loss"] == [(1, 0.9), (3, 0.7), (4, 0.5), (8, 0.5)]
    assert found["eval_accuracy"] == [(4, 0.5), (8, 0.75)]
    assert "eval_loss" not in found, "what is not finite has no place in a curve"
    assert not (tmp_path / BEGAN / "t001").exists()


def test_progress_that_comes_after_the_end_is_left_out(tmp_path: Path) -> None:
    board, view = board_in(tmp_path)
    feed(board, view, *WHOLE)
    board.on_progress({"t000": {"step": 9, "loss": 0.1, "samples_per_s": None}})
    board.close()
    assert scalars(tmp_path)["loss"] == [(4, 0.5), (8, 0.5)]


def test_settings_stand_beside_the_last_figures(tmp_path: Path) -> None:
    board, view = board_in(tmp_path)
    feed(board, view, *WHOLE)
    read = EventAccumulator(str(tmp_path / BEGAN / "t000"))
    read.Reload()
    tags = read.summary_metadata
    content = b"".join(each.plugin_data.content for name, each in tags.items() if name.startswith("_hparams_"))
    for word in (b"train.learning_rate", b"transfer.strategy", b"head", b"eval_accuracy"):
        assert word in content


def test_a_resume_goes_on_in_the_same_directory(tmp_path: Path) -> None:
    board, view = board_in(tmp_path)
    feed(board, view, *WHOLE[:3])
    board.close()
    again, seen = board_in(tmp_path, *WHOLE[:3])
    feed(again, seen, *WHOLE[3:])
    assert scalars(tmp_path)["eval_accuracy"] == [(4, 0.5), (8, 0.75)]


def test_a_resume_elsewhere_begins_with_what_was_reported_before(tmp_path: Path) -> None:
    again, seen = board_in(tmp_path, *WHOLE)
    feed(again, seen, entry(5, "resumed", None, of=1))
    assert scalars(tmp_path)["eval_accuracy"] == [(4, 0.5), (8, 0.75)]


def nothing_to_say(sentence: str) -> None:
    raise AssertionError(sentence)


def test_nothing_is_written_where_it_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, view = board_in(tmp_path)
    plain, _ = board_in(tmp_path / "plain")
    with tracked(recipe(), view, plain, nothing_to_say) as display:
        assert display is plain
    with tracked(recipe(tensorboard=True), view, plain, nothing_to_say) as display:
        for event in WHOLE:
            view.apply(event)
            display.on_event(event)
    assert scalars(tmp_path / "runs" / "tiny" / "tensorboard")["eval_accuracy"] == [(4, 0.5), (8, 0.75)]
    assert (tmp_path / "plain" / BEGAN).exists(), "the display beside it is told the same"


def test_a_directory_that_cannot_be_written_is_said_before_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain, view = board_in(tmp_path / "plain")
    (tmp_path / "runs").write_text("no directory")
    with (
        pytest.raises(RequestError, match=r"track\.tensorboard: runs/tiny/tensorboard cannot be written") as caught,
        tracked(recipe(tensorboard=True), view, plain, nothing_to_say),
    ):
        raise AssertionError("it must not begin")
    assert caught.value.hint == "mend that, or set track.tensorboard to false"


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets tensorboardX open its files below `runs/` where no byte more can be written."""
    real, full = record_writer.open_file, Path("/dev/full")
    monkeypatch.setattr(
        record_writer, "open_file", lambda path: full.open("wb") if path.startswith("runs/") else real(path)
    )


def test_a_disk_that_takes_no_more_costs_the_curves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More reports than tensorboardX's own queue holds: once its thread had died of the disk, the driver waited for ever."""
    monkeypatch.chdir(tmp_path)
    plain, view = board_in(tmp_path / "plain")
    full_disk(monkeypatch)
    said = list[str]()
    with tracked(recipe(tensorboard=True), view, plain, said.append) as display:
        for event in [*WHOLE[:2], *(result(number, number, 0.5) for number in range(2, 40))]:
            view.apply(event)
            display.on_event(event)
    plain.close()
    lost = f"runs/tiny/tensorboard/{BEGAN} cannot be written (No space left on device)"
    assert said == [f"track.tensorboard: {lost}; the run in the store has every report"]
    assert len(scalars(tmp_path / "plain")["loss"]) == 38, "the display beside it is told all"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Gives MLflow's own client, over a database of this test's. Not imported here: whoever imports it first sets its log."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)

    def made() -> Any:
        from mlflow import MlflowClient

        return MlflowClient()

    return made


def tell_mlflow(before: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
    view = SweepView("tiny", "eval_accuracy", "max", 1, before)
    quiet, _ = board_in(Path("beside"))
    with tracked(recipe(mlflow="reviews"), view, quiet, nothing_to_say) as display:
        for event in events:
            view.apply(event)
            display.on_event(event)


def test_mlflow_gets_a_run_per_trial_and_a_resume_goes_on_with_it(
    client: Callable[[], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    tell_mlflow([], WHOLE[:3])
    assert capfd.readouterr() == ("", ""), "the terminal is the table's"
    experiment = client()
    [run] = experiment.search_runs([experiment.get_experiment_by_name("reviews").experiment_id])
    assert run.info.run_name == f"tiny/{BEGAN}/t000"
    assert run.data.params == {"train.learning_rate": "0.001", "transfer.strategy": "head"}
    assert run.info.status == "KILLED", "interrupted"
    tell_mlflow(WHOLE[:3], WHOLE[3:])
    [again] = experiment.search_runs([run.info.experiment_id])
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    points = experiment.get_metric_history(run.info.run_id, "eval_accuracy")
    assert [(point.step, point.value) for point in points] == [(4, 0.5), (8, 0.75)]
    assert "eval_loss" not in again.data.metrics


def test_mlflow_elsewhere_is_given_what_was_reported_before(client: Callable[[], Any]) -> None:
    failed = {**entry(4, "failed"), "error": "RuntimeError", "message": "boom"}
    tell_mlflow(WHOLE[:4], [failed])
    experiment = client()
    [run] = experiment.search_runs([experiment.get_experiment_by_name("reviews").experiment_id])
    points = experiment.get_metric_history(run.info.run_id, "eval_accuracy")
    assert [(point.step, point.value) for point in points] == [(4, 0.5), (8, 0.75)]
    assert run.info.status == "FAILED"


def test_an_mlflow_that_does_not_answer_is_said_before_the_sweep_and_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret-word@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    curves, view = board_in(tmp_path)
    with (
        pytest.raises(RequestError, match=r"track\.mlflow: MLflow does not take it") as caught,
        tracked(recipe(mlflow="reviews"), view, curves, nothing_to_say),
    ):
        raise AssertionError("it must not begin")
    assert "secret-word" not in "".join(traceback.format_exception(caught.value)), "nor with --debug"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_said(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(displays.importlib.util, "find_spec", lambda package: None)
    curves, view = board_in(tmp_path)
    with (
        pytest.raises(RequestError, match=rf"track\.{name}: the package {name} is not installed here") as caught,
        tracked(recipe(**{name: "reviews"}), view, curves, nothing_to_say),
    ):
        raise AssertionError("it must not begin")
    assert caught.value.hint is not None and "pip install 'tlcore[tracking]'" in caught.value.hint


class Slow:
    """A display that does nothing before it is let."""

    def __init__(self, lost: str | None = None) -> None:
        self.may_go_on, self.lost = threading.Event(), lost
        self.told: list[Any] = []

    def on_event(self, event: Any) -> None:
        self.may_go_on.wait()
        if self.lost is not None:
            raise BoardLost(self.lost)
        self.told.append(event)

    def on_progress(self, snapshot: Any) -> None:
        self.told.append(snapshot)

    def close(self) -> None:
        self.told.append("closed")


def test_the_driver_does_not_wait_for_a_slow_tracker() -> None:
    slow, said = Slow(), list[str]()
    behind = Behind(slow, "wandb", said.append)
    for event in WHOLE:
        behind.on_event(event)
    facts = {"step": 1}
    for _ in range(1000):
        behind.on_progress({"t000": facts})
    facts["step"] = 2
    assert not slow.told
    slow.may_go_on.set()
    behind.close()
    assert slow.told[: len(WHOLE)] == WHOLE
    progress = slow.told[len(WHOLE) : -1]
    assert 0 < len(progress) < 100, "of progress that waits too long, there is more to come"
    assert all(each == {"t000": {"step": 1}} for each in progress), "as it was when it was told"
    assert slow.told[-1] == "closed"
    assert not said


def test_what_a_tracker_loses_is_said_once_and_ends_nothing() -> None:
    lost, said = Slow("wandb does not take it (CommError)"), list[str]()
    behind = Behind(lost, "wandb", said.append)
    lost.may_go_on.set()
    for event in WHOLE:
        behind.on_event(event)
    behind.close()
    assert said == ["track.wandb: wandb does not take it (CommError); the run in the store has every report"]
    assert not lost.told


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_tracker_that_ends_by_an_error_of_its_own_is_said() -> None:
    class Broken(Slow):
        def on_event(self, event: Any) -> None:
            raise KeyError("unforeseen")

    said = list[str]()
    behind = Behind(Broken(), "wandb", said.append)
    behind.on_event(WHOLE[0])
    behind.close()
    assert said == ["track.wandb: it ended by an error of its own; the run in the store has every report"]


def test_what_comes_too_late_is_said() -> None:
    slow, said = Slow(), list[str]()
    behind = Behind(slow, "mlflow", said.append, close_s=0.01)
    behind.on_event(WHOLE[0])
    behind.close()
    slow.may_go_on.set()
    assert said == [
        "track.mlflow: the last reports were not taken within 0.01 s; the run in the store has every report"
    ]
