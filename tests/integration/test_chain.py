"""Two recipes in a chain on real Ray: the second trains from the first one's checkpoint; a chain that ended runs nothing again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import chain
from tests.small_model import make_small_bert
from tlcore.checkpoint import CheckpointRef
from tlcore.report.runs import find_run
from tlcore.storage import list_runs

pytestmark = pytest.mark.integration
DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"


def written(directory: Path, name: str, seed: int) -> str:
    recipe = {
        "name": name,
        "task": "text-classification",
        "model": {"source": str(directory / "model")},
        "data": {"train": str(DATA), "validation": 0.2, "labels": ["negative", "positive"], "max_length": 16},
        "train": {"epochs": 1, "global_batch_size": 16, "learning_rate": 1e-3, "seed": seed},
        "resources": {"gpus_per_worker": 0},
        "storage": "nowhere",
    }
    path = directory / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return str(path)


def test_the_second_goes_on_from_the_first(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where exports go
    make_small_bert(tmp_path / "model")
    storage = str(tmp_path / "store")
    words = [written(tmp_path, "first", 0), written(tmp_path, "second", 1), "--storage", storage]
    assert chain.main(words) == 0
    assert "second: eval_accuracy" in capfd.readouterr().out
    first, second = (find_run(name, storage) for name in ("first", "second"))
    source = CheckpointRef.parse(second.identity()["recipe"]["model"]["source"])
    assert (source.run_url, source.trial) == (first.url, "t000")
    assert source.open()[1].step == source.step == 10
    assert chain.main([*words, "--resume"]) == 0
    assert len(list_runs(storage)) == 2
