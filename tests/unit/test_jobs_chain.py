"""A chain of recipes: what each is run with, and what stops it. Real runs are in the integration tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import chain as job

pytestmark = pytest.mark.unit

RECIPE = """
name: {name}
task: text-classification
model: {{source: base}}
data: {{train: s3://tlcore/data/{name}/train.parquet, test: elsewhere.csv}}
storage: s3://tlcore/runs
"""
SEARCH = "search: {space: {train.learning_rate: {choice: [0.1, 0.2]}}, trials: 2}\n"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The words of each command that the chain ran; each run ends with a checkpoint of its recipe's name."""
    commands: list[list[str]] = []
    monkeypatch.setattr(job.cli, "main", lambda words: commands.append(words) or 0)
    monkeypatch.setattr(
        job,
        "_link",
        lambda recipe: job.Link(recipe.name, recipe.model.source, f"{recipe.storage}/{recipe.name}", {"loss": 0.5}),
    )
    return commands


def written(directory: Path, *names: str, search: str = "") -> list[str]:
    for name in names:
        (directory / f"{name}.yaml").write_text(RECIPE.format(name=name) + search)
    return [str(directory / f"{name}.yaml") for name in names]


def settings(words: list[str]) -> dict[str, str]:
    given = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    return dict(setting.split("=", 1) for setting in given)


def test_each_starts_from_the_checkpoint_of_the_one_before(
    tmp_path: Path, ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main([*written(tmp_path, "a", "b", "c"), "--set", "train.seed=1"]) == 0
    assert [words[0] for words in ran] == ["train"] * 3
    assert [settings(words) for words in ran] == [
        {"train.seed": "1"},
        {"train.seed": "1", "model.source": "s3://tlcore/runs/a"},
        {"train.seed": "1", "model.source": "s3://tlcore/runs/b"},
    ]
    said = capsys.readouterr().out
    assert "a: loss 0.5000\n  from base\n  to   s3://tlcore/runs/a\n" in said
    assert "c: loss 0.5000\n  from s3://tlcore/runs/b\n" in said


def test_storage_and_data_are_given_once(tmp_path: Path, ran: list[list[str]]) -> None:
    runs = str(tmp_path / "runs")
    assert job.main([*written(tmp_path, "a", "b"), "--storage", runs, "--data", "/data/"]) == 0
    assert all(words[-2:] == ["--storage", runs] for words in ran)
    assert settings(ran[1]) == {"data.train": "/data/b/train.parquet", "model.source": f"{runs}/a"}


def test_a_recipe_with_a_search_is_swept(tmp_path: Path, ran: list[list[str]]) -> None:
    assert job.main(written(tmp_path, "a", search=SEARCH)) == 0
    assert ran[0][0] == "sweep"


def test_a_failure_ends_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(job.cli, "main", lambda words: ran.append(words) or 130)
    assert job.main(written(tmp_path, "a", "b")) == 130
    assert len(ran) == 1


def test_what_cannot_run_is_said_before_anything_does(
    tmp_path: Path, ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    files = written(tmp_path, "a", "b")
    assert job.main([*files, files[0]]) == 2
    assert "two recipes of the chain are named 'a'" in capsys.readouterr().err
    (tmp_path / "b.yaml").write_text(RECIPE.format(name="b") + "train: {epochs: 0}\n")
    assert job.main(files) == 2
    assert "train.epochs" in capsys.readouterr().err
    assert not ran
