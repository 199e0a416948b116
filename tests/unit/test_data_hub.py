"""Data sets of the hub: how they are named, and what is said of those that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipe_cases import assert_faults
from tiny_text_model import write_rows

from tlcore.data import hub_dataset, read_split
from tlcore.errors import DataError

pytestmark = pytest.mark.unit

NAMED = {
    "stanfordnlp/imdb": ("stanfordnlp/imdb", None, None),
    "stanfordnlp/imdb:test": ("stanfordnlp/imdb", None, "test"),
    "nyu-mll/glue/sst2": ("nyu-mll/glue", "sst2", None),
    "nyu-mll/glue/sst2:train[:10%]": ("nyu-mll/glue", "sst2", "train[:10%]"),
    "openslr/librispeech_asr/clean:train.100": ("openslr/librispeech_asr", "clean", "train.100"),
    "wikimedia/wikipedia/20231101.en:train+test": ("wikimedia/wikipedia", "20231101.en", "train+test"),
    "squad:train": ("squad", None, "train"),
    "squad": None,
    "nyu-mll/glue/sst2/deeper": None,
    "s3://bucket/name:train": None,
    "/absolute/name": None,
    "somewhere/train.csv": None,
    "somewhere/deeper/train.csv": None,
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_a_hub_dataset(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = hub_dataset(name)
    assert (None if found is None else (found.id, found.config, found.split)) == NAMED[name]


@pytest.mark.parametrize(
    "name", ["here/data", "here/data/part", "here/data:train", "here/not-there/part", "file:train"]
)
def test_what_is_on_this_machine_goes_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "data" / "part").mkdir(parents=True)
    (tmp_path / "file:train").touch()
    assert hub_dataset(name) is None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`datasets` reads a folder of this machine where the hub's copy is asked for; everything else of it is as it is."""
    import datasets

    from tlcore.data import reading

    real, folder = datasets.load_dataset, tmp_path / "hub"

    def load(name: str, config: str | None = None, *, split: str) -> Any:
        return real(str(folder / name), config, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(reading, "hub_answers", lambda: True)
    for config in ("cola", "sst2"):
        for split in ("train", "test.clean"):
            place = folder / "owner" / "glue" / config / f"{split}.jsonl"
            place.parent.mkdir(parents=True, exist_ok=True)
            write_rows(place, [{"text": f"{config} {split} {number}", "label": "a"} for number in range(10)])
    (folder / "owner" / "glue" / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {config}\n  data_files:\n"
            + "".join(f"  - split: {split}\n    path: {config}/{split}.jsonl\n" for split in ("train", "test.clean"))
            for config in ("cola", "sst2")
        )
        + "---\n"
    )
    return folder


@pytest.mark.parametrize(
    ("name", "first", "count"),
    [
        ("owner/glue/sst2", "sst2 train 0", 10),
        ("owner/glue/cola:test.clean", "cola test.clean 0", 10),
        ("owner/glue/cola:train[80%:]", "cola train 8", 2),
    ],
)
@pytest.mark.usefixtures("hub")
def test_a_configuration_and_a_split_are_read(name: str, first: str, count: int) -> None:
    rows = read_split(name, ["text"]).to_list()
    assert (rows[0], len(rows)) == ({"text": first}, count)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/glue", "hub dataset owner/glue needs a configuration"),
        ("owner/glue/sts", "hub dataset owner/glue has no configuration 'sts'"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_the_configurations_are_named(name: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_split(name, ["text"], split="test")
    assert caught.value.message == said
    assert caught.value.hint == "name it as owner/glue/<configuration>:test; there are cola, sst2"


@pytest.mark.usefixtures("hub")
def test_a_split_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match=r"cannot read hub dataset owner/glue/cola, split 'test': Unknown split"):
        read_split("owner/glue/cola", ["text"], split="test")


def test_a_dataset_that_is_a_script_is_refused(hub: Path) -> None:
    (hub / "owner" / "old").mkdir()
    (hub / "owner" / "old" / "old.py").write_text("raise SystemExit('ran')")
    with pytest.raises(DataError, match="hub dataset owner/old is made by a script") as caught:
        read_split("owner/old", ["text"])
    assert "parquet" in str(caught.value.hint)


def test_train_and_test_of_one_dataset_are_told_how_to_name_their_splits() -> None:
    same = "the same as data.train; give other examples, or a fraction for validation"
    assert_faults(
        {"data.train": "owner/name", "data.test": "owner/name"},
        [f"data.test: got 'owner/name', {same}, or owner/name:test of a hub dataset"],
    )
    assert_faults(
        {"data.train": "s3://bucket/name", "data.test": "s3://bucket/name"},
        [f"data.test: got 's3://bucket/name', {same}"],
    )
