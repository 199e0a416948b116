"""DeepSpeech and DeepSpeech 2: the papers' sizes, their equations step by step in numpy, features, and what they refuse.

No weights of either are published in a form that a package carries: these are tested at small random size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_checks import (
    check_checkpointing_changes_nothing,
    check_is_a_source,
    check_learns,
    check_scratch_follows_the_seed,
    check_structure,
    fixed,
    parameters_on_meta,
)
from transformers import AutoModelForCTC

from tlcore.models import resolve_source
from tlcore.models.families.deepspeech import DeepSpeechConfig
from tlcore.models.families.deepspeech2 import DeepSpeech2Config
from tlcore.models.families.spectrogram import SpectrogramFeatureExtractor

pytestmark = pytest.mark.unit

BINS = 9
FRAMES = [13, 8]
CONVOLUTIONS = [[2, 3, 5, 2, 2], [3, 5, 3, 1, 1]]


def one(**changes: Any) -> DeepSpeechConfig:
    return DeepSpeechConfig(
        **{"feature_size": BINS, "context": 2, "hidden_size": 6, "vocab_size": 5, "dropout": 0.0} | changes
    )


def two(**changes: Any) -> DeepSpeech2Config:
    sizes = {
        "feature_size": BINS,
        "convolutions": CONVOLUTIONS,
        "hidden_size": 6,
        "num_hidden_layers": 3,
        "vocab_size": 5,
    }
    return DeepSpeech2Config(**sizes | changes)


CASES = {
    "deepspeech": one(),
    "rnn": two(),
    "gru": two(cell="gru"),
    "row": two(bidirectional=False, row_context=2),
    "one_dimensional": two(convolutions=[[4, BINS, 5, 1, 2]], dense_layers=0),
}


def batch(labels: bool = False) -> dict[str, torch.Tensor]:
    """Two utterances of 13 and 8 frames; what stands in the padding must not matter."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(max(FRAMES))[None] < torch.tensor(FRAMES)[:, None]
    made = {"input_features": torch.randn(2, max(FRAMES), BINS, generator=generator), "attention_mask": mask.long()}
    return made | ({"labels": torch.tensor([[1, 2, 2], [4, -100, -100]])} if labels else {})


def relu(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 20)


