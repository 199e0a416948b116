"""Classes that a data set numbers and names itself (`ClassLabel`), and numbers that nothing names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_tasks_text_generation import task_of
from tiny_text_model import save_tiny_bert, tiny_recipe, write_rows

from tests.families import images
from tlcore.data import class_names, read_split
from tlcore.errors import DataError
from tlcore.recipe import recipe_from_dict
from tlcore.tasks import Task, build_task

pytestmark = pytest.mark.unit

TAGS = ["O", "B-MOOD", "I-MOOD"]
TOKENS = "bert/token-classification"


def save(path: Path, columns: dict[str, list[Any]], features: dict[str, Any]) -> str:
    """A parquet file as `datasets` writes it."""
    import datasets

    kinds = {name: features.get(name, datasets.Value("string")) for name in columns}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(str(path))
    return str(path)


def reviews(path: Path, labels: list[Any], names: list[str], *, many: bool = False) -> str:
    import datasets

    kind = datasets.ClassLabel(names=names)
    texts = [f"{'good' if number % 2 else 'bad'} film" for number in range(len(labels))]
    return save(path, {"text": texts, "label": labels}, {"label": datasets.List(kind) if many else kind})


def words(path: Path, tags: list[list[int]], named: bool) -> str:
    import datasets

    kind = datasets.ClassLabel(names=TAGS) if named else datasets.Value("int64")
    features = {"tokens": datasets.List(datasets.Value("string")), "label": datasets.List(kind)}
    return save(path, {"tokens": [["good", "film"][: len(each)] for each in tags], "label": tags}, features)


def copy_of(place: str) -> str:
    return str(shutil.copy(place, place.replace("train", "test")))


def of_pictures(home: Path, task: str, train: str) -> Task:
    return build_task(
        recipe_from_dict(
            {
                "name": "tiny",
                "task": task,
                "model": {"source": str(home / "model")},
                "data": {"train": train, "test": copy_of(train), "validation": 0.5},
                "storage": str(home / "store"),
            }
        )
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    save_tiny_bert(directory / "model")
    return directory


def test_classes_are_those_of_the_data_set_in_its_order(home: Path, tmp_path: Path) -> None:
    train = reviews(tmp_path / "train.parquet", [0, 1] * 10, ["worse", "better", "never seen"])
    task = build_task(tiny_recipe(home, data__train=train, data__test=copy_of(train)))
    task.check_data()
    task.load_data(("train", "test"))
    assert task.facts() == {"labels": ["worse", "better", "never seen"], "numbered": True}
    model = task.build_model(from_scratch=True)
    assert model.config.id2label == {0: "worse", 1: "better", 2: "never seen"}
    assert task.collate("test", [0, 1, 2])["labels"].tolist() == [0, 1, 0]
    assert task.predict(model, ["good film"])[0]["label"] in ("worse", "better", "never seen")
    assert task.examples("test", 2) == [("bad film", "worse"), ("good film", "better")]


def test_several_classes_of_a_text_are_named_too(home: Path, tmp_path: Path) -> None:
    train = reviews(tmp_path / "train.parquet", [[0, 2], [], [1], [2]] * 5, ["sad", "calm", "glad"], many=True)
    task = build_task(tiny_recipe(home, data__train=train, data__test=copy_of(train), data__multi_label=True))
    task.load_data(("train", "test"))
    assert task.facts()["labels"] == ["sad", "calm", "glad"]
    assert task.collate("test", [0, 1])["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]
    assert task.examples("test", 1) == [("bad film", ["sad", "glad"])]


def test_the_recipes_names_go_before_the_data_sets(home: Path, tmp_path: Path) -> None:
    train = reviews(tmp_path / "train.parquet", [0, 1] * 10, ["neg", "pos"])
    task = build_task(
        tiny_recipe(home, data__train=train, data__test=copy_of(train), data__labels=["unhappy", "happy"])
    )
    task.load_data(("train", "test"))
    assert task.facts() == {"labels": ["unhappy", "happy"]}
    assert task.collate("test", [0, 1])["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        (["pos", "neg"], None, [1, 0]),
        ([0, 1], None, [0, 1]),
        ([0, 1], ["pos", "neg"], [1, 0]),
    ],
    ids=["by name", "by the training data's number", "by its own number"],
)
def test_other_places_may_write_the_classes_otherwise(
    home: Path, tmp_path: Path, labels: list[Any], names: list[str] | None, classes: list[int]
) -> None:
    train = reviews(tmp_path / "train.parquet", [0, 1] * 10, ["neg", "pos"])
    if names is None:
        rows = [{"text": "good film", "label": label} for label in labels]
        test = str(write_rows(tmp_path / "test.jsonl", rows))
    else:
        test = reviews(tmp_path / "test.parquet", labels, names)
    recipe = tiny_recipe(home, data__train=train, data__test=test)
    task = build_task(recipe)
    task.check_data()
    task.load_data(("train", "test"))
    assert task.collate("test", [0, 1])["labels"].tolist() == classes
    again = build_task(recipe, task.facts())
    again.load_data(("test",))
    assert again.collate("test", [0, 1])["labels"].tolist() == classes


def test_a_checkpoint_from_before_names_were_read_still_knows_its_classes(home: Path, tmp_path: Path) -> None:
    train = reviews(tmp_path / "train.parquet", [0, 1] * 10, ["neg", "pos"])
    task = build_task(tiny_recipe(home, data__train=train, data__test=copy_of(train)), {"labels": ["0", "1"]})
    task.load_data(("train", "test"))
    assert task.collate("test", [0, 1])["labels"].tolist() == [0, 1]


def test_a_label_that_is_kept_back_is_no_class(home: Path, tmp_path: Path) -> None:
    train = reviews(tmp_path / "train.parquet", [0, 1] * 10, ["neg", "pos"])
    test = reviews(tmp_path / "test.parquet", [-1, -1], ["neg", "pos"])
    task = build_task(tiny_recipe(home, data__train=train, data__test=test))
    with pytest.raises(DataError, match=r"test\.parquet, column 'label': label -1 is outside 0\.\.1"):
        task.check_data()


def test_files_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    reviews(tmp_path / "1.parquet", [0, 1], ["neg", "pos"])
    reviews(tmp_path / "2.parquet", [0, 1], ["neg", "pos"])
    assert class_names(read_split(str(tmp_path), ["text", "label"]).data.table, "label") == ("neg", "pos")
    reviews(tmp_path / "3.parquet", [0, 1], ["pos", "neg"])
    with pytest.raises(DataError, match="number the classes of column 'label' differently"):
        read_split(str(tmp_path), ["text", "label"])


def test_tags_have_the_names_of_the_data_set(tmp_path: Path) -> None:
    train = words(tmp_path / "train.parquet", [[0, 1], [1, 2], [0, 0], [0]] * 5, named=True)
    task = task_of(tmp_path / "made", TOKENS, train=train, test=copy_of(train))
    task.check_data()
    task.load_data(("train", "test"))
    assert task.facts()["labels"] == TAGS
    batch = task.collate("test", [1])
    assert [label for label in batch["labels"][0].tolist() if label >= 0] == [1, 2]
    assert task.examples("test", 2) == [(["good", "film"], ["O", "B-MOOD"]), (["good", "film"], ["B-MOOD", "I-MOOD"])]
    assert task._config().id2label == dict(enumerate(TAGS))  # type: ignore[attr-defined]


def test_objects_in_pictures_have_the_names_of_the_data_set(tmp_path: Path) -> None:
    import datasets

    images.yolos(tmp_path)
    kinds = {
        "image": datasets.Value("string"),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
            "category": datasets.List(datasets.ClassLabel(names=["truck", "car"])),
        },
    }
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    objects = {"bbox": [[0.0, 0.0, 4.0, 4.0]] * 2, "category": [1, 1]}
    train = save(tmp_path / "train.parquet", {"image": ["a.png"] * 2, "objects": [objects] * 2}, kinds)
    task = of_pictures(tmp_path, "object-detection", train)
    task.check_data()
    task.load_data(("train", "test"))
    assert task.facts() == {"labels": ["truck", "car"], "numbered": True}
    assert task.collate("train", [0])["labels"].flatten().tolist()[:2] == [1, 1]
    assert task.examples("test", 1)[0][1]["category"] == ["car", "car"]


def test_classes_of_pictures_have_the_names_of_the_data_set(tmp_path: Path) -> None:
    import datasets

    images.MAKERS["vit/image-classification"](tmp_path)
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    kinds = {"label": datasets.ClassLabel(names=["cat", "ant"])}
    train = save(tmp_path / "train.parquet", {"image": ["a.png", "b.png"] * 2, "label": [0, 1] * 2}, kinds)
    task = of_pictures(tmp_path, "image-classification", train)
    task.check_data()
    task.load_data(("train", "test"))
    assert task.facts()["labels"] == ["cat", "ant"]
    assert [label for _, label in task.examples("test", 2)] == ["cat", "ant"]


def test_tags_that_are_numbers_of_nothing_are_refused(tmp_path: Path) -> None:
    train = words(tmp_path / "train.parquet", [[0, 1], [0, 0]] * 5, named=False)
    task = task_of(tmp_path / "made", TOKENS, train=train)
    for ask in (task.check_data, task.load_data):
        with pytest.raises(DataError, match="the tags are numbers, such as 0, and nothing says") as caught:
            ask()
        assert "data.labels" in str(caught.value.hint)
    named = task_of(tmp_path / "named", TOKENS, train=train, labels=["O", "B-MOOD"])
    named.check_data()
    named.load_data()
    assert named.facts() == {"labels": ["O", "B-MOOD"]}
