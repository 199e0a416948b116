"""Object detection: boxes from tables and COCO files, in the square that the model sees and back, and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.families import images, own
from tlcore.errors import DataError, ModelError, RecipeError
from tlcore.recipe import recipe_from_dict
from tlcore.tasks import Task, build_task
from tlcore.tasks.base import IGNORED
from tlcore.tasks.detection_images import vary
from tlcore.tasks.detectors import Detr, detector_of

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("boxes")
    images.yolos(directory)
    return directory


def task_of(home: Path, **data: Any) -> Task:
    return build_task(
        recipe_from_dict(
            {
                "name": "tiny",
                "task": "object-detection",
                "model": {"source": str(home / "model")},
                "data": {"train": str(home / "rows.jsonl"), **data},
                "storage": str(home / "store"),
            }
        )
    )


def coco(folder: Path, **changes: Any) -> Path:
    """A COCO file in the layout of COCO itself, of two pictures of 40 x 20 pixels."""
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 20), "green").save(folder / "val2017" / name)
    found = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [
            {"image_id": 3, "category_id": 1, "bbox": [10, 5, 20, 10], "iscrowd": 0},
            {"image_id": 3, "category_id": 18, "bbox": [0, 0, 40, 20], "iscrowd": 1},
        ],
        **changes,
    }
    place = folder / "annotations/instances_val2017.json"
    place.write_text(json.dumps(found))
    return place


def test_coco_files_are_read_with_pictures_where_coco_has_them(home: Path, tmp_path: Path) -> None:
    task = task_of(
        home,
        train=str(coco(tmp_path)),
        validation=0.5,
        test=str(home / "rows.jsonl"),
        labels=["cat", "dog", "red", "blue"],
    )
    task.check_data()
    assert task.load_data() == {"train": 1, "validation": 1}
    for split in ("train", "validation"):
        batch = task.collate(split, [0])
        if batch["labels"].shape[1]:
            assert batch["labels"].tolist() == [[0, IGNORED]]
            assert batch["crowds"].tolist() == [[0, 2]]
            # The square's side is the longer one's: 40 pixels. The picture fills its upper half.
            torch.testing.assert_close(batch["boxes"][0, 0], torch.tensor([20 / 40, 10 / 40, 20 / 40, 10 / 40]))
            assert batch["scale"].item() == 40
            assert batch["pixel_mask"].float().mean().item() == 0.5


def test_one_kind_of_object_is_enough(home: Path, tmp_path: Path) -> None:
    row = {"image": str(home / "0.png"), "objects": {"bbox": [[1, 2, 3, 4]], "category": ["pin"]}}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    task = task_of(home, train=str(tmp_path / "rows.jsonl"), validation=0.5)
    task.load_data()
    assert task.facts() == {"labels": ["pin"]}
    assert task_of(home, train=str(tmp_path / "rows.jsonl"), validation=0.5, labels=["pin"]).load_data()


def test_boxes_go_where_the_picture_goes() -> None:
    for seed in range(20):
        pixels = torch.zeros(3, 40, 60, dtype=torch.uint8)
        pixels[0, 10:26, 20:44] = 255
        draws = torch.Generator().manual_seed(seed)
        varied, boxes, left = vary(pixels, torch.tensor([[20.0, 10.0, 24.0, 16.0]]), draws)
        assert varied.shape == pixels.shape
        if left[0] and boxes[0, 2] > 4 and boxes[0, 3] > 4:
            rows, columns = (varied[0] > 127).nonzero().T
            seen = [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]
            np.testing.assert_allclose(boxes[0].numpy(), [int(each) for each in seen], atol=2.5)


def test_a_perfect_detector_finds_all(home: Path) -> None:
    """The way from the table to the square and back to pixels is the same for what there is and what is found."""
    from tlcore.tasks.detection_metrics import BoxCounts
    from tlcore.tasks.detectors import best_boxes

    task: Any = task_of(home)
    counts = task.load_data()
    split = "validation"
    batch = task.collate(split, range(counts[split]))

    def perfect(model: Any, batch: dict[str, torch.Tensor]) -> Any:
        logits = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 3).float() * 9
        logits[batch["labels"] == IGNORED] = torch.tensor([0.0, 0.0, 9.0])
        return best_boxes(logits, batch["boxes"]), batch["weights"]

    judged = BoxCounts(("blue", "red"), 2, perfect)
    judged.update(torch.nn.Identity(), batch)
    judged.merge(lambda tensor: tensor)
    assert judged.compute() == pytest.approx({"map": 1.0, "map_50": 1.0, "loss": 1.0})
    first = judged._whole[:, 2:8]
    rows = task._splits[split].rows
    assert judged._whole.shape[0] == len(rows)
    boxes = [
        task._splits[split].read.objects[row].boxes[0]
        for row in rows
        if len(task._splits[split].read.objects[row].boxes)
    ]
    assert any(
        np.allclose(first[0, :4].numpy(), box, atol=1e-3)
        for box in np.concatenate([boxes, *[o.boxes for o in task._splits[split].read.objects]])
    )


BAD = {
    "no form": ({"objects": [1, 2]}, r"row 1, column 'objects' is not of the form \{bbox"),
    "lengths": ({"objects": {"bbox": [[1, 2, 3, 4]], "category": []}}, "has 1 boxes and 0 categories"),
    "three numbers": (
        {"objects": {"bbox": [[1, 2, 4]], "category": ["a"]}},
        r"row 1, column 'objects': box \[1, 2, 4\] is not x, y, width, height",
    ),
    "no number": (
        {"objects": {"bbox": [[1, 2, None, 4]], "category": ["a"]}},
        r"box \[1, 2, None, 4\] is not x, y, width, height",
    ),
    "no width": (
        {"objects": {"bbox": [[1, 2, 0, 4], [1, 2, 3, -4]], "category": ["a", "b"]}},
        "none of its 2 boxes has a width and height above 0",
    ),
    "no boxes": ({"objects": {"bbox": [], "category": []}}, "has no box in it"),
}


@pytest.mark.parametrize("case", BAD)
def test_boxes_that_are_none_are_said(home: Path, tmp_path: Path, case: str) -> None:
    row, message = BAD[case]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": str(home / "0.png"), **row}) + "\n")
    with pytest.raises(DataError, match=message):
        task_of(home, train=str(tmp_path / "rows.jsonl")).check_data()


def test_coco_files_that_are_not_whole_are_said(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no whole COCO file: KeyError"):
        task_of(
            home,
            train=str(coco(tmp_path / "a", annotations=[{"image_id": 99, "bbox": [1, 1, 1, 1], "category_id": 1}])),
        ).check_data()
    with pytest.raises(DataError, match="has no images"):
        task_of(home, train=str(coco(tmp_path / "b", images=[], annotations=[]))).check_data()
    with pytest.raises(DataError, match=r"its first picture 'c\.png' is nowhere"):
        lost = [{"id": 7, "file_name": "c.png"}, {"id": 3, "file_name": "b.png"}]
        task_of(home, train=str(coco(tmp_path / "c", images=lost))).check_data()


def test_boxes_without_area_are_left_out_which_is_said_once(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flat = [
        {"image_id": 3, "category_id": 18, "bbox": [10, 5, 20, 0], "iscrowd": 0},  # as two of COCO's train2017
        {"image_id": 3, "category_id": 1, "bbox": [10, 5, 20, 10], "iscrowd": 0},
        {"image_id": 7, "category_id": 1, "bbox": [10, 5, 0, 10], "iscrowd": 0},
    ]
    place = str(coco(tmp_path, annotations=flat))
    for _ in range(2):
        task = task_of(home, train=place, validation=str(home / "rows.jsonl"), labels=["cat", "dog", "red", "blue"])
        task.check_data()
        task.load_data()
        batch = task.collate("train", [0, 1])
    assert batch["labels"].tolist() == [[IGNORED], [0]]
    torch.testing.assert_close(batch["boxes"][1, 0], torch.tensor([20 / 40, 10 / 40, 20 / 40, 10 / 40]))
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert said == [f"2 of 3 boxes of {place} have no width or height above 0 and were left out"]
    row = {"image": str(home / "0.png"), "objects": {"bbox": [[1, 2, 3, 0], [1, 2, 3, 4]], "category": ["a", "b"]}}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    table = task_of(home, train=str(tmp_path / "rows.jsonl"), validation=0.5)
    table.load_data()
    assert table.facts() == {"labels": ["b"]}


@pytest.fixture(scope="module")
def yolox_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("yolox")
    own.yolox(directory)
    return directory


def background(home: Path, folder: Path, pictures: int) -> str:
    """A table of the first pictures of `home`'s, every second without its objects."""
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()[:pictures]]
    for number, row in enumerate(rows):
        row["image"] = str(home / row["image"])
        if number % 2:
            row["objects"] = {"bbox": [], "category": []}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def test_a_yolox_batch_costs_the_same_however_it_is_cut_and_nobody_outweighs_the_others(
    yolox_home: Path, tmp_path: Path
) -> None:
    task: Any = task_of(yolox_home, train=background(yolox_home, tmp_path, 12), augment=False)
    count = task.load_data()["train"]
    model: Any = task.build_model(from_scratch=False).eval()
    batch, weights = task.collate("train", range(count)), task.weights("train")
    objects = (batch["labels"] != IGNORED).sum(dim=1)
    assert (objects == 0).sum() >= 3 and weights.tolist() == objects.clamp(min=1).tolist()
    sums = task._detector.run(model, batch)[1]
    assert sums[objects == 0].max() < sums[objects > 0].min()
    whole = task.loss(model, batch).item()
    assert whole == pytest.approx((sums.sum() / weights.sum()).item())
    for size in (1, 3):  # as the stepper weighs micro-batches
        parts = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
        pieces = [task.loss(model, task.collate("train", part)).item() * weights[part].sum() for part in parts]
        assert sum(pieces) / weights.sum() == pytest.approx(whole, rel=1e-4)
    assert task.loss(model, task.collate("train", [])).item() == 0


