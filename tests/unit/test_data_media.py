"""Samples that are files: every way of naming them gives the same bytes, and every fault its message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from tiny_text_model import write_rows

from tlcore.data import MediaRows, Opener, read_media
from tlcore.errors import DataError

pytestmark = pytest.mark.unit

ENDINGS = (".png", ".jpg")
CONTENT = {"cat/a.png": b"first", "dog/b.JPG": b"second"}


def lay(folder: Path) -> Path:
    for name, content in {**CONTENT, "cat/notes.txt": b"", ".hidden/c.png": b"third"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(place: Path | str, **more: Any) -> MediaRows:
    return read_media(str(place), ["image"], ENDINGS, **{"label": "label", **more})


def contents(rows: MediaRows) -> list[bytes]:
    return rows.read("image", range(len(rows)))


def test_a_folder_per_class_gives_files_and_their_folders(tmp_path: Path) -> None:
    rows = read(lay(tmp_path))
    assert contents(rows) == [b"first", b"second"]
    assert rows.table.column("label").to_pylist() == ["cat", "dog"]
    assert rows.name("image", 1) == str(tmp_path / "dog/b.JPG")
    assert read(f"file://{tmp_path}").table.column("label").to_pylist() == ["cat", "dog"]


def test_without_a_label_files_may_lie_anywhere(tmp_path: Path) -> None:
    (lay(tmp_path) / "loose.png").write_bytes(b"third")
    rows = read(tmp_path, label=None)
    assert rows.table.column_names == ["image"]
    assert sorted(contents(rows)) == [b"first", b"second", b"third"]


def test_tables_name_files_beside_them_and_elsewhere(tmp_path: Path) -> None:
    lay(tmp_path / "pictures")
    cells = ["pictures/cat/a.png", f"{tmp_path}/pictures/dog/b.JPG", f"file://{tmp_path}/pictures/cat/a.png"]
    write_rows(tmp_path / "rows.jsonl", [{"image": cell, "label": "x"} for cell in cells])
    for place in (tmp_path / "rows.jsonl", tmp_path, tmp_path / "*.jsonl"):
        rows = read(place)
        assert contents(rows) == [b"first", b"second", b"first"]
        rows.check_present("image")


def test_tables_hold_bytes_themselves_or_as_hugging_face_writes_them(tmp_path: Path) -> None:
    lay(tmp_path)
    plain = [{"image": content, "label": 0} for content in CONTENT.values()]
    structs = [
        {"image": {"bytes": b"first", "path": "gone.png"}, "label": 0},
        {"image": {"bytes": None, "path": "dog/b.JPG"}, "label": 1},
    ]
    for table in (plain, structs):
        pa.parquet.write_table(pa.Table.from_pylist(table), tmp_path / "rows.parquet")
        rows = read(tmp_path / "rows.parquet")
        assert contents(rows) == [b"first", b"second"]
        rows.check_present("image")
        assert rows.name("image", 0) == f"{tmp_path}/rows.parquet, row 1"


def test_the_digest_follows_what_lies_there(tmp_path: Path) -> None:
    first = read(lay(tmp_path)).digest
    assert read(tmp_path).digest == first
    (tmp_path / "cat/a.png").write_bytes(b"changed")
    assert read(tmp_path).digest != first


def test_each_fault_says_where_and_what(tmp_path: Path) -> None:
    lay(tmp_path / "folder")
    with pytest.raises(DataError, match="is a folder of files, which has no column 'mask'"):
        read_media(str(tmp_path / "folder"), ["image", "mask"], ENDINGS)
    with pytest.raises(DataError, match=r"holds no file that ends in \.wav\n  it holds cat/a\.png"):
        read_media(str(tmp_path / "folder"), ["audio"], [".wav"])
    (tmp_path / "folder/loose.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"loose\.png lies in no class's folder"):
        read(tmp_path / "folder")
    with pytest.raises(DataError, match="no data at"):
        read(tmp_path / "nowhere")
    write_rows(tmp_path / "gone.jsonl", [{"image": "no/such.png", "label": 1}])
    gone = read(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"row 1: column 'image' names .*no/such\.png, which is no file"):
        gone.check_present("image")
    with pytest.raises(DataError, match=r"cannot read .*such\.png: No such file.*\n  .*relative paths begin at"):
        contents(gone)
    write_rows(tmp_path / "number.jsonl", [{"image": 3, "label": 1}])
    with pytest.raises(DataError, match="column 'image' holds int64, neither paths nor bytes"):
        read(tmp_path / "number.jsonl")
    with pytest.raises(DataError, match="nothing is known of https://"):
        Opener().read("https://host/a.png")
    with pytest.raises(DataError, match="neither a path nor a file's bytes"):
        Opener().read(3)
