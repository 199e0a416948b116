"""What a sweep leaves for Weights & Biases without a server: runs on disk, written by wandb's own process."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.told_sweep import BEGAN, POINT, WHOLE, recipe
from tlcore.errors import RequestError
from tlcore.report.tracking import tracked
from tlcore.report.tracking.curves import Curves
from tlcore.report.tracking.tensorboard import TensorBoard
from tlcore.report.view import SweepView

pytestmark = pytest.mark.integration


def tell(before: list[dict[str, Any]], events: list[dict[str, Any]], place: Path) -> None:
    view = SweepView("tiny", "eval_accuracy", "max", 1, before)
    said: list[str] = []
    with tracked(recipe(wandb="reviews"), view, Curves(TensorBoard(place / "beside"), view), said.append) as display:
        for event in events:
            view.apply(event)
            display.on_event(event)
            display.on_progress({"t000": {"step": event.get("step", 0) + 1, "loss": 0.7, "samples_per_s": None}})
    assert not said


def records(file: Path) -> Iterator[Any]:
    """wandb's file: seven bytes, then blocks of LevelDB's log format that hold protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def runs(place: Path) -> list[dict[str, Any]]:
    """Each run on disk, in the order in which they were made: its facts, and its points by name."""
    found = []
    for file in sorted(place.glob("runs/tiny/wandb/offline-run-*/*.wandb")):
        run: dict[str, Any] = {"points": {}}
        for record in records(file):
            match record.WhichOneof("record_type"):
                case "run":
                    about = record.run
                    run |= {"id": about.run_id, "group": about.run_group, "name": about.display_name}
                    run["project"] = about.project
                    run["config"] = {each.key: each.value_json for each in about.config.update if each.key in POINT}
                case "history":
                    for item in record.history.item:
                        name = item.key or ".".join(item.nested_key)
                        run["points"].setdefault(name, []).append((record.history.step.num, float(item.value_json)))
                case "exit":
                    run["exit"] = record.exit.exit_code
        found.append(run)
    return found


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_trial_is_a_run_and_a_resume_goes_on_with_it(offline: Path) -> None:
    tell([], WHOLE[:3], offline)
    tell(WHOLE[:3], WHOLE[3:], offline)
    first, second = runs(offline)
    for run in (first, second):
        assert (run["project"], run["group"], run["name"]) == ("reviews", f"tiny/{BEGAN}", "t000")
        assert run["config"] == {"train.learning_rate": "0.001", "transfer.strategy": '"head"'}
    assert first["id"] == second["id"]
    assert first["points"]["eval_accuracy"] == [(4, 0.5)]
    assert second["points"]["eval_accuracy"] == [(8, 0.75)]
    assert (first["exit"], second["exit"]) == (255, 0)


def test_elsewhere_it_is_given_what_was_reported_before(offline: Path) -> None:
    tell(WHOLE[:4], WHOLE[4:], offline)
    [run] = runs(offline)
    assert run["points"]["eval_accuracy"] == [(4, 0.5), (8, 0.75)]


def test_without_a_key_it_is_said_before_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    view = SweepView("tiny", "eval_accuracy", "max", 1)
    with (
        pytest.raises(RequestError, match=r"track\.wandb: no API key") as caught,
        tracked(recipe(wandb="reviews"), view, Curves(TensorBoard(tmp_path), view), print),
    ):
        raise AssertionError("it must not begin")
    assert caught.value.hint == "mend that, or set track.wandb to null"
