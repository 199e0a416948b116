"""Data too large for every process's memory: the same rows and tokens, made once on the node, mapped; and what is said."""

from __future__ import annotations

import gzip
import json
import logging
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tasks_text_generation import task_of
from tiny_text_model import write_rows

from tlcore.data import growing, on_node, read_split, reading
from tlcore.data.files import find_files
from tlcore.data.formats import filesystem, tables_of
from tlcore.data.growing import GrowingArray
from tlcore.errors import DataError
from tlcore.recipe import apply_point
from tlcore.tasks import build_task, learned_texts, telling, text_classification
from tlcore.tasks.learned_texts import told_counts
from tlcore.tasks.recent import Recent
from tlcore.tasks.tokens import TokenStore

pytestmark = pytest.mark.unit

ROWS = [{"text": f"row {number} says, well", "label": number % 3, "more": 0.5} for number in range(2000)]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything counts as large; the folder that the node then keeps data in."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(on_node, "HELD_BYTES", 0)
    monkeypatch.setattr(growing, "_HELD_BYTES", 100)
    monkeypatch.setattr(learned_texts, "_BLOCK_TOKENS", 64)
    return on_node.data_shelf()


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path, plain = folder / name, name.removesuffix(".gz")
    lines = [json.dumps(row) for row in rows]
    if plain.endswith(".parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=300)
        return path
    if plain.endswith(".jsonl"):
        content = "\n".join(lines) + "\n"
    elif plain.endswith(".json"):
        content = f"[{', '.join(lines)}]"
    else:
        between = "\t" if plain.endswith(".tsv") else ","
        cells = [[f'"{row["text"]}"', str(row["label"]), str(row["more"])] for row in rows]
        content = "\n".join(between.join(each) for each in [["text", "label", "more"], *cells]) + "\n"
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return path


FORMS = ("a.parquet", "a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.gz", "a.jsonl.gz")


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_rows_that_it_gives_in_memory(tmp_path: Path, large: Path, name: str) -> None:
    path = write(tmp_path, name, ROWS)
    found = read_split(str(path), ["text", "label", "more"], texts=["text"])
    assert found.to_list() == ROWS
    assert list(large.glob("table-*/*.arrow"))


@pytest.mark.parametrize("name", FORMS)
def test_a_file_is_read_in_blocks_of_one_schema(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, ROWS)
    [file] = find_files(str(path))
    tables = list(tables_of(filesystem(str(path)), file, ["label", "text"], block_bytes=8 << 10))
    assert len({table.schema for table in tables}) == 1
    assert pa.concat_tables(tables).column("text").to_pylist() == [row["text"] for row in ROWS]
    if name != "a.json":  # an array is read whole
        assert len(tables) > 4
        assert max(table.nbytes for table in tables) < 64 << 10


def test_types_of_json_fit_every_block(tmp_path: Path) -> None:
    """Numbers become fractions, fields come late, texts look like dates for a while."""
    rows = [
        {"text": "2024-05-01", "n": number, "turns": [{"role": "a", "said": "2024-05-01"}]} for number in range(500)
    ]
    rows += [{"text": "no date", "n": 0.5, "turns": [{"role": "b", "name": "x"}], "late": "y"} for _ in range(500)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    [file] = find_files(str(path))
    names = ["text", "n", "turns", "late"]
    tables = list(tables_of(filesystem(str(path)), file, names, block_bytes=2 << 10))
    found = pa.concat_tables(tables).to_pylist()
    assert len(tables) > 10
    assert found[0] == {
        "text": "2024-05-01",
        "n": 0.0,
        "turns": [{"role": "a", "said": "2024-05-01", "name": None}],
        "late": None,
    }
    assert found[-1] == {"text": "no date", "n": 0.5, "turns": [{"role": "b", "said": None, "name": "x"}], "late": "y"}


def test_blocks_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": 1}] * 300 + [{"text": "one"}] * 300)
    [file] = find_files(str(path))
    with pytest.raises(DataError, match=r"cannot read .*a\.jsonl as jsonl: .*text"):
        list(tables_of(filesystem(str(path)), file, ["text"], block_bytes=1 << 10))


def test_a_csvs_column_is_numbers_only_where_every_file_says_so(tmp_path: Path, large: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number, cell in enumerate(("1", "2", " 3")):
        (folder / f"{number}.csv").write_text(f"text,label\na,{cell}\n")
    assert [row["label"] for row in read_split(str(folder), ["text", "label"], texts=["text"])] == [1, 2, 3]
    (folder / "3.csv").write_text("text,label\na,x\n")
    assert [row["label"] for row in read_split(str(folder), ["text", "label"], texts=["text"])] == ["1", "2", " 3", "x"]


def test_categories_may_differ_from_block_to_block(tmp_path: Path, large: Path) -> None:
    parts = [
        pa.table({"text": pa.array([f"{name} text"] * 5), "label": pa.array([name] * 5).dictionary_encode()})
        for name in "abc"
    ]
    with pyarrow.parquet.ParquetWriter(tmp_path / "a.parquet", parts[0].schema) as sink:
        for part in parts:
            sink.write_table(part)
    [file] = find_files(str(tmp_path / "a.parquet"))
    blocks = list(tables_of(filesystem("x"), file, ["label"], block_bytes=1))
    assert len({str(block.column("label").chunk(0).dictionary) for block in blocks}) > 1
    found = read_split(str(tmp_path / "a.parquet"), ["text", "label"], texts=["text"])
    assert found.data.table.column("label").to_pylist() == [name for name in "abc" for _ in range(5)]


def test_mapped_rows_take_no_memory(tmp_path: Path, large: Path) -> None:
    path = write(tmp_path, "a.jsonl", [{"text": "x" * 10_000, "label": "a"} for _ in range(1000)])
    before = pa.total_allocated_bytes()
    found = read_split(str(path), ["text"], texts=["text"])
    assert found.data.nbytes > 10_000_000
    assert pa.total_allocated_bytes() - before < 100_000


def test_what_is_there_is_not_read_again_until_the_file_changes(
    tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "a.csv", ROWS)
    read_split(str(path), ["text"], texts=["text"])
    with monkeypatch.context() as patch:
        patch.setattr(on_node, "tables_of", lambda *_: pytest.fail("read again"))
        assert len(read_split(str(path), ["text"], texts=["text"])) == len(ROWS)
    write(tmp_path, "a.csv", ROWS[:7])
    assert len(read_split(str(path), ["text"], texts=["text"])) == 7


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"text,label\na,b\n", "has no column 'more'"),
        ("a.csv", b"text,more\n", "has no rows"),
        ("a.csv", b"text,more\n,1\n", "column 'text' is empty in 1 of 1 rows"),
        ("a.jsonl", b'{"text": "a"}\n', "has no column 'more'"),
        ("a.jsonl", b'{"text": "a", "more": \n', "cannot read"),
        ("a.jsonl", b"\n \n\n", "is empty"),
        ("a.parquet", b"nothing", "cannot read"),
    ],
)
def test_unusable_files_get_the_message_that_they_get_in_memory(
    tmp_path: Path, large: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_split(str(tmp_path / name), ["text", "more"], texts=["text"])
    assert not [path for path in large.iterdir() if path.is_dir() and not (path / ".tlcore-seal").is_file()]


def test_a_disk_that_takes_nothing_is_told_with_the_place(tmp_path: Path, large: Path) -> None:
    large.parent.mkdir(parents=True)
    large.write_text("a file where a folder should be")
    path = write(tmp_path, "a.csv", ROWS)
    with pytest.raises(DataError, match=rf"{path} is too large to be held in memory, and cannot be kept .*{large}"):
        read_split(str(path), ["text"], texts=["text"])


TASKS: dict[str, dict[str, Any]] = {
    "bert/text-classification": {"max_length": 6},
    "bert/masked-language-modeling": {"max_length": 6},
    "bert/token-classification": {"max_length": 6},
    "bert/question-answering": {"max_length": 40},
    "t5/summarization": {"max_length": 6, "max_target_length": 3},
    "gpt2/text-generation": {"max_length": 6},
    "llama/text-generation": {"max_length": 64, "packing": True},
}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_give_the_batches_that_they_give_of_what_they_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def batches(home: Path) -> tuple[Any, ...]:
        task = task_of(home, name, validation=0.25, **TASKS[name])
        sizes, weights = task.load_data(), task.weights("train")
        found = {
            split: {key: value.tolist() for key, value in task.collate(split, range(count)).items()}
            for split, count in sizes.items()
            if split != "train" or not name.endswith("masked-language-modeling")  # whose training draws at random
        }
        told = None if weights is None else weights.tolist()
        return sizes, found, [task.lengths(split).tolist() for split in sizes], told

    held = batches(tmp_path / "held")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(on_node, "HELD_BYTES", 0)
    monkeypatch.setattr(growing, "_HELD_BYTES", 100)
    monkeypatch.setattr(learned_texts, "_BLOCK_TOKENS", 64)
    assert batches(tmp_path / "mapped") == held


def test_tokens_are_made_once_and_what_was_cut_is_said_by_who_finds_them(
    tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = task_of(tmp_path, "bert/text-classification", max_length=6, validation=0.25)._recipe  # type: ignore[attr-defined]
    lines = []
    for _ in range(2):  # two processes, as far as this library knows
        monkeypatch.setattr(text_classification, "_prepared", Recent(4))
        monkeypatch.setattr(telling, "_TOLD", set())
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            build_task(recipe).load_data()
            build_task(recipe).load_data()
        lines.append([record.message for record in caplog.records if "were cut" in record.message])
        monkeypatch.setattr(text_classification, "tokenize_texts", lambda *_: pytest.fail("tokenized again"))
    assert lines[0] == lines[1] and len(lines[0]) == 1
    [tokens] = [path for path in large.iterdir() if path.is_dir() and path.name.startswith("tokenizedtexts-")]
    assert {path.name for path in tokens.glob("*.npy")} == {"tokens.tokens.npy", "tokens.offsets.npy"}


def test_another_length_or_tokenizer_gives_other_tokens(
    tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = task_of(tmp_path, "bert/text-classification", validation=0.25)._recipe  # type: ignore[attr-defined]

    def kept(most: int) -> int:
        monkeypatch.setattr(text_classification, "_prepared", Recent(4))
        build_task(apply_point(recipe, {"data.max_length": most})).load_data()
        return len([path for path in large.iterdir() if path.is_dir() and path.name.startswith("tokenizedtexts-")])

    assert [kept(6), kept(7), kept(6)] == [1, 2, 2]
    settings = Path(recipe.model.source) / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "unk_token": "[PAD]"}))
    assert kept(6) == 3


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    seed=st.integers(0, 99),
    block=st.integers(1, 12),
)
def test_told_tokens_are_counted_alike_in_any_blocks(lengths: list[int], seed: int, block: int) -> None:
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    learned = np.random.default_rng(seed).random(int(offsets[-1])) < 0.5
    expected = [int(learned[start + 1 : end].sum()) for start, end in pairwise(offsets)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learned_texts, "_BLOCK_TOKENS", block)
        found = told_counts(TokenStore(np.zeros(len(learned), np.int32), offsets), learned)
    assert found.tolist() == expected


@given(parts=st.lists(st.lists(st.integers(-5, 5), max_size=30), max_size=20), held=st.sampled_from([1, 40, 1 << 20]))
def test_a_growing_array_is_what_was_appended(parts: list[list[int]], held: int) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        patch.setenv("HOME", home)
        patch.setattr(growing, "_HELD_BYTES", held)
        array = GrowingArray(np.int64)
        for part in parts:
            array.append(np.array(part, dtype=np.int64))
        assert array.array().tolist() == [value for part in parts for value in part]


def test_only_large_places_are_kept_on_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = write(tmp_path, "a.csv", ROWS)
    monkeypatch.setattr(reading, "tables_on_node", lambda *_: pytest.fail("not large"))
    assert len(read_split(str(path), ["text"], texts=["text"])) == len(ROWS)
    task_of(tmp_path, "bert/text-classification", validation=0.25).load_data()
    assert not (tmp_path / "home").exists()
