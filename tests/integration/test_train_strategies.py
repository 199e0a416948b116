"""Every transfer strategy at every ZeRO stage trains as plain torch does; a gradual schedule is cut and restored anywhere in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rank_server import start

from tests.small_model import make_small_bert

pytestmark = pytest.mark.integration

DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"
SCHEDULE = [0.2, 0.5, 0.8]
JOINS = [2, 4, 6]
"""Steps of seven before which the second block, the first and the embeddings join."""
JOINS_BY_DECAY = [2, 4, 5]
"""The same, evenly up to 0.7 of the steps."""
TRANSFERS: dict[str, dict[str, Any]] = {
    "full": {},
    "named": {"freeze": ["embeddings", "encoder.0"]},
    "layerwise": {"strategy": "layerwise", "decay": 0.6},
    "layerwise-named": {"strategy": "layerwise", "train": ["encoder.1", "head"], "freeze": "*.LayerNorm"},
    "bitfit": {"strategy": "bitfit"},
    "dora": {"strategy": "dora", "rank": 3},
    "qlora": {"strategy": "qlora", "rank": 3},
    "gradual": {"strategy": "gradual", "schedule": SCHEDULE},
    "gradual-decay": {"strategy": "gradual", "schedule": 0.7, "decay": 0.8},
}


def case(kind: str, name: str, transfer: str, stage: int, *, then: Any = None, until: float = 0, **train: Any) -> Any:
    changes = {
        "transfer": TRANSFERS[transfer],
        "deepspeed": {"zero_stage": stage},
        "train": {"epochs": 1, "global_batch_size": 24, "learning_rate": 4e-3, **train},
    }
    return {"kind": kind, "name": name, "changes": changes, "then": then or {}, "until": until}


def named(cases: list[Any]) -> dict[str, Any]:
    return {each["name"]: each for each in cases}


WHOLE = named(
    [case("whole", f"{name}-{stage}", name, stage) for name in TRANSFERS for stage in (1, 2, 3)]
    + [
        case("whole", f"layerwise-{optimizer}-{stage}", "layerwise", stage, optimizer=optimizer)
        for optimizer, stage in (
            ("adam", 1),
            ("sgd", 2),
            ("lion", 3),
            ("adagrad", 3),
            ("muon", 0),
            ("muon", 1),
            ("muon", 2),
            ("muon", 3),
        )
    ]
    + [
        case("whole", f"gradual-{optimizer}", "gradual", stage, optimizer=optimizer)
        for optimizer, stage in (("sgd", 1), ("muon", 3))
    ]
)
PIECED = named(
    [case("pieced", f"between-{stage}", "gradual", stage, until=0.4) for stage in (0, 1, 2, 3)]
    + [
        case("pieced", "where-a-block-joins-2", "gradual", 2, until=0.5),
        case("pieced", "bf16-2", "gradual", 2, until=0.7, precision="bf16"),
        case("pieced", "lazily-3", "gradual-decay", 3, until=0.5),
        case("pieced", "cut-dora-3", "dora", 3, until=0.5),
        case("pieced", "cut-qlora-2", "qlora", 2, until=0.5, precision="bf16"),
        case("pieced", "cut-qlora-3", "qlora", 3, until=0.5),
        case("pieced", "cut-layerwise-1", "layerwise", 1, until=0.5),
    ]
)
PIECED["lazily-3"]["changes"]["checkpoint"] = {"snapshot": "lazy", "every_steps": 1, "when_late": "wait"}
ACROSS = named(
    [
        case("pieced", f"{name}-2-to-3", name, 2, until=0.4, then={"deepspeed": {"zero_stage": 3}})
        for name in ("gradual", "qlora")
    ]
)
FEATURES = named([case("features", f"features-{stage}", "full", stage) for stage in (2, 3)])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("strategies")
    model = make_small_bert(directory / "model")
    config = json.loads((model / "config.json").read_text())
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config | no_dropout))
    test_data = shutil.copy(DATA, directory / "test.csv")
    place = {"test_data": str(test_data), "model": str(model), "storage": f"file://{directory}/store"}
    cases = [{**each, **place} for each in (*WHOLE.values(), *PIECED.values(), *ACROSS.values(), *FEATURES.values())]
    (found,) = start("ranks_strategies", [{"world": 2, "cases": cases}], directory / "ranks")
    return {each["name"]: result for each, result in zip(cases, found, strict=True)}


@pytest.mark.parametrize("name", WHOLE)
def test_losses_are_plain_torchs(results: dict[str, Any], name: str) -> None:
    found = results[name]
    assert found["losses"] == pytest.approx(found["plain"], rel=2e-4)
    assert len(set(found["losses"])) == 7


@pytest.mark.parametrize("name", [name for name in WHOLE if "muon" not in name])
def test_optimizer_state_is_kept_for_what_trains_and_nothing_else(results: dict[str, Any], name: str) -> None:
    assert results[name]["moments"] == results[name]["trained"]


@pytest.mark.parametrize("name", WHOLE)
def test_more_trains_exactly_where_the_schedule_says(results: dict[str, Any], name: str) -> None:
    trained = results[name]["trained"]
    joins = JOINS_BY_DECAY if name.startswith("gradual-decay") else JOINS if name.startswith("gradual") else []
    assert [step for step in range(1, 7) if trained[step] > trained[step - 1]] == joins
    assert sorted(trained) == trained


def test_the_writer_orders_the_copies_of_each_engine_that_follows(results: dict[str, Any]) -> None:
    """On a GPU they went on a stream that the writer did not know, once a block had joined."""
    assert all(results[name]["copies_are_ordered"] for name in WHOLE)


def test_all_of_it_trains_once_the_schedule_is_through(results: dict[str, Any]) -> None:
    assert all(results["gradual-2"]["parameters"].values())
    assert results["gradual-2"]["trained"][-1] == results["full-2"]["trained"][-1]
    assert results["gradual-2"]["trained"][0] < results["full-2"]["trained"][0] / 5


@pytest.mark.parametrize("name", PIECED)
def test_cut_and_restored_the_losses_are_the_same_bit_for_bit(results: dict[str, Any], name: str) -> None:
    found = results[name]
    assert found["step"] == {0.4: 3, 0.5: 4, 0.7: 5}[PIECED[name]["until"]]
    assert found["pieced"] == found["whole"]


@pytest.mark.parametrize("name", ACROSS)
def test_a_strategy_goes_on_at_another_stage(results: dict[str, Any], name: str) -> None:
    found = results[name]
    whole, pieced = ([float.fromhex(loss) for loss in found[key]] for key in ("whole", "pieced"))
    assert pieced == pytest.approx(whole, rel=2e-4)


@pytest.mark.parametrize("name", FEATURES)
def test_cached_features_change_nothing_but_the_time(results: dict[str, Any], name: str) -> None:
    found = results[name]
    plain, first, again = found["losses"]
    assert first == pytest.approx(plain, rel=1e-5)
    assert again == first
    for key in ("metrics", "tests"):
        assert all(each == pytest.approx(found[key][0], rel=1e-5) for each in found[key])
    assert found["computed"] == [["train", "validation"]] * 2
    files = [f"{split}-{rank}-of-2.safetensors" for split in ("train", "validation") for rank in (0, 1)]
    assert found["kept"] == ["DONE.json", *files]