class Numbers:
    """A state dict by suffix, as numpy."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.all = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}

    def __getitem__(self, name: str) -> np.ndarray:
        [found] = [value for key, value in self.all.items() if key.endswith(name)]
        return found


def states(products: np.ndarray, weight: np.ndarray, cell: str) -> np.ndarray:
    """[S, G] to [S, H], one step and one direction at a time; the directions are added."""
    units, total = weight.shape[-1], 0
    for direction, across in enumerate(weight):
        order = range(len(products)) if direction == 0 else reversed(range(len(products)))
        h, found = np.zeros(units), np.zeros((len(products), units))
        for t in order:
            if cell == "rnn":
                h = relu(products[t] + across @ h)
            else:
                z = 1 / (1 + np.exp(-(products[t][:units] + across[:units] @ h)))
                r = 1 / (1 + np.exp(-(products[t][units : 2 * units] + across[units : 2 * units] @ h)))
                h = (1 - z) * h + z * relu(products[t][2 * units :] + r * (across[2 * units :] @ h))
            found[t] = h
        total = total + found
    return total


def deepspeech_reference(numbers: Numbers, features: np.ndarray, config: DeepSpeechConfig) -> np.ndarray:
    around = config.context
    padded = np.concatenate([np.zeros((around, BINS)), features, np.zeros((around, BINS))])
    hidden = np.stack([padded[t : t + 2 * around + 1].ravel() for t in range(0, len(features), config.stride)])
    for at in range(5):
        product = hidden @ numbers[f"layers.{at}.dense.weight"].T + numbers[f"layers.{at}.dense.bias"]
        hidden = states(product, numbers["layers.3.recurrence.weight"], "rnn") if at == 3 else relu(product)
    return hidden @ numbers["ctc_head.weight"].T + numbers["ctc_head.bias"]


def normalised(numbers: Numbers, name: str, values: np.ndarray) -> np.ndarray:
    """Batch norm over the last axis with the stored statistics."""
    spread = np.sqrt(numbers[f"{name}.running_var"] + 1e-5)
    return (values - numbers[f"{name}.running_mean"]) / spread * numbers[f"{name}.weight"] + numbers[f"{name}.bias"]


def convolved(image: np.ndarray, weight: np.ndarray, row: list[int]) -> np.ndarray:
    """[channels, bins, T] to [bins', S, channels'], as a sum over windows."""
    _, wide, long, stride_bins, stride = row
    sides = 0 if wide == image.shape[1] else wide // 2
    padded = np.pad(image, ((0, 0), (sides, sides), (long // 2, long // 2)))
    bins = range(0, padded.shape[1] - wide + 1, stride_bins)
    steps = range(0, padded.shape[2] - long + 1, stride)
    return np.array(
        [[np.einsum("cft,ocft->o", padded[:, f : f + wide, t : t + long], weight) for t in steps] for f in bins]
    )


def deepspeech2_reference(numbers: Numbers, features: np.ndarray, config: DeepSpeech2Config) -> np.ndarray:
    image = features.T[None]
    for at, row in enumerate(config.convolutions):
        values = convolved(image, numbers[f"convolutions.{at}.convolution.weight"], row)
        image = relu(normalised(numbers, f"convolutions.{at}.norm", values)).transpose(2, 0, 1)
    hidden = image.reshape(-1, image.shape[-1]).T
    for at in range(config.num_hidden_layers):
        product = hidden @ numbers[f"layers.{at}.dense.linear.weight"].T
        product = normalised(numbers, f"layers.{at}.dense.norm", product)
        hidden = states(product, numbers[f"layers.{at}.recurrence.weight"], config.cell)
    if config.row_context:
        weight = numbers["row_convolution.weight"][:, 0]
        ahead = np.concatenate([hidden, np.zeros((config.row_context, hidden.shape[1]))])
        hidden = sum(weight[:, j] * ahead[j : j + len(hidden)] for j in range(config.row_context + 1))
    for at in range(config.dense_layers):
        product = hidden @ numbers[f"deepspeech2.dense.{at}.linear.weight"].T
        hidden = relu(normalised(numbers, f"deepspeech2.dense.{at}.norm", product))
    return hidden @ numbers["ctc_head.weight"].T + numbers["ctc_head.bias"]


@pytest.mark.parametrize("name", CASES)
def test_a_padded_batch_gives_what_the_equations_give_for_each_utterance_alone(name: str) -> None:
    config = CASES[name]
    model = fixed(AutoModelForCTC.from_config(config))
    given = batch()
    with torch.no_grad():
        logits = model(**given).logits.double().numpy()
    reference = deepspeech_reference if name == "deepspeech" else deepspeech2_reference
    for at, frames in enumerate(FRAMES):
        expected = reference(Numbers(model), given["input_features"][at, :frames].double().numpy(), config)
        assert len(expected) == model._get_feat_extract_output_lengths(frames)
        np.testing.assert_allclose(logits[at, : len(expected)], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_it_is_a_model_source_like_any_other(name: str, tmp_path: Path) -> None:
    check_is_a_source(AutoModelForCTC, CASES[name], tmp_path, batch(), "logits")
    check_scratch_follows_the_seed(AutoModelForCTC, CASES[name], tmp_path / "scratch")


@pytest.mark.parametrize("name", CASES)
def test_it_learns_and_recomputes_its_activations(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCTC.from_config(CASES[name])
    check_checkpointing_changes_nothing(model, batch(labels=True))
    check_learns(model, batch(labels=True), steps=30)


def test_strategies_find_the_papers_layers() -> None:
    head = {"ctc_head.weight", "ctc_head.bias"}
    check_structure(AutoModelForCTC.from_config(CASES["deepspeech"]), 5, head)
    check_structure(AutoModelForCTC.from_config(CASES["rnn"]), 3, head)


def test_the_first_paper_has_this_many_parameters() -> None:
    """Layer by layer from its equations, at 2048 units and a window of 9 frames to each side."""
    units, window = 2048, 161 * 19
    dense = window * units + units + 3 * (units * units + units)
    recurrent = 3 * units * units + units
    assert parameters_on_meta(AutoModelForCTC, DeepSpeechConfig()) == dense + recurrent + units * 29 + 29


@pytest.mark.parametrize(("layers", "recurrent", "units"), [(5, 1, 2400), (5, 3, 1880), (7, 5, 1510), (9, 7, 1280)])
def test_the_second_papers_table_1_has_networks_of_38_million(layers: int, recurrent: int, units: int) -> None:
    config = DeepSpeech2Config(
        convolutions=[[units, 161, 11, 1, 2]],
        hidden_size=units,
        num_hidden_layers=recurrent,
        dense_layers=layers - 1 - recurrent,
    )
    millions = parameters_on_meta(AutoModelForCTC, config) / 1e6
    assert millions == pytest.approx(38, rel=0.035)


def test_batch_norm_counts_frames_and_no_padding() -> None:
    """What it keeps is the mean and variance of the frames; torch's own batch norm over them alone is the reference."""
    model = AutoModelForCTC.from_config(CASES["rnn"])
    norm = model.deepspeech2.layers[0].dense.norm.train()
    values, keep = torch.randn(2, 6, 1, 5), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    frames = values.squeeze(2).transpose(1, 2)[keep]
    reference = torch.nn.BatchNorm1d(6)
    expected = reference(frames)
    torch.testing.assert_close(norm(values, keep).squeeze(2).transpose(1, 2)[keep], expected)
    torch.testing.assert_close(norm.running_mean, reference.running_mean)
    torch.testing.assert_close(norm.running_var, reference.running_var)


