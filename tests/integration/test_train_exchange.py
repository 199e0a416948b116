"""Training states exchanged with plain DeepSpeed in both directions, and LoRA under every ZeRO stage; on two gloo ranks."""

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
from tlcore.train.deepspeed_files import DeepSpeedCheckpoint, read_directory

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
MOMENTS = {"stage2_sgd": "momentum_buffer", "stage3_lion": "exp_avg"}
PLAIN = ("stage1", "stage2", "stage3", "stage1_last_n", "stage3_last_n", "stage1_bf16", "stage3_bf16", *MOMENTS)
STEPS = 3
BYTES_PER_TRAINED = 12
"""Master and two moments in fp32."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exchange")


@pytest.fixture(scope="module")
def results(home: Path) -> Iterator[dict[str, Any]]:
    """Every case's losses, from one torchrun of two ranks."""
    model = make_small_bert(home / "model")
    output = home / "results.json"
    script = ROOT / "tests" / "integration" / "ranks_exchange.py"
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *(script, model, home, output),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in launch], env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if line.startswith("[rank"))
    yield json.loads(output.read_text())


def numbers(losses: list[str]) -> list[float]:
    found = [float.fromhex(loss) for loss in losses]
    assert len(set(found)) == len(found) == STEPS, "equal losses prove nothing where the loss stands still"
    return found


@pytest.mark.parametrize("name", PLAIN)
def test_what_deepspeed_trained_goes_on_here_with_the_same_losses(results: dict[str, Any], name: str) -> None:
    result = results[name]
    np.testing.assert_allclose(numbers(result["here"]), numbers(result["there"]), rtol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_masters_and_moments_are_taken_over_bit_for_bit(results: dict[str, Any], name: str) -> None:
    """Compared with what DeepSpeed's own conversion to fp32 makes of the directory, and with its optimizer files."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    theirs = get_fp32_state_dict_from_zero_checkpoint(results[name]["folder"])
    trained = whole_state(results[name]["url"], ("fp32",))
    kept = whole_state(results[name]["url"], ("frozen", "buffer"))
    # What is frozen DeepSpeed's script knows from stage 2 on.
    assert set(trained) <= set(theirs) <= set(trained) | set(kept)
    for parameter, values in theirs.items():
        ours = trained[parameter] if parameter in trained else kept[parameter]
        np.testing.assert_array_equal(ours, values.detach().numpy().reshape(-1))
    assert bool(kept) == name.endswith("last_n")
    assert whole_state(results[name]["url"], (MOMENTS.get(name, "exp_avg_sq"),)), "no moments came along"


def whole_state(url: str, states: tuple[str, ...]) -> dict[str, Any]:
    """One state of every parameter that has one of these, whole, by name."""
    from tlcore.checkpoint import CheckpointReader, CheckpointRef, Piece, Row

    store, manifest = CheckpointRef.parse(url).open()
    reader = CheckpointReader(store, manifest)
    pieces = []
    for name, facts in manifest.parameters.items():
        for state in states:
            if facts.tied_to is None and state in reader.states(name):
                row = Row(name, state, 0, facts.elements, facts.dtype)
                pieces.append(Piece(row, np.empty(row.size_bytes, dtype=np.uint8)))
    reader.read_into(pieces)
    return {piece.row.parameter: piece.data.view(piece.row.dtype) for piece in pieces}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_universal_checkpoint_goes_on_in_plain_deepspeed(results: dict[str, Any], stage: int) -> None:
    result = results["universal"]
    np.testing.assert_allclose(numbers(result[f"stage{stage}"]), numbers(result["here"]), rtol=1e-6)
    assert result[f"scheduler{stage}"] == 2 * STEPS - 1


def test_a_universal_checkpoint_comes_back_whole(results: dict[str, Any]) -> None:
    result = results["universal"]
    assert result["back"] == result["here"]
    for states in (("fp32", "frozen", "buffer"), ("exp_avg",), ("exp_avg_sq",)):
        there, here = whole_state(result["url"], states), whole_state(result["back_url"], states)
        assert set(there) == set(here)
        assert all(np.array_equal(values, here[name]) for name, values in there.items())


@pytest.mark.parametrize("name", ["stage1_last_n", "stage3_last_n"])
def test_what_deepspeeds_own_converter_makes_is_read_alike(results: dict[str, Any], name: str, tmp_path: Path) -> None:
    from argparse import Namespace

    from deepspeed.checkpoint.ds_to_universal import main

    folder = Path(results[name]["folder"])
    words = {"input_folder": str(folder / f"global_step{STEPS}"), "output_folder": str(tmp_path / "universal")}
    flags = {"keep_temp_folder": False, "strict": True, "inject_missing_state": True}
    main(Namespace(num_extract_workers=1, num_merge_workers=1, **words, **flags))
    before, after = (pieced_together(read_directory(place)) for place in (folder, tmp_path / "universal"))
    assert set(before) == set(after)
    for key, values in before.items():
        np.testing.assert_array_equal(values, after[key])


def pieced_together(found: DeepSpeedCheckpoint) -> dict[tuple[str, str], Any]:
    """Every state of every parameter, and what was kept, whole."""
    whole: dict[tuple[str, str], Any] = {
        (name, "kept"): np.concatenate([part.reshape(-1).numpy() for part in parts])
        for name, parts in found.kept.items()
    }
    for each in sorted(found.fragments, key=lambda fragment: fragment.start):
        key = (each.parameter, each.state)
        whole[key] = np.concatenate([whole.get(key, np.empty(0, np.float32)), each.values.numpy()])
    return whole | {("", "step"): np.array([found.optimizer_steps, found.global_steps])}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_lora_is_restored_bit_for_bit(results: dict[str, Any], stage: int) -> None:
    result = results[f"lora{stage}"]
    assert result["pieced"] == result["whole"]
    assert numbers(result["whole"])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_lora_trains_its_updates_and_the_head_alone(results: dict[str, Any], stage: int) -> None:
    trained = results[f"lora{stage}"]["trained"]
    assert {name for name in trained if ".lora_" not in name} == {
        *("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias")
    }
    assert len([name for name in trained if ".lora_" in name]) == 2 * 2 * 6


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_second_lora_save_is_as_large_as_what_is_trained(results: dict[str, Any], stage: int) -> None:
    result = results[f"lora{stage}"]
    trained_bytes = BYTES_PER_TRAINED * result["elements"]
    assert trained_bytes <= result["second_bytes"] <= 1.02 * trained_bytes
    assert result["first_bytes"] > 5 * result["second_bytes"], "the frozen base must outweigh the updates"


def test_lora_exports_to_what_it_evaluated(results: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tlcore.train.export import export_checkpoint
    from tlcore.train.offline import TrainedModel

    trained = TrainedModel(results["lora3"]["url"])
    exported = export_checkpoint(results["lora3"]["url"], str(tmp_path / "model"))
    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    tokens = AutoTokenizer.from_pretrained(exported)("a wonderful film", return_tensors="pt")
    scores = model(**tokens).logits.softmax(-1)[0]
    answer = trained.predict(["a wonderful film"])[0]
    assert answer["scores"]["positive"] == pytest.approx(scores[1].item(), abs=1e-5)
