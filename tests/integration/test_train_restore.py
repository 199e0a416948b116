"""A restored trial repeats the uninterrupted one: losses bit for bit at the same stage, closely at another; on real gloo ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_server import start

from tests.small_model import make_small_bert
from tlcore.storage import ObjectStore

pytestmark = pytest.mark.integration

SAME: dict[str, dict[str, Any]] = {
    "stage1": {"deepspeed": {"zero_stage": 1}},
    "stage3": {"deepspeed": {"zero_stage": 3}},
    "accumulation": {"deepspeed": {"zero_stage": 2}, "train": {"micro_batch_size": 4}},
    "last_n_stage3": {"deepspeed": {"zero_stage": 3}, "transfer": {"strategy": "last_n", "n": 1}},
}
SAME_LONG: dict[str, dict[str, Any]] = {
    "stage0": {"deepspeed": {"zero_stage": 0}},
    "stage2": {"deepspeed": {"zero_stage": 2}},
    "last_n": {"deepspeed": {"zero_stage": 2}, "transfer": {"strategy": "last_n", "n": 1}},
    "offload_stage2": {"deepspeed": {"zero_stage": 2, "offload_optimizer": "cpu"}},
    "offload_stage3": {"deepspeed": {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}},
    "sgd": {"deepspeed": {"zero_stage": 1}, "train": {"optimizer": "sgd"}},
    "activation_checkpointing": {"deepspeed": {"zero_stage": 2}, "train": {"activation_checkpointing": True}},
    "bf16": {"deepspeed": {"zero_stage": 2}, "train": {"precision": "bf16"}},
}
ACROSS = [("stage1", "stage3")]
ACROSS_LONG = [("stage3", "stage2"), ("stage0", "stage1"), ("stage2", "stage0")]
PLAIN = {"deepspeed": {"zero_stage": 2}}


def repeats(names: list[str], across: list[tuple[str, str]]) -> list[dict[str, Any]]:
    every = SAME | SAME_LONG
    same = [{"kind": "repeat", "name": name, "save": every[name]} for name in names]
    pairs = [{"kind": "repeat", "name": f"{a}-{b}", "save": every[a], "restore": every[b]} for a, b in across]
    return same + pairs


def run_on(groups: list[tuple[int, list[dict[str, Any]]]], directory: Path, storage: str) -> list[list[Any]]:
    model = str(make_small_bert(directory / "model"))
    given = [
        {"world": world, "cases": [{**case, "model": model, "storage": storage} for case in cases]}
        for world, cases in groups
    ]
    return start("ranks_restore", given, directory / "ranks")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything this file needs, from one launch. The trial of `seen` changes from two ranks to three to one."""
    directory = tmp_path_factory.mktemp("restore")
    storage = f"file://{directory}/store"
    seen = {"kind": "seen", "save": PLAIN, "url": f"{storage}/restore/seen"}
    first = [
        *repeats(list(SAME), ACROSS),
        {"kind": "damaged", "name": "damaged", "save": {"deepspeed": {"zero_stage": 3}}},
        {"kind": "twice", "name": "twice", "save": {"deepspeed": {"zero_stage": 3}}},
        {**seen, "resume": 0, "steps": 3},
    ]
    later = [(3, [{**seen, "resume": 3, "steps": 5}]), (1, [{**seen, "resume": 8, "steps": 6}])]
    done = run_on([(2, first), *later], directory, storage)
    named = {result["name"]: result for result in done[0] if "name" in result}
    return {**named, "damaged": done[0][-3], "twice": done[0][-2], "seen": [done[0][-1], done[1][0], done[2][0]]}


def check_repeated(result: dict[str, Any]) -> None:
    assert 0 < result["step"] < len(result["whole"])
    assert result["pieced"] == result["whole"]
    assert result["pieced_metrics"] == result["whole_metrics"]
    assert len(set(result["whole"])) == len(result["whole"]), "equal losses prove nothing where the loss stands still"


def check_close(result: dict[str, Any]) -> None:
    whole = [float.fromhex(loss) for loss in result["whole"]]
    pieced = [float.fromhex(loss) for loss in result["pieced"]]
    np.testing.assert_allclose(pieced, whole, rtol=2e-4)


