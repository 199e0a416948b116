"""What a sweep leaves for TensorBoard, read by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tlcore.recipe import recipe_from_dict
from tlcore.report.tensorboard import TensorBoard, tracked
from tlcore.report.view import SweepView

pytestmark = pytest.mark.unit

BEGAN = "20260102-030405"
POINT = {"train.learning_rate": 1e-3, "transfer.strategy": "head"}


def entry(number: int, kind: str, trial: str | None = "t000", **facts: Any) -> dict[str, Any]:
    return {"number": number, "time": f"2026-01-02T03:04:{5 + number:02d}+00:00", "kind": kind, "trial": trial, **facts}


def result(number: int, step: int, accuracy: float) -> dict[str, Any]:
    metrics = {"eval_accuracy": accuracy, "eval_loss": float("nan")}
    facts = {
        "fraction": step / 8,
        "step": step,
        "metrics": metrics,
        "checkpoint_step": step,
        "loss": 0.5,
        "samples_per_s": 90.0,
    }
    return entry(number, "result", **facts)


SUGGESTED = entry(0, "suggested", point=POINT, of=1)
WHOLE = [
    SUGGESTED,
    entry(1, "started", slot="s", workers=1),
    result(2, 4, 0.5),
    result(3, 8, 0.75),
    entry(4, "completed"),
]


def feed(board: TensorBoard, view: SweepView, *events: dict[str, Any]) -> None:
    for event in events:
        view.apply(event)
        board.on_event(event)


def board_in(directory: Path, *before: dict[str, Any]) -> tuple[TensorBoard, SweepView]:
    view = SweepView("tiny", "eval_accuracy", "max", 1, before)
    return TensorBoard(directory, view), view


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


def test_nothing_is_written_where_it_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any] = {
        "name": "tiny",
        "task": "text-classification",
        "model": {"source": "here"},
        "data": {"train": "train.csv"},
        "storage": "store",
    }
    _, view = board_in(tmp_path)
    plain, _ = board_in(tmp_path / "plain")
    with tracked(recipe_from_dict(settings), view, plain) as display:
        assert display is plain
    with tracked(recipe_from_dict({**settings, "track": {"tensorboard": True}}), view, plain) as display:
        for event in WHOLE:
            view.apply(event)
            display.on_event(event)
    assert scalars(tmp_path / "runs" / "tiny" / "tensorboard")["eval_accuracy"] == [(4, 0.5), (8, 0.75)]
    assert (tmp_path / "plain" / BEGAN).exists(), "the display beside it is told the same"
