"""What a process keeps of pictures, of places and of masks, for the next epoch and the next trial."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.families import images
from tlcore.recipe import recipe_from_dict
from tlcore.tasks import Task, build_task
from tlcore.tasks import images as pictures
from tlcore.tasks.recent import Held, Recent

pytestmark = pytest.mark.unit


def task_of(made: tuple[Path, dict[str, Any]], name: str, seed: int = 0, **changes: Any) -> Task:
    home, sections = made
    recipe = {
        "name": "tiny",
        "task": name.partition("/")[2],
        "model": sections["model"],
        "data": {**sections["data"], **changes},
        "train": {**sections.get("train", {}), "seed": seed},
        "storage": str(home / "store"),
    }
    return build_task(recipe_from_dict(recipe))


def test_what_is_held_stays_within_its_bound() -> None:
    held: Held[bytes] = Held(10, len, groups=2)
    made: list[int] = []

    def make(numbers: Any) -> list[bytes]:
        made.extend(numbers)
        return [bytes([number]) * 4 for number in numbers]

    assert held.get("a", [1, 2, 3, 1], make) == [b"\1" * 4, b"\2" * 4, b"\3" * 4, b"\1" * 4]
    held.get("a", [1, 2, 3], make)
    assert made == [1, 2, 3, 3], "two fit"
    held.get("b", [1], make)
    held.get("c", [1, 2], make)  # a is gone, and its bytes with it
    made.clear()
    held.get("c", [1, 2], make)
    assert made == []


def test_the_groups_of_a_trial_stay_and_older_ones_make_room() -> None:
    held: Held[bytes] = Held(30, len)
    made: list[Any] = []

    def asked(group: str, count: int = 2) -> None:
        held.get(
            group, range(count), lambda numbers: made.extend((group, at) for at in numbers) or [b"1234"] * len(numbers)
        )

    for group in ("before", "train", "validation", "test"):
        asked(group)
    made.clear()
    for group in ("train", "validation", "train", "test"):
        asked(group)
    assert made == []
    asked("before")
    assert made == [("before", 0), ("before", 1)], "gone for the test samples, whose bytes did not fit beside it"


def test_pictures_of_training_stay_decoded_while_others_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda content, name: read.append(name) or real(content, name))
    made = (tmp_path, images.yolos(tmp_path))
    (tmp_path / "own").mkdir()
    task = task_of(made, "yolos/object-detection", validation=images.boxed_pictures(tmp_path / "own"))
    task.load_data()
    for _ in range(3):
        for split in ("train", "validation"):
            assert task.collate(split, range(4))["scale"].tolist() == [48] * 4
    assert len(read) == 8, "each of them once, whatever is asked of it"


COUNTED = {
    "labelled_media/read_labelled": "resnet/image-classification",
    "object_detection/read_boxes": "yolos/object-detection",
    "image_segmentation/read_media": "segformer/image-segmentation",
    "masks/_find_largest": "segformer/image-segmentation",
}


@pytest.mark.parametrize("reader", COUNTED)
def test_the_next_trial_of_a_process_does_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    place, _, function = reader.partition("/")
    module = importlib.import_module(f"tlcore.tasks.{place}")
    remembered = "_largest" if place == "masks" else "_read"
    monkeypatch.setattr(module, remembered, Recent(4))
    calls: list[int] = []
    real = getattr(module, function)
    monkeypatch.setattr(module, function, lambda *given, **more: calls.append(1) or real(*given, **more))
    name = COUNTED[reader]
    made = (tmp_path, images.MAKERS[name](tmp_path))
    counts = task_of(made, name).load_data()
    assert task_of(made, name, seed=4).load_data() == counts
    assert len(calls) == 1
    if place == "masks":
        return
    rows = tmp_path / "rows.jsonl"
    if rows.exists():
        rows.write_text(rows.read_text() + rows.read_text().splitlines()[0] + "\n")
    else:
        images.picture(1, 0).save(tmp_path / "pictures/first/added.png")
    assert sum(task_of(made, name).load_data().values()) == sum(counts.values()) + 1
    assert len(calls) == 2