def test_the_loss_is_torchs_over_steps_and_labels_that_are_no_padding() -> None:
    model = fixed(AutoModelForCTC.from_config(one(ctc_loss_reduction="sum")))
    given = batch(labels=True)
    found = model(**given)
    parts = []
    for at, frames in enumerate(FRAMES):
        steps = (frames - 1) // 2 + 1
        label = given["labels"][at][given["labels"][at] >= 0]
        logs = found.logits[at, :steps].log_softmax(-1)
        parts.append(torch.nn.functional.ctc_loss(logs, label, [steps], [len(label)], reduction="sum"))
    torch.testing.assert_close(found.loss, sum(parts))


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (one, {"hidden_size": 0}, "hidden_size is 0"),
        (one, {"dropout": 1.5}, "dropout is 1.5"),
        (one, {"ctc_loss_reduction": "none"}, "give one of mean, sum"),
        (two, {"cell": "lstm"}, "cell is 'lstm'; give one of rnn, gru"),
        (two, {"row_context": 3}, "bidirectional: false"),
        (two, {"convolutions": [[8, 3, 4, 1, 1]]}, "odd width"),
    ],
)
def test_a_bad_configuration_says_which_value(make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_bad_inputs_say_what_is_wrong() -> None:
    model = AutoModelForCTC.from_config(one())
    with pytest.raises(ValueError, match=r"\[2, 13, 4\].*\[batch, frames, 9\]"):
        model(input_features=torch.zeros(2, 13, 4))
    with pytest.raises(ValueError, match="a label is 5; vocab_size is 5"):
        model(input_features=torch.zeros(1, 13, BINS), labels=torch.tensor([[1, 5]]))


def test_a_tone_lies_in_its_bin_and_silence_is_finite() -> None:
    extract = SpectrogramFeatureExtractor(normalise=False)
    tone = np.sin(2 * np.pi * 2000 * np.arange(8000) / 16_000).astype(np.float32)
    found = extract([tone, np.zeros(100, np.float32)], sampling_rate=16_000, return_tensors="pt")
    assert found["input_features"].shape == (2, 49, 161)
    assert found["attention_mask"].sum(dim=1).tolist() == [49, 1]
    assert extract.frames(8000) == 49
    assert (found["input_features"][0].argmax(dim=-1) == 40).all()  # 2000 Hz at 50 Hz a bin
    assert torch.isfinite(found["input_features"]).all()


def test_features_do_not_depend_on_loudness_and_have_mean_0_and_variance_1() -> None:
    clip = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    quiet, loud = (SpectrogramFeatureExtractor()(scale * clip)["input_features"][0] for scale in (0.01, 1.0))
    np.testing.assert_allclose(quiet, loud, atol=1e-4)
    assert quiet.mean() == pytest.approx(0, abs=1e-5)
    assert quiet.std() == pytest.approx(1, abs=1e-4)


def test_the_extractor_is_found_beside_the_model(tmp_path: Path) -> None:
    SpectrogramFeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    one(feature_size=81).save_pretrained(tmp_path)
    found = resolve_source(str(tmp_path)).load_preprocessor("AutoFeatureExtractor")
    assert isinstance(found, SpectrogramFeatureExtractor)
    assert (found.sampling_rate, found.feature_size) == (8000, 81)


@pytest.mark.parametrize(
    ("clip", "rate", "message"),
    [
        (np.zeros(0, np.float32), None, "at least one"),
        (np.zeros((2, 2, 2), np.float32), None, "one channel"),
        (np.array([0, np.nan], np.float32), None, "not finite"),
        (np.zeros(400, np.float32), 44_100, "44100 samples a second, this model takes 16000"),
    ],
)
def test_a_bad_clip_says_what_is_wrong(clip: np.ndarray, rate: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectrogramFeatureExtractor()(clip, sampling_rate=rate)
