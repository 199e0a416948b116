"""Universal checkpoints made of ours: the steps of each parameter, and the way back."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_text_model import tiny_recipe

from tlcore.checkpoint import CheckpointRef, CheckpointWriter, Piece, Row, WriterSettings
from tlcore.engine.state import parameter_table
from tlcore.storage import open_store
from tlcore.tasks import build_task
from tlcore.train.deepspeed_files import read_directory
from tlcore.train.deepspeed_import import import_deepspeed
from tlcore.train.deepspeed_universal import export_universal

pytestmark = pytest.mark.unit

STEP = 4
SHAPES = {"early": (3, 5), "late": (7,), "scale": (1,)}
STATES = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adagrad": ("sum",),
    "sgd": ("momentum_buffer",),
    "lion": ("exp_avg",),
}


def stored(
    place: Path, table: dict[str, Any], states: dict[str, tuple[str, ...]], more: dict[str, Any] | None = None
) -> str:
    """A checkpoint of these states of each trained parameter, of random numbers; `more` are scalars. Returns its URL."""
    store = open_store(f"file://{place}")
    draws = np.random.default_rng(0)
    pieces = []
    for name, facts in table.items():
        elements = int(np.prod(facts["shape"]))
        for state in ("fp32", *states[name]):
            values = draws.random(elements, np.float32)
            pieces.append(Piece(Row(name, state, 0, elements, "float32"), values.view(np.uint8)))
    scalars = {"optimizer_steps": STEP - 1, "loss_scaler": None, "step": STEP, "global_batch_size": 8, **(more or {})}
    with CheckpointWriter(store, "t000", 0, 1, 1, WriterSettings(memory_bytes=64 << 20)) as writer:
        writer.save(STEP, pieces, {"parameters": table, "scalars": scalars, "precision": "fp32"})
        writer.wait()
    return str(CheckpointRef(store.url, "t000", STEP))


def exported(tmp_path: Path, optimizer: str, more: dict[str, Any] | None = None) -> Path:
    """The universal checkpoint's folder; `more` are scalars."""
    table = {
        name: {"shape": list(shape), "dtype": "float32", "trained": True, "tied_to": None}
        for name, shape in SHAPES.items()
    }
    states = dict.fromkeys(SHAPES, STATES[optimizer])
    export_universal(stored(tmp_path / "run", table, states, more), tmp_path / "universal")
    return tmp_path / "universal" / f"global_step{STEP}_universal"


def steps(folder: Path) -> dict[str, float]:
    return {
        path.parent.name: torch.load(path, weights_only=True).item() for path in (folder / "zero").glob("*/step.pt")
    }


def test_what_joined_late_has_its_own_step_and_keeps_it_on_the_way_back(tmp_path: Path) -> None:
    """It had the step of what trained first, so that the bias correction of its moments was gone."""
    folder = exported(tmp_path, "adamw", {"late_steps": {"late": 1}})
    assert steps(folder) == {"early": 3.0, "late": 1.0, "scale": 3.0}
    found = read_directory(folder)
    assert (found.global_steps, found.optimizer_steps, found.late_steps) == (STEP, 3, {"late": 1})


@pytest.mark.parametrize("optimizer", STATES)
def test_only_what_counts_steps_says_that_some_were_skipped(tmp_path: Path, optimizer: str) -> None:
    """SGD and Lion count none, and all their steps were said to be skipped."""
    counts = optimizer in ("adamw", "adagrad")
    folder = exported(tmp_path, optimizer, {"optimizer_steps": 3 if counts else 0})
    model = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)
    assert (model["global_steps"], model["skipped_steps"]) == (STEP, 1 if counts else 0)
    assert steps(folder) == (dict.fromkeys(SHAPES, 3.0) if counts else {})
    found = read_directory(folder)
    assert (found.optimizer_steps, found.late_steps) == (3 if counts else STEP, {})
    assert found.states == set(STATES[optimizer])


def test_frozen_weights_are_never_in_memory_all_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With adapters they are nearly the whole model; they were held twice, as tensors and as what is written."""
    elements, layers = 4 << 20, 20
    store = open_store(f"file://{tmp_path}/run")
    table = {
        f"layer.{number}": {"shape": [2, elements // 2], "dtype": "float32", "trained": False, "tied_to": None}
        for number in range(layers)
    } | {
        "head": {"shape": [3], "dtype": "float32", "trained": True, "tied_to": None},
        "count": {"shape": [], "dtype": "int64", "trained": False, "tied_to": None},
        "empty": {"shape": [0, 2], "dtype": "float32", "trained": False, "tied_to": None},
    }
    scalars = {"optimizer_steps": STEP, "loss_scaler": None, "step": STEP, "global_batch_size": 8}
    with CheckpointWriter(store, "t000", 0, 1, 1, WriterSettings(memory_bytes=64 << 20)) as writer:
        frozen = [
            Piece(
                Row(f"layer.{number}", "frozen", 0, elements, "float32"),
                np.full(elements, number, np.float32).view(np.uint8),
                True,
            )
            for number in range(layers)
        ]
        frozen.append(Piece(Row("count", "buffer", 0, 1, "int64"), np.array([7]).view(np.uint8)))
        frozen.append(Piece(Row("head", "fp32", 0, 3, "float32"), np.ones(3, np.float32).view(np.uint8)))
        writer.save(STEP, frozen, {"parameters": table, "scalars": scalars, "precision": "fp32"})
        writer.wait()
    del frozen
    held: list[int] = []
    save = torch.save

    def noted(found: Any, path: Path) -> None:
        if "module" in found:
            held.append(anonymous_bytes() - before)
        save(found, path)

    monkeypatch.setattr(torch, "save", noted)
    gc.collect()
    before = anonymous_bytes()
    export_universal(str(CheckpointRef(store.url, "t000", STEP)), tmp_path / "universal")
    assert held and held[0] < layers * elements * 4 / 2
    folder = tmp_path / "universal" / f"global_step{STEP}_universal"
    module = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    assert list(module) == [f"layer.{number}" for number in range(layers)] + ["count"]
    assert all((module[f"layer.{number}"] == number).all() for number in range(layers))
    assert (module["layer.0"].shape, module["count"].shape, module["count"].item()) == ((2, elements // 2), (), 7)
    assert sorted(path.name for path in (tmp_path / "universal").iterdir()) == [
        "global_step4_universal",
        "latest_universal",
    ]


def anonymous_bytes() -> int:
    """Resident memory that is no file's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10


def test_an_import_keeps_late_steps(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    model = build_task(recipe)
    model.load_data(("train",))
    table = parameter_table(model.build_model(from_scratch=False).float())
    states = {
        name: STATES["adamw"] if facts["trained"] and facts["tied_to"] is None else () for name, facts in table.items()
    }
    late = {name: 2 for name in table if name.startswith("bert.encoder.layer.0.")}
    assert late
    url = stored(tmp_path / "run", table, states, {"late_steps": late})
    imported = import_deepspeed(export_universal(url, tmp_path / "universal"), recipe)
    _, manifest = imported.ref.open()
    assert (manifest.scalars["optimizer_steps"], manifest.scalars["late_steps"]) == (STEP - 1, late)