def test_yolox_is_evaluated_by_the_loss_that_it_is_trained_on(yolox_home: Path, tmp_path: Path) -> None:
    place = background(yolox_home, tmp_path, 12)
    (tmp_path / "again.jsonl").write_text(Path(place).read_text())
    task: Any = task_of(yolox_home, train=place, validation=str(tmp_path / "again.jsonl"), augment=False)
    counts = task.load_data()
    model: Any = task.build_model(from_scratch=False).eval()
    judged = task.metrics()
    for start in range(0, counts["validation"], 5):
        judged.update(model, task.collate("validation", range(start, min(start + 5, counts["validation"]))))
    judged.merge(lambda tensor: tensor)
    whole = task.loss(model, task.collate("train", range(counts["train"]))).item()
    assert judged.compute()["loss"] == pytest.approx(whole, rel=1e-4)


def test_crowds_and_crops_change_nothing_in_a_picture_s_weight(home: Path, yolox_home: Path, tmp_path: Path) -> None:
    place = str(coco(tmp_path))
    labels = ["cat", "dog"]
    yolox: Any = task_of(
        yolox_home, train=place, validation=str(yolox_home / "rows.jsonl"), labels=[*labels, "red", "blue"]
    )
    yolox.load_data(("train",))
    assert yolox.weights("train").tolist() == [1, 1]  # one without objects; one with an object and a crowd
    varied: Any = task_of(yolox_home)
    varied.load_data()
    for seed in range(4):
        batch = varied.collate("train", range(8), torch.Generator().manual_seed(seed))
        assert batch["weights"].tolist() == varied.weights("train")[:8].tolist()
    detr: Any = task_of(home)
    detr.load_data()
    assert set(detr.weights("train")) == {1.0}


