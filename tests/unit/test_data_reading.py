"""Reading files of every format, and the one message that each unusable file gets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from tiny_text_model import write_rows

from tlcore.data import encode_labels, find_label_names, fingerprint, hold_out, read_split
from tlcore.errors import DataError

pytestmark = pytest.mark.unit

ROWS = [{"text": "so good", "label": 1, "more": 0.5}, {"text": "None", "label": 0, "more": 1.5}]


def read(path: Path | str, columns: tuple[str, ...] = ("text", "label")) -> list[dict[str, Any]]:
    return read_split(str(path), columns, texts=["text"]).to_list()


def wanted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"text": row["text"], "label": row["label"]} for row in rows]


def test_parquet_csv_and_jsonl_give_the_same_rows(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("more,text,label\n0.5,so good,1\n1.5,None,0\n")
    write_rows(tmp_path / "a.jsonl", ROWS)
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        assert read(tmp_path / name) == wanted(ROWS)
    assert read(f"file://{tmp_path}/a.csv") == wanted(ROWS)


def test_csv_texts_may_be_digits_quoted_empty_and_of_several_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n123,x\n"",NA\n"two\nlines, quoted",y\n')
    assert [tuple(row.values()) for row in read(tmp_path / "a.csv")] == [
        ("123", "x"),
        ("", "NA"),
        ("two\nlines, quoted", "y"),
    ]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["True", "False"], ("False", "True")),
        (["true", "false"], ("false", "true")),
        (["007", "1"], ("007", "1")),
        (["10", "2"], ("2", "10")),
        (["1.0", "0"], ("0", "1")),
        (["2024-05-01", "2023-05-01"], ("2023-05-01", "2024-05-01")),
        (["1", "x"], ("1", "x")),
    ],
)
def test_classes_of_a_csv_are_called_what_stands_there(
    tmp_path: Path, cells: list[str], names: tuple[str, ...]
) -> None:
    for number, cell in enumerate(cells):  # each in a file of its own: what a column is shows from all of them
        (tmp_path / f"{number}.csv").write_text(f"text,label\na,{cell}\n")
    values = [row["label"] for row in read(tmp_path)]
    assert find_label_names(values, None, "x") == names
    assert sorted(encode_labels(values, names, False, "x").tolist()) == [0, 1]


def test_a_csvs_number_with_a_fraction_is_no_class(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,0.5\nb,1\n")
    with pytest.raises(DataError, match=r"label 0.5 is neither a text nor a whole number"):
        find_label_names([row["label"] for row in read(tmp_path / "a.csv")], None, "x")


def test_labels_that_were_read_as_numbers_still_mean_their_classes() -> None:
    """Of a checkpoint from when a csv's `True` was 1, and of `data.labels`, whose names have an index."""
    assert encode_labels(["True", "False"], ("0", "1"), False, "x").tolist() == [1, 0]
    assert encode_labels(["True", "False"], ("no", "yes"), True, "x").tolist() == [1, 0]
    assert encode_labels(["007"], ("1", "7"), False, "x").tolist() == [1]
    with pytest.raises(DataError, match=r"label 'True' is none of the 2 classes of the training data"):
        encode_labels(["True"], ("no", "yes"), False, "x")


