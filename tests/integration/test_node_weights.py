"""Four ranks of a node, two trials each, on the real store: weights are fetched once, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.small_model import make_small_bert
from tests.stored_model import store_model
from tlcore.recipe import recipe_from_dict
from tlcore.storage import open_store

pytestmark = pytest.mark.integration
HERE = Path(__file__).parent
RANKS, TRIALS = 4, 2


def start(source, output, home, *more):
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    words = [sys.executable, str(HERE / "fetching_rank.py"), source, str(TRIALS), str(output), *more]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def ranks(source, directory, home):
    """What each of the ranks says, all started at once."""
    directory.mkdir()
    started = [start(source, directory / str(rank), home) for rank in range(RANKS)]
    for each in started:
        _, words = each.communicate(timeout=1200)
        assert each.returncode == 0, words[-3000:]
    return [json.loads((directory / str(rank)).read_text()) for rank in range(RANKS)]


def fetched(found, part):
    return Counter(key for rank in found for key in rank["asked"] if part in key)


@pytest.fixture(scope="module")
def sources(embedded_store, tmp_path_factory):
    """The same model as a prefix and as a checkpoint in the store."""
    from transformers import AutoModelForSequenceClassification

    model = make_small_bert(tmp_path_factory.mktemp("node") / "model")
    base = f"s3://tlcore/node-{secrets.token_hex(6)}"
    prefix = open_store(f"{base}/node-weights/model")
    for path in model.iterdir():
        prefix.put(path.name, path.read_bytes())
    recipe = recipe_from_dict(
        {
            "name": "node",
            "task": "text-classification",
            "model": {"source": prefix.url},
            "data": {"train": "rows.csv"},
            "storage": base,
        }
    )
    trained = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    run = open_store(f"{base}/node-weights/run")
    return {"prefix": prefix.url, "checkpoint": store_model(run, trained, recipe)}


def test_a_prefix_is_fetched_once_per_node(sources, tmp_path):
    found = ranks(sources["prefix"], tmp_path / "ranks", tmp_path / "home")
    weights = fetched(found, "safetensors")
    assert len(weights) >= 1
    assert set(weights.values()) == {1}


@pytest.mark.long
def test_a_checkpoint_is_fetched_once_per_node_also_after_its_fetcher_was_killed(sources, tmp_path):
    home = tmp_path / "home"
    killed = start(sources["checkpoint"], tmp_path / "killed", home, "slow")
    deadline = time.monotonic() + 600
    while not (tmp_path / "killed").exists() and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.1)
    assert (tmp_path / "killed").exists()
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    shelf = home / ".cache" / "tlcore" / "models"
    assert [path for path in shelf.iterdir() if path.name.startswith(".checkpoint-")] != []
    found = ranks(sources["checkpoint"], tmp_path / "ranks", home)
    chunks = fetched(found, "cas/")
    assert len(chunks) >= 1
    assert sum(bool(Counter(rank["asked"]).keys() & chunks.keys()) for rank in found) == 1
    assert len({total for rank in found for total in rank["sums"]}) == 1
    assert [path for path in shelf.iterdir() if path.name.startswith(".checkpoint-")] == []