def test_what_yolox_finds_is_boxes_of_the_square_with_class_and_score(yolox_home: Path) -> None:
    task: Any = task_of(yolox_home)
    model: Any = task.build_model(from_scratch=False).eval()
    for head in model.head:  # a new head says so rarely that there is anything that no box would count
        torch.nn.init.constant_(head.objectness.bias, 1.0)
        torch.nn.init.constant_(head.classes.bias, 0.0)
    seen = model(task.collate("train", range(2))["pixel_values"])
    found = task._detector.find(model, task.collate("train", range(2)))
    assert found.shape == (2, 100, 6)
    kept = model.post_process_object_detection(seen, 1e-3)
    for row, one in zip(found, kept, strict=True):
        there = row[row[:, 4] != IGNORED]
        count = min(100, len(one["scores"]))
        assert len(there) == count > 0
        torch.testing.assert_close(there[:, 5], one["scores"][:count])
        torch.testing.assert_close(there[:, :2] + there[:, 2:4], one["boxes"][:count, 2:])
    answers = task.predict(model, [str(yolox_home / "0.png")])
    assert set(answers[0]) == {"objects"}


def test_a_side_that_yolox_cannot_take_is_refused_before_workers_start(yolox_home: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.image_size: pictures of 50 pixels, .* multiples of 32, such as 64"):
        task_of(yolox_home, image_size=50).check_data()


def test_an_estimate_of_yolox_needs_no_data(yolox_home: Path) -> None:
    from tlcore.engine.activations import nothing_allocated

    with nothing_allocated():
        task = task_of(yolox_home, labels=["blue", "red"])
        model = task.build_model(from_scratch=True)
        task.loss(model, task.largest_batch(2)).backward()


@pytest.mark.parametrize("kind", ["RTDetr", "RTDetrV2", "DFine", "DeformableDetr", "ConditionalDetr"])
def test_a_detector_of_another_kind_is_refused_before_workers_start(home: Path, tmp_path: Path, kind: str) -> None:
    getattr(transformers, f"{kind}Config")().save_pretrained(tmp_path / "model")
    transformers.DetrImageProcessor().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=r"(?s)is no detector .* type detr, yolos, table-transformer, tlcore-yolox"):
        task_of(tmp_path, train=str(home / "rows.jsonl")).check_data()


def test_a_table_transformer_is_of_the_detr_kind() -> None:
    assert isinstance(detector_of(transformers.TableTransformerConfig()), Detr)
