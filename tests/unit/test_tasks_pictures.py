"""Tasks of pictures against the protocol: decoding, preparation, batches, labels, prediction, and what cannot be used."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.families import images
from tlcore.errors import DataError, RecipeError
from tlcore.models import ModelSource
from tlcore.recipe import recipe_from_dict
from tlcore.tasks import Task, build_task, build_without_data
from tlcore.tasks.base import IGNORED
from tlcore.tasks.images import ImageModel, decode

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Each maker's place and sections, made when first used."""
    made: dict[str, tuple[Path, dict[str, Any]]] = {}

    class Homes(dict[str, Any]):
        def __missing__(self, name: str) -> tuple[Path, dict[str, Any]]:
            home = tmp_path_factory.mktemp("home")
            made[name] = (home, images.MAKERS[name](home))
            return made[name]

    return Homes()


def task_of(homes: Any, name: str, facts: Any = None, **changes: Any) -> Task:
    home, sections = homes[name]
    data: dict[str, Any] = {
        "name": "tiny",
        "task": name.partition("/")[2],
        "train": {},
        "storage": str(home / "store"),
        **{key: dict(value) for key, value in sections.items()},
    }
    for key, value in changes.items():
        section, _, setting = key.partition("__")
        data[section][setting] = value
    recipe = recipe_from_dict(data)
    return build_without_data(recipe) if facts == "assumed" else build_task(recipe, facts)


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, format="PNG") if mode else Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


def test_pictures_of_every_kind_become_upright_rgb() -> None:
    clear = np.zeros((2, 3, 4), dtype=np.uint8)
    clear[0] = (10, 20, 30, 255)
    picture = np.asarray(decode(png(clear), "x"))
    assert picture[0, 0].tolist() == [10, 20, 30]
    assert picture[1, 0].tolist() == [255, 255, 255], "what is transparent is white"
    assert decode(png(np.full((2, 3), 7, dtype=np.uint8)), "x").getpixel((0, 0)) == (7, 7, 7)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    Image.new("RGB", (4, 2)).save(turned, format="JPEG", exif=exif)
    assert decode(turned.getvalue(), "x").size == (2, 4)
    for content in (b"", b"not a picture", png(clear)[:40]):
        with pytest.raises(DataError, match=r"a\.png cannot be read as a picture"):
            decode(content, "a.png")


def written(array: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=form)
    return file.getvalue()


def test_grey_levels_of_more_than_8_bits_are_scaled_and_not_cut_off() -> None:
    levels = np.array([[0, 256, 0x1234, 0x7FFF, 0xFFFF]])
    eight = [0, 1, 0x12, 0x7F, 0xFF]
    for form in ("PNG", "TIFF"):
        assert np.asarray(decode(written(levels.astype(np.uint16), form), "x"))[0, :, 0].tolist() == eight
    assert np.asarray(decode(written(levels.astype(np.int32), "TIFF"), "x"))[0, :, 2].tolist() == eight
    small = np.array([[0, 7, 255]], dtype=np.int32)
    assert np.asarray(decode(written(small, "TIFF"), "x"))[0, :, 1].tolist() == [0, 7, 255]
    floats = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert np.asarray(decode(written(floats, "TIFF"), "x"))[0, :, 0].tolist() == [0, 128, 255]
    for wrong in (floats * 255, floats - 0.1, floats * np.nan):
        with pytest.raises(DataError, match=r"a\.tif has grey levels from .* to .*, which are not of 0 to 1"):
            decode(written(wrong, "TIFF"), "a.tif")
    with pytest.raises(DataError, match=r"a\.tif has grey levels from 0 to 65536, which are not of 0 to 65535"):
        decode(written(np.array([[0, 65536]], dtype=np.int32), "TIFF"), "a.tif")


