"""Benches that prepare the snippets keep standard output for their figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs import prepare_sentiment
from jobs.bench.snippets import prepare_snippets

pytestmark = pytest.mark.unit


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []

    def main(arguments: list[str]) -> int:
        sys.stdout.write("2,000 train\n")
        calls.append(arguments)
        return 0 if arguments[-1] == "movie" else 3

    monkeypatch.setattr(prepare_sentiment, "main", main)
    return calls


def test_what_the_preparing_says_is_no_figure(
    asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_snippets(tmp_path) == tmp_path / "movie"
    assert asked == [["--destination", str(tmp_path), "--domain", "movie"]]
    printed = capsys.readouterr()
    assert printed.out == "" and "2,000 train" in printed.err


def test_snippets_that_cannot_be_had_end_the_bench(asked: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the product snippets could not be prepared: exit status 3"):
        prepare_snippets(tmp_path, "product")