@pytest.mark.parametrize("name", SAME)
def test_a_restored_run_repeats_the_uninterrupted_one_bit_for_bit(results: dict[str, Any], name: str) -> None:
    check_repeated(results[name])


@pytest.mark.parametrize("name", [f"{a}-{b}" for a, b in ACROSS])
def test_another_stage_goes_on_from_the_same_state(results: dict[str, Any], name: str) -> None:
    check_close(results[name])


@pytest.mark.long
def test_every_kind_of_trial_is_repeated(tmp_path: Path, s3_store: ObjectStore) -> None:
    cases = repeats(list(SAME_LONG), ACROSS_LONG)
    [done] = run_on([(2, cases)], tmp_path, s3_store.url)
    for case, result in zip(cases, done, strict=True):
        (check_close if "restore" in case else check_repeated)(result)


def test_zero_stages_agree_with_each_other(results: dict[str, Any]) -> None:
    plain = [float.fromhex(loss) for loss in results["stage1"]["whole"]]
    for stage in ("stage3", "accumulation"):
        np.testing.assert_allclose([float.fromhex(loss) for loss in results[stage]["whole"]], plain, rtol=2e-2)


def test_each_sample_is_seen_once_an_epoch_though_the_world_size_changes(results: dict[str, Any]) -> None:
    """Two epochs in three sittings, of two ranks, three, and one."""
    sittings = results["seen"]
    samples, steps = sittings[0]["samples"], sittings[0]["steps_per_epoch"]
    assert steps == 7, "the sittings of 3, 5 and 6 steps are meant to be two epochs"
    taken = Counter(index for sitting in sittings for rank in sitting["taken"] for index in rank)
    assert taken == Counter(dict.fromkeys(range(samples), 2))
    first = Counter(index for rank in sittings[0]["taken"] for index in rank)
    assert max(first.values()) == 1
    assert [len(sitting["taken"]) for sitting in sittings] == [2, 3, 1]
    assert all(rank for sitting in sittings for rank in sitting["taken"])


def test_all_ranks_fall_back_though_one_alone_reads_the_damaged_chunk(results: dict[str, Any]) -> None:
    assert results["damaged"]["steps"] == [1, 1]


def test_a_restore_after_another_one_leaves_nothing_of_it(results: dict[str, Any]) -> None:
    """Stage 3 gathers small weights for good: the first forward pass ran on those of the damaged checkpoint."""
    once, again = results["twice"]["losses"]
    assert once == again


def test_a_fallback_is_told_once_in_the_history_and_in_the_next_report(results: dict[str, Any]) -> None:
    damaged = results["damaged"]
    [told] = damaged["report"]
    assert (told["instead"], told["step"]) == (2, 1)
    assert damaged["key"] in told["reason"]
    assert damaged["next_report"] == []
    assert damaged["history"] == [{"kind": "fell_back", "step": 1, "passed_over": [told]}]


def test_where_nothing_is_intact_no_rank_begins_anew_in_silence(results: dict[str, Any]) -> None:
    said = results["damaged"]["nothing_intact"]
    assert len(said) == 2
    for text in said:
        assert "none of its checkpoints is intact: " in text
        assert "step 4: cas/" in text
        assert "step 3: cas/" in text


def test_a_checkpoint_of_any_stage_exports_to_what_it_evaluated(results: dict[str, Any], tmp_path: Path) -> None:
    """The exported directory loads in plain transformers; its own figures equal the ones the trial reported."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tlcore.train.export import export_checkpoint
    from tlcore.train.offline import TrainedModel

    for name in ("stage1", "stage3", "last_n_stage3"):
        trained = TrainedModel(results[name]["url"])
        assert trained.evaluate("validation")["validation_loss"] == pytest.approx(
            results[name]["pieced_metrics"]["eval_loss"], rel=1e-4
        )
        exported = export_checkpoint(results[name]["url"], str(tmp_path / name))
        model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
        tokens = AutoTokenizer.from_pretrained(exported)("a wonderful film", return_tensors="pt")
        scores = model(**tokens).logits.softmax(-1)[0]
        answer = trained.predict(["a wonderful film"])[0]
        assert answer["scores"]["positive"] == pytest.approx(scores[1].item(), abs=1e-5)
        assert model.config.id2label == {0: "negative", 1: "positive"}
