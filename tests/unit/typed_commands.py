"""Commands as typed, and an untrained checkpoint for them: for the tests of commands that need a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_text_model import tiny_recipe

from tests.stored_model import store_model
from tlcore import cli
from tlcore.storage import open_store
from tlcore.tasks import build_task


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the tests' own: its allocator and threads stay as they are; DeepSpeed says nothing of its device."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("tlcore.engine.process.prepare_process", lambda threads=1: None)


def store_untrained(home: Path) -> str:
    recipe = tiny_recipe(home)
    return store_model(open_store(f"file://{home}/run"), build_task(recipe).build_model(from_scratch=False), recipe)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err