def test_tables_with_tabs_and_gzipped_ones(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("more\ttext\tlabel\n0.5\tso good\t1\n1.5\tNone\t0\n")
    assert read(tmp_path / "a.tsv") == wanted(ROWS)
    (tmp_path / "b.csv").write_text("more,text,label\n0.5,so good,1\n1.5,None,0\n")
    write_rows(tmp_path / "c.jsonl", ROWS)
    (tmp_path / "d.json").write_text(json.dumps(ROWS))
    for plain in ("a.tsv", "b.csv", "c.jsonl", "d.json"):
        packed = tmp_path / plain[0] / f"{plain}.gz"
        packed.parent.mkdir()
        packed.write_bytes(gzip.compress((tmp_path / plain).read_bytes()))
        assert read(packed) == read(packed.parent) == wanted(ROWS)


def test_a_json_line_may_be_longer_than_pyarrow_reads_at_once(tmp_path: Path) -> None:
    rows = [{"text": "long " * 500_000, "label": 0}, {"text": "short", "label": 1}]
    assert read(write_rows(tmp_path / "a.jsonl", rows)) == rows


def test_a_json_file_may_be_one_array_of_objects_or_lines(tmp_path: Path) -> None:
    (tmp_path / "array.json").write_text("\n  " + json.dumps([*ROWS, {"text": "so-so", "label": 2}], indent=1))
    assert read(tmp_path / "array.json") == [*wanted(ROWS), {"text": "so-so", "label": 2}]
    assert read(write_rows(tmp_path / "lines.json", ROWS)) == wanted(ROWS)


def test_cells_may_be_empty_where_that_is_said(tmp_path: Path) -> None:
    rows = [{"text": "a", "more": None}, {"text": "b"}]
    found = read_split(
        str(write_rows(tmp_path / "a.jsonl", rows)), ["text", "more"], texts=["more"], may_be_empty=["more"]
    )
    assert found["more"][:] == [None, None]


def test_a_directory_and_a_pattern_read_all_their_files_in_name_order(tmp_path: Path) -> None:
    write_rows(tmp_path / "part-2.jsonl", ROWS[1:])
    write_rows(tmp_path / "part-1.jsonl", ROWS[:1])
    (tmp_path / "README.md").write_text("not data")
    assert read(tmp_path) == wanted(ROWS)
    assert read(f"{tmp_path}/part-*.jsonl") == wanted(ROWS)
    assert read(f"{tmp_path}/*-2.jsonl") == wanted(ROWS[1:])


def test_nothing_is_written_to_the_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = read_split(str(write_rows(tmp_path / "a.jsonl", ROWS)), ["text"])
    assert dataset.cache_files == []
    assert not (tmp_path / "cache").exists()


BAD = {
    "missing": ("train.parqet", None, "no data at {path}; did you mean 'train.parquet'?"),
    "unknown ending": ("a.txt", b"text", "{path} is of no known format"),
    "no byte": ("a.csv", b"", "{path} is empty"),
    "header alone": ("a.csv", b"text,label\n", "{path} has no rows"),
    "column": ("a.csv", b"txt,label\na,b\n", "{path} has no column 'text'; did you mean 'txt'?"),
    "empty cells": (
        "a.csv",
        b"text,label\na,1\nb,\nc,\n",
        "{path}: column 'label' is empty in 2 of 3 rows, first in row 2",
    ),
    "empty text": ("a.csv", b"text,label\na,1\n,2\n", "{path}: column 'text' is empty in 1 of 2 rows, first in row 2"),
    "not text": ("a.jsonl", b'{"text": 3, "label": 1}\n', "{path}: column 'text' holds int64, not text"),
    "not parquet": ("a.parquet", b"text,label\n", "cannot read {path} as parquet: "),
    "not json lines": ("a.jsonl", b'[{"text": "a"}]\n', "cannot read {path} as jsonl: "),
    "array cut short": ("a.json", b'[{"text": "a"}, {"te', "cannot read {path} as a JSON array: "),
    "array of no objects": ("a.json", b'[{"text": "a"}, 3]', "{path}: item 1 of its array is '3', not an object"),
    "ragged": ("a.csv", b"text,label\na,1,2\n", "cannot read {path} as csv: "),
    "not gzip": ("a.csv.gz", b"text,label\na,1\n", "cannot read {path} as csv: "),
    "cut gzip": ("a.csv.gz", gzip.compress(b"text,label\na,1\n" * 99)[:-12], "cannot read {path} as csv: "),
    "gzipped parquet": ("a.parquet.gz", b"PAR1", "{path} is of no known format"),
    "latin-1": ("a.csv", "text,label\ncaf\xe9,1\n".encode("latin-1"), "cannot read {path} as csv: "),
}


@pytest.mark.parametrize("name", BAD)
def test_each_unusable_file_gets_one_clear_message(tmp_path: Path, name: str) -> None:
    file, content, message = BAD[name]
    (tmp_path / "train.parquet").write_bytes(b"")
    path = tmp_path / file
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.message.startswith(message.format(path=path))
    assert caught.value.hint


def test_formats_side_by_side_and_unknown_schemes_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    with pytest.raises(DataError, match="several formats: csv, jsonl"):
        read(tmp_path)
    with pytest.raises(DataError, match="nothing is known of gopher://"):
        read("gopher://host/a.csv")


def test_columns_there_are_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(write_rows(tmp_path / "a.jsonl", [{"review": "a", "stars": 1}]))
    assert caught.value.hint == "its columns: review, stars"


def test_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    before = fingerprint(str(path))
    assert fingerprint(str(path)) == before
    write_rows(path, ROWS * 2)
    assert fingerprint(str(path)) != before


def test_held_out_samples_are_fixed_and_apart() -> None:
    kept, held = hold_out(1000, 0.1)
    assert len(held) == 100
    assert sorted([*kept, *held]) == list(range(1000))
    again_kept, again_held = hold_out(1000, 0.1)
    assert kept.tolist() == again_kept.tolist() and held.tolist() == again_held.tolist()
    assert held.tolist() != list(range(900, 1000))


@pytest.mark.parametrize(("samples", "fraction", "held"), [(4, 0.1, 0), (2, 0.9, 2)])
def test_holding_out_nothing_or_all_is_refused(samples: int, fraction: float, held: int) -> None:
    with pytest.raises(DataError, match=f"of {samples} training samples holds out {held}"):
        hold_out(samples, fraction)


def test_classes_are_the_sorted_values_or_those_given() -> None:
    assert find_label_names(["pos", "neg"], None, "x") == ("neg", "pos")
    assert find_label_names([10, 2], None, "x") == ("2", "10")
    assert find_label_names([1.0, 0.0], None, "x") == ("0", "1")
    assert find_label_names([], ["b", "a"], "x") == ("b", "a")


def test_labels_become_indices() -> None:
    assert encode_labels(["pos", "neg"], ("neg", "pos"), False, "x").tolist() == [1, 0]
    assert encode_labels([10, 2], ("2", "10"), False, "x").tolist() == [1, 0]
    assert encode_labels([0, 1], ("neg", "pos"), True, "x").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("values", "names", "given", "message"),
    [
        (["positiv"], ("negative", "positive"), False, "did you mean 'positive'"),
        ([2], ("negative", "positive"), True, "label 2 is outside 0..1, the range of the 2 names in data.labels"),
        ([-1], ("negative", "positive"), True, "label -1 is outside 0..1"),
        ([3], ("0", "1"), False, r"label 3 is none of the 2 classes of the training data \(0, 1\)"),
        ([0.5], ("0", "1"), False, "label 0.5 is neither a text nor a whole number"),
    ],
)
def test_a_label_that_is_no_class_is_named(
    values: list[Any], names: tuple[str, ...], given: bool, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        encode_labels(values, names, given, "x")


@pytest.mark.parametrize("values", [[], ["only"]])
def test_fewer_than_two_classes_are_refused(values: list[str]) -> None:
    with pytest.raises(DataError, match="needs at least two classes"):
        find_label_names(values, None, "x")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_row_may_be_larger_than_what_pyarrow_reads_at_once(tmp_path: Path, ending: str) -> None:
    long = "so good " * (3 << 17)
    rows = [{"text": "short", "label": 0}, {"text": long, "label": 1}]
    path = tmp_path / f"a.{ending}"
    if ending == "csv":
        path.write_text("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows))
    else:
        write_rows(path, rows)
    assert read(path) == rows


def test_texts_that_are_dates_stay_texts(tmp_path: Path) -> None:
    rows = [{"text": day, "label": day} for day in ("2024-05-01", "2023-05-01T10:00:00Z")]
    found = read(write_rows(tmp_path / "a.jsonl", rows))
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert [row["text"] for row in read(tmp_path / "a.json")] == [row["text"] for row in rows]
