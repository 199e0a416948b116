"""Data and models that lie in a real S3 store: read in memory, fetched once, and clear when they are not there."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tlcore.data import fingerprint, read_media, read_split
from tlcore.errors import BucketMissing, DataError, ModelError
from tlcore.models import resolve_source
from tlcore.storage import ObjectStore

pytestmark = pytest.mark.integration

ROWS = [{"text": f"snippet {number}", "label": number % 2} for number in range(300)]


def parquet_bytes(rows: list[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(rows), sink, row_group_size=50)
    return sink.getvalue()


def test_every_format_reads_the_same_from_the_store(s3_store: ObjectStore) -> None:
    s3_store.put("a.parquet", parquet_bytes(ROWS))
    s3_store.put("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode())
    s3_store.put("a.csv", ("label,text\n" + "".join(f"{row['label']},{row['text']}\n" for row in ROWS)).encode())
    for name in ("a.parquet", "a.jsonl", "a.csv"):
        dataset = read_split(f"{s3_store.url}/{name}", ["text", "label"], texts=["text"])
        assert dataset.to_list() == ROWS
        assert dataset.cache_files == []


def test_prefixes_and_patterns_read_all_their_parts(s3_store: ObjectStore) -> None:
    for part in range(3):
        s3_store.put(f"train/part-{part}.parquet", parquet_bytes(ROWS[part * 100 : part * 100 + 100]))
    s3_store.put("train/_SUCCESS", b"")
    s3_store.put("train/old/part-9.parquet", parquet_bytes(ROWS))
    s3_store.put("train-more/part-8.parquet", parquet_bytes(ROWS))
    for place in ("train", "train/", "train/part-*.parquet", "train/*.parquet"):
        assert read_split(f"{s3_store.url}/{place}", ["text", "label"]).to_list() == ROWS
    assert len(read_split(f"{s3_store.url}/train/part-1.parquet", ["text"])) == 100


def test_a_replaced_object_is_read_anew(s3_store: ObjectStore) -> None:
    url = f"{s3_store.url}/a.parquet"
    s3_store.put("a.parquet", parquet_bytes(ROWS))
    first = fingerprint(url)
    assert len(read_split(url, ["text"])) == 300
    s3_store.put("a.parquet", parquet_bytes(ROWS[:7]))
    assert fingerprint(url) != first
    assert len(read_split(url, ["text"])) == 7


def test_what_is_not_there_is_said(s3_store: ObjectStore) -> None:
    s3_store.put("train.parquet", parquet_bytes(ROWS))
    with pytest.raises(DataError, match=rf"no data at {s3_store.url}/trian.parquet"):
        read_split(f"{s3_store.url}/trian.parquet", ["text"])
    with pytest.raises(DataError, match="has no column 'txt'; did you mean 'text'"):
        read_split(f"{s3_store.url}/train.parquet", ["txt"])
    s3_store.put("broken.parquet", parquet_bytes(ROWS)[:-9])
    with pytest.raises(DataError, match=r"cannot read .*broken\.parquet as parquet"):
        read_split(f"{s3_store.url}/broken.parquet", ["text"])


def test_a_missing_bucket_is_said(
    s3_store: ObjectStore, embedded_store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in embedded_store.env().items():  # type: ignore[attr-defined]
        monkeypatch.setenv(name, value)
    with pytest.raises(BucketMissing):
        read_split("s3://no-such-bucket-here/train.parquet", ["text"])


def test_a_model_is_fetched_once_for_all_ranks(
    s3_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    weights = bytes(range(256)) * 4000
    s3_store.put("models/tiny/config.json", b'{"model_type": "bert"}')
    s3_store.put("models/tiny/model.safetensors", weights)
    url = f"{s3_store.url}/models/tiny"
    found: list[Path] = []
    ranks = [threading.Thread(target=lambda: found.append(resolve_source(url).directory)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert (found[0] / "model.safetensors").read_bytes() == weights
    assert found[0].parent == tmp_path / ".cache" / "tlcore" / "models"
    with pytest.raises(ModelError, match="nothing lies directly under that prefix"):
        resolve_source(f"{s3_store.url}/models/other")


def test_files_in_the_store_are_named_by_folders_and_by_tables_beside_them(s3_store: ObjectStore) -> None:
    for name, content in {"cat/a.png": b"first", "dog/b.png": b"second", "dog/notes.txt": b""}.items():
        s3_store.put(f"pictures/{name}", content)
    rows = read_media(f"{s3_store.url}/pictures", ["image"], [".png"], label="label")
    assert rows.read("image", [1, 0]) == [b"second", b"first"]
    assert rows.table.column("label").to_pylist() == ["cat", "dog"]
    cells = ["pictures/dog/b.png", f"{s3_store.url}/pictures/cat/a.png", "pictures/none.png"]
    s3_store.put("rows.jsonl", "".join(json.dumps({"image": cell}) + "\n" for cell in cells).encode())
    rows = read_media(f"{s3_store.url}/rows.jsonl", ["image"], [".png"])
    assert rows.read("image", [0, 1]) == [b"second", b"first"]
    with pytest.raises(DataError, match=r"cannot read s3://.*none\.png: no such object"):
        rows.read("image", [2])
