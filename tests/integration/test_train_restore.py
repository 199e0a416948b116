"""A restored run repeats the uninterrupted one: losses bit for bit at the same stage, closely across stages; on two gloo ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.small_model import make_small_bert

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

SAME: dict[str, dict[str, Any]] = {
    "stage0": {"deepspeed": {"zero_stage": 0}},
    "stage1": {"deepspeed": {"zero_stage": 1}},
    "stage2": {"deepspeed": {"zero_stage": 2}},
    "stage3": {"deepspeed": {"zero_stage": 3}},
    "accumulation": {"deepspeed": {"zero_stage": 2}, "train": {"micro_batch_size": 4}},
    "last_n": {"deepspeed": {"zero_stage": 2}, "transfer": {"strategy": "last_n", "n": 1}},
    "last_n_stage3": {"deepspeed": {"zero_stage": 3}, "transfer": {"strategy": "last_n", "n": 1}},
    "offload_stage2": {"deepspeed": {"zero_stage": 2, "offload_optimizer": "cpu"}},
    "offload_stage3": {"deepspeed": {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"}},
    "sgd": {"deepspeed": {"zero_stage": 1}, "train": {"optimizer": "sgd"}},
    "activation_checkpointing": {"deepspeed": {"zero_stage": 2}, "train": {"activation_checkpointing": True}},
    "bf16": {"deepspeed": {"zero_stage": 2}, "train": {"precision": "bf16"}},
}
ACROSS = [("stage1", "stage3"), ("stage3", "stage2"), ("stage0", "stage1"), ("stage2", "stage0")]


def cases() -> list[dict[str, Any]]:
    same = [{"name": name, "save": changes} for name, changes in SAME.items()]
    across = [{"name": f"{a}-{b}", "save": SAME[a], "restore": SAME[b]} for a, b in ACROSS]
    return same + across


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """Every case's losses, from one torchrun of two ranks."""
    directory = tmp_path_factory.mktemp("restore")
    model = make_small_bert(directory / "model")
    (directory / "cases.json").write_text(json.dumps(cases()))
    output = directory / "results.json"
    script = ROOT / "tests" / "integration" / "ranks_restore.py"
    arguments = [directory / "cases.json", model, f"file://{directory}/store", output]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        script,
        *arguments,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in launch], env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if line.startswith("[rank"))
    yield {result["name"]: result for result in json.loads(output.read_text())}


@pytest.mark.parametrize("name", SAME)
def test_a_restored_run_repeats_the_uninterrupted_one_bit_for_bit(results: dict[str, Any], name: str) -> None:
    result = results[name]
    assert 0 < result["step"] < len(result["whole"])
    assert result["pieced"] == result["whole"]
    assert result["pieced_metrics"] == result["whole_metrics"]
    assert len(set(result["whole"])) == len(result["whole"]), "equal losses prove nothing where the loss stands still"


@pytest.mark.parametrize("name", [f"{a}-{b}" for a, b in ACROSS])
def test_another_stage_goes_on_from_the_same_state(results: dict[str, Any], name: str) -> None:
    result = results[name]
    whole = [float.fromhex(loss) for loss in result["whole"]]
    pieced = [float.fromhex(loss) for loss in result["pieced"]]
    np.testing.assert_allclose(pieced, whole, rtol=2e-4)


def test_zero_stages_agree_with_each_other(results: dict[str, Any]) -> None:
    """Stage 0 replicates everything, as plain data parallelism does; sharding must not change the losses."""
    plain = [float.fromhex(loss) for loss in results["stage0"]["whole"]]
    for stage in ("stage1", "stage2", "stage3", "accumulation"):
        np.testing.assert_allclose([float.fromhex(loss) for loss in results[stage]["whole"]], plain, rtol=2e-2)


def test_a_checkpoint_of_any_stage_exports_to_what_it_evaluated(results: dict[str, Any], tmp_path: Path) -> None:
    """The exported directory loads in plain transformers; its own figures equal the ones the trial reported."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tlcore.train.offline import TrainedModel

    for name in ("stage1", "stage3", "last_n"):
        trained = TrainedModel(results[name]["url"])
        assert trained.evaluate("validation")["validation_loss"] == pytest.approx(
            results[name]["pieced_metrics"]["eval_loss"], rel=1e-4
        )
        exported = trained.export(tmp_path / name)
        model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
        tokens = AutoTokenizer.from_pretrained(exported)("a wonderful film", return_tensors="pt")
        scores = model(**tokens).logits.softmax(-1)[0]
        answer = trained.predict(["a wonderful film"])[0]
        assert answer["scores"]["positive"] == pytest.approx(scores[1].item(), abs=1e-5)
        assert model.config.id2label == {0: "negative", 1: "positive"}
