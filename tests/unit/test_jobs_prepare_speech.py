"""The speech job's rules on made-up packages; the real ones need a package index."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import prepare_speech as job
from jobs import prepared
from tlcore.errors import DataError
from tlcore.storage import open_store

pytestmark = pytest.mark.unit


def lay(root: Path, lines: dict[str, str], missing: tuple[str, ...] = ()) -> Path:
    texts = root / job._TEXT_FILE
    texts.parent.mkdir(parents=True)
    listing = "; Core Asterisk Sounds in English\n\n" + "".join(f"{name}: {text}\n" for name, text in lines.items())
    texts.write_bytes(gzip.compress(listing.encode()))
    for name in lines:
        path = root / job._VOICE / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        if name not in missing:
            path.write_bytes(name.encode())
    return root


def test_only_what_is_said_and_has_a_file_is_taken(tmp_path: Path) -> None:
    lines = {"b": "Hello: you.", "a": "One", "beep": "[a tone]", "leave": "<beep>", "gone": "Gone.", "dots": "..."}
    found = job.read_prompts(lay(tmp_path, lines, missing=("gone",)))
    assert [(prompt.id, prompt.text, prompt.audio) for prompt in found] == [
        ("a", "One", b"a"),
        ("b", "Hello: you.", b"b"),
    ]


def test_the_same_text_stands_on_one_side_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "TEST_PROMPTS", 10)
    prompts = [job.Prompt(f"{n}-{take}", f"Text {n}{'.' * take}", b"") for n in range(20) for take in range(2)]
    train, test = job.cut(prompts)
    assert (len(train), len(test)) == (30, 10)
    assert not {prompt.words for prompt in train} & {prompt.words for prompt in test}
    assert job.cut(prompts[::-1])[1][0].words == test[0].words
    with pytest.raises(DataError, match="there are 4 prompts, too few"):
        job.cut(prompts[:4])


def test_what_is_written_reads_back_and_is_known_again(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    assert not prepared.already_there(store, job._source())
    parts = ([job.Prompt("a", "one", b"sound")], [job.Prompt("b", "two", b"other")])
    files = {name: job.to_parquet(part, job.COLUMNS) for name, part in zip(job.FILES, parts, strict=True)}
    prepared.write(store, {**files, f"{job.MODEL_FOLDER}/config.json": b"{}"}, job._source())
    assert pq.read_table(io.BytesIO(store.get("train.parquet"))).to_pylist() == [
        {"id": "a", "text": "one", "audio": b"sound"}
    ]
    assert store.get("whisper-tiny-en/config.json") == b"{}"
    assert prepared.already_there(store, job._source())
    store.put("whisper-tiny-en/config.json", b"[]")
    assert not prepared.already_there(store, job._source())


def test_the_command_prints_one_message_and_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--destination", "gs://nowhere/x"]) == 2
    assert "scheme 'gs', which is not known" in capsys.readouterr().err