PROCESSORS = {
    "vit": (transformers.ViTImageProcessor(size={"height": 20, "width": 24}), (20, 24)),
    "convnext": (transformers.ConvNextImageProcessor(size={"shortest_edge": 28}), (28, 28)),
    "mobilenet": (
        transformers.MobileNetV2ImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}),
        (28, 28),
    ),
    "efficientnet": (transformers.EfficientNetImageProcessor(size={"height": 26, "width": 26}), (26, 26)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_prepared_in_two_steps_is_what_the_processor_makes(name: str, tmp_path: Path) -> None:
    processor, size = PROCESSORS[name]
    processor.save_pretrained(tmp_path)
    image = ImageModel(ModelSource("x", tmp_path), "auto")
    assert image.size == size
    pictures = [images.picture(number, 0, side=40) for number in range(2)]
    shaped = [image.shape(picture) for picture in pictures]
    assert {each.dtype for each in shaped} == {torch.uint8}
    torch.testing.assert_close(image.finish(shaped), processor(pictures, return_tensors="pt")["pixel_values"])
    larger = ImageModel(ModelSource("x", tmp_path), 36)
    assert larger.size == (36, 36)
    assert larger.shape(pictures[0]).shape == (3, 36, 36)


def test_training_pictures_vary_with_the_given_draws_and_no_others(homes: Any) -> None:
    """Not with torch's own generator, which the training step draws from while the next batch is made."""
    task = task_of(homes, "vit/image-classification")

    def drawn(split: str, seed: int) -> torch.Tensor:
        return task.collate(split, [0, 1], torch.Generator().manual_seed(seed))["pixel_values"]

    assert torch.equal(drawn("train", 1), drawn("train", 1))
    assert not torch.equal(drawn("train", 1), drawn("train", 2))
    assert torch.equal(drawn("validation", 1), drawn("validation", 2))


def test_a_filler_has_no_weight_and_the_largest_batch_reads_nothing(homes: Any) -> None:
    for name in images.MAKERS:
        task = task_of(homes, name)
        task.check_data()
        task.load_data()
        model = task.build_model(from_scratch=False).eval()
        loss = task.loss(model, task.collate("train", []))
        assert loss.item() == 0, name
        loss.backward()
        blind = task_of(homes, name, "assumed", data__train="/nowhere")
        scratch = blind.build_model(from_scratch=True)
        assert blind.loss(scratch, blind.largest_batch(2)).isfinite(), name


def multi_labelled(home: Path) -> str:
    cells: list[Any] = [["red", "big"], [], ["big"], ["red"]] * 10
    images.folder_per_class(home)
    paths = sorted(home.rglob("*.png"))
    rows = [{"image": str(path), "label": cell} for path, cell in zip(paths, cells, strict=True)]
    (home / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = "".join(f"{row['image']},{'|'.join(row['label']) or '|'}\n" for row in rows)
    (home / "texts.csv").write_text("image,label\n" + texts)
    return str(home)


def test_any_number_of_labels_in_lists_and_in_texts(homes: Any, tmp_path: Path) -> None:
    multi_labelled(tmp_path)
    for name in ("lists.jsonl", "texts.csv"):
        task = task_of(homes, "resnet/image-classification", data__train=str(tmp_path / name), data__multi_label=True)
        assert task.load_data() == {"train": 36, "validation": 4}
        assert task.facts() == {"labels": ["big", "red"]}
        whole = task_of(homes, "resnet/image-classification", data__train=str(tmp_path / name), data__multi_label=True)
        labels = torch.cat(
            [whole.collate(split, range(n))["labels"] for split, n in (("train", 36), ("validation", 4))]
        )
        assert labels.sum(dim=0).tolist() == [20, 20]
        model = task.build_model(from_scratch=False).eval()
        assert model.config.problem_type == "multi_label_classification"
        counts = task.metrics()
        counts.update(model, task.collate("validation", range(4)))
        assert set(counts.compute()) == {"accuracy", "f1", "loss"}
        (answer,) = task.predict(model, [str(next(tmp_path.rglob("*.png")))])
        assert answer["labels"] == [label for label, score in answer["scores"].items() if score >= 0.5]
        assert task.loss(model, task.collate("train", [])).item() == 0


def test_bytes_in_a_table_train_as_files_do(homes: Any, tmp_path: Path) -> None:
    import pyarrow.parquet

    place = images.folder_per_class(tmp_path / "pictures")
    files = sorted(Path(place).rglob("*.png"))
    rows = [{"image": {"bytes": file.read_bytes(), "path": None}, "label": file.parent.name} for file in files]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    folder = task_of(homes, "resnet/image-classification", data__train=place)
    table = task_of(homes, "resnet/image-classification", data__train=str(tmp_path / "rows.parquet"))
    table.check_data()
    one, two = folder.collate("train", range(5)), table.collate("train", range(5))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert table.examples("train", 2) == []
    assert [Path(path).parent.name for path, _ in folder.examples("train", 40)] == [
        x for _, x in folder.examples("train", 40)
    ]
    model = folder.build_model(from_scratch=False).eval()
    assert folder.predict(model, [str(files[0])]) == table.predict(model, [files[0].read_bytes()])


def test_what_cannot_be_classified_is_said(homes: Any, tmp_path: Path) -> None:
    place = Path(images.folder_per_class(tmp_path / "pictures"))
    task = task_of(homes, "resnet/image-classification", data__train=str(place))
    model = task.build_model(from_scratch=False)
    with pytest.raises(DataError, match="input 1 is 7, not a picture"):
        task.predict(model, [str(next(place.rglob("*.png"))), 7])
    with pytest.raises(DataError, match=r"cannot read /no/such\.png"):
        task.predict(model, ["/no/such.png"])
    (place / "third").mkdir()
    (place / "third/a.png").write_bytes(b"broken")
    broken = task_of(homes, "resnet/image-classification", data__train=str(place))
    broken.load_data()
    with pytest.raises(DataError, match=r"third/a\.png cannot be read as a picture"):
        broken.collate("train", range(37))
    other = task_of(homes, "resnet/image-classification", data__train=str(place), data__labels=["first", "second"])
    with pytest.raises(DataError, match=r"label 'third' is none of the 2 classes of data\.labels"):
        other.check_data()


def test_one_class_learns_from_normal_pictures_and_is_judged_on_both(homes: Any, tmp_path: Path) -> None:
    task = task_of(homes, "resnet/anomaly-detection")
    counts = task.load_data()
    assert counts["train"] < 48
    assert counts["validation"] == 12
    assert task.collate("train", range(counts["train"]))["labels"].sum() == 0
    model: Any = task.build_model(from_scratch=False)
    assert model.centre.abs().min() >= 0.1 - 1e-6
    again: Any = task.build_model(from_scratch=False)
    assert torch.equal(model.centre, again.centre)
    untouched: Any = task_of(homes, "resnet/anomaly-detection", {}).build_model(from_scratch=True)
    assert untouched.centre.abs().sum() == 0, "a checkpoint brings its own"
    place = images.folder_per_class(tmp_path / "all", 12, ("bad", "worse"))
    with pytest.raises(DataError, match="has no normal picture; its labels are bad, worse"):
        task_of(homes, "resnet/anomaly-detection", data__train=place, data__validation=0.5).load_data()
    place = images.folder_per_class(tmp_path / "none", 12, ("good", "ok"))
    with pytest.raises(DataError, match="have no anomaly among them"):
        task_of(homes, "resnet/anomaly-detection", data__train=place, data__validation=0.5).load_data()


def test_the_names_of_numbers_say_what_is_normal(homes: Any, tmp_path: Path) -> None:
    import datasets

    files = sorted(Path(images.folder_per_class(tmp_path / "pictures", 12)).rglob("*.png"))
    rows = {"image": [str(file) for file in files], "label": [0, 1, 0, 1, 1, 1] * 2}
    for names, normal in ((["bad", "good"], 1), (["Normal", "broken"], 0), (None, 0)):
        kind = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
        features = datasets.Features({"image": datasets.Value("string"), "label": kind})
        places = [str(tmp_path / name) for name in ("rows.parquet", "judged.parquet")]
        for place in places:
            datasets.Dataset.from_dict(rows, features=features).to_parquet(place)
        task: Any = task_of(homes, "resnet/anomaly-detection", data__train=places[0], data__validation=places[1])
        assert task.load_data() == {"train": rows["label"].count(normal), "validation": 12}
        judged = task.collate("validation", range(12))["labels"].tolist()
        assert judged == [int(label != normal) for label in rows["label"]]
    features = datasets.Features(
        {"image": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "worse"])}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(places[0])
    with pytest.raises(DataError, match="has no normal picture; its labels are bad, worse"):
        task_of(homes, "resnet/anomaly-detection", data__train=places[0], data__validation=places[1]).load_data()


def test_embeddings_may_be_judged_on_labels_never_trained_on(homes: Any, tmp_path: Path) -> None:
    place = images.folder_per_class(tmp_path, 8, ("other", "another"))
    task = task_of(homes, "resnet/image-embedding", data__validation=place)
    task.check_data()
    assert task.load_data() == {"train": 40, "validation": 8}
    model = task.build_model(from_scratch=False).eval()
    counts = task.metrics()
    counts.update(model, task.collate("validation", range(8)))
    counts.merge(lambda tensor: tensor)
    assert set(counts.compute()) == {"recall_at_1", "map_at_r", "loss"}
    (answer,) = task.predict(model, [task.examples("validation", 1)[0][0]])
    assert np.linalg.norm(answer["embedding"]) == pytest.approx(1, abs=1e-5)


def test_videos_are_lists_of_pictures_or_arrays(homes: Any, tmp_path: Path) -> None:
    task = task_of(homes, "videomae/video-classification")
    task.load_data()
    model = task.build_model(from_scratch=False).eval()
    frames = np.random.default_rng(0).integers(0, 255, (7, 20, 20, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", frames)
    paths = []
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    array, listed = task.predict(model, [str(tmp_path / "a.npy"), paths])
    assert array == listed
    np.save(tmp_path / "flat.npy", frames[0])
    with pytest.raises(DataError, match=r"flat\.npy is uint8 \[20, 20, 3\], not uint8 \[frames, height, width, 3\]"):
        task.predict(model, [str(tmp_path / "flat.npy")])
    with pytest.raises(RecipeError, match=r"data\.frames: is 5, but model .* takes 4; set it to 4 or auto"):
        task_of(homes, "videomae/video-classification", data__frames=5).build_model(from_scratch=True)


def test_labels_of_no_weight_are_ignored_ones(homes: Any) -> None:
    task = task_of(homes, "segformer/image-segmentation")
    task.load_data()
    batch = task.collate("validation", [0, 1])
    assert batch["labels"].shape == (2, images.SIDE, images.SIDE)
    assert (batch["labels"][:, 0, 0] == IGNORED).all(), "255 in the mask"
    assert task.facts() == {"labels": ["0", "1", "2"]}
    torch.manual_seed(4)
    varied = task.collate("train", [0])
    # The coloured half is class 1 or 2: wherever picture and mask were cut, they were cut alike.
    coloured = varied["pixel_values"][0].max(dim=0).values > 1.2
    known = varied["labels"][0] != IGNORED
    assert ((varied["labels"][0] > 0) == coloured)[known].float().mean() > 0.95


def test_masks_that_are_none_are_said(homes: Any, tmp_path: Path) -> None:
    images.picture(0, 0).save(tmp_path / "a.png")
    images.picture(0, 0).save(tmp_path / "colours.png")
    Image.fromarray(np.full((38, 38), 9, dtype=np.uint8)).save(tmp_path / "nine.png")

    def collated(mask: str, **changes: Any) -> Any:
        rows = [{"image": "a.png", "mask": mask}] * 4
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        place = str(tmp_path / "rows.jsonl")
        changes = {"data__validation": 0.5, **changes}
        return task_of(homes, "segformer/image-segmentation", data__train=place, **changes).collate("train", [0])

    with pytest.raises(DataError, match=r"colours\.png is no mask: it has 3 values per pixel"):
        collated("colours.png")
    with pytest.raises(DataError, match=r"nine\.png has class 9, but there are 2 classes, 0 to 1"):
        collated("nine.png", data__labels=["a", "b"])


def test_masks_of_black_and_white_are_refused(homes: Any, tmp_path: Path) -> None:
    def task(*values: int, labels: tuple[str, ...] | None = ("none", "object")) -> Task:
        for number, value in enumerate(values):
            images.picture(number, 0).save(tmp_path / f"{number}.png")
            mask = np.zeros((38, 38), dtype=np.uint8)
            mask[:19] = value
            Image.fromarray(mask).save(tmp_path / f"{number}-mask.png")
        rows = [{"image": f"{number}.png", "mask": f"{number}-mask.png"} for number in range(len(values))]
        place = tmp_path / f"{'-'.join(map(str, values))}.jsonl"
        place.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return task_of(
            homes, "segformer/image-segmentation", data__train=str(place), data__validation=0.5, data__labels=labels
        )

    for step in ("check_data", "load_data"):
        with pytest.raises(DataError, match=r"(?s)masks hold only 0 and 255, and 255 means no class.*the object as 1"):
            getattr(task(*[255] * 10), step)()
    with pytest.raises(DataError, match=r"(?s)no mask has a class beside 0.*write an object as 1"):
        task(255, 255, labels=None).load_data()
    for right in ((255, *[0] * 8, 1), (0, 0)):
        task(*right).check_data()
        task(*right).load_data()
