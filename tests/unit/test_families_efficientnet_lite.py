"""EfficientNet-lite: the published sizes and names, the network computed from them without modules, and the real weights."""

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
from PIL import Image, ImageDraw
from torch.nn import functional
from transformers import AutoBackbone, AutoImageProcessor, AutoModelForImageClassification

from tests.families.images import lite0_weights
from tlcore.errors import ModelError
from tlcore.models import build_pretrained, new_parameters, resolve_source
from tlcore.models.families.convert import LITE, convert, renamed
from tlcore.models.families.efficientnet_lite import EfficientNetLiteBackbone, EfficientNetLiteConfig

pytestmark = pytest.mark.unit

WEIGHTS = lite0_weights()
ROWS = [(3, 1, 1), *[(3, 2, 6), (3, 1, 6)], *[(5, 2, 6), (5, 1, 6)], *[(3, 2, 6), (3, 1, 6), (3, 1, 6)]]
ROWS += [*[(5, 1, 6)] * 3, *[(5, 2, 6), (5, 1, 6), (5, 1, 6), (5, 1, 6)], (3, 1, 6)]
"""Kernel, stride and expansion of lite0's sixteen blocks, written out."""


def tiny(**changes: Any) -> EfficientNetLiteConfig:
    return EfficientNetLiteConfig(**{"width": 0.1, "num_labels": 3, "dropout": 0.0, "drop_connect": 0.0} | changes)


def batch(labels: bool = False) -> dict[str, torch.Tensor]:
    images = torch.randn(3, 3, 40, 33, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": images} | ({"labels": torch.tensor([0, 2, 1])} if labels else {})


def normed(state: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> torch.Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / torch.sqrt(variance + 1e-3)
    return (values - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]


def same(values: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> torch.Tensor:
    """TensorFlow's SAME: as many windows as steps fit in, the odd padding after."""
    for axis in (2, 3):
        size, kernel = values.shape[axis], weight.shape[axis]
        short = max(0, (int(np.ceil(size / stride)) - 1) * stride + kernel - size)
        before, after = short // 2, short - short // 2
        shapes = [[*values.shape[:axis], n, *values.shape[axis + 1 :]] for n in (before, after)]
        values = torch.cat([torch.zeros(shapes[0]), values, torch.zeros(shapes[1])], dim=axis)
    return functional.conv2d(values, weight, stride=stride, groups=groups)


def reference(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Logits from tensors of the published names."""

    def six(values: torch.Tensor) -> torch.Tensor:
        return values.clamp(0, 6)

    values = six(normed(state, "_bn0", same(images, state["_conv_stem.weight"], 2)))
    for at, (_, stride, expansion) in enumerate(ROWS):
        block, inner = f"_blocks.{at}", values
        if expansion > 1:
            inner = six(normed(state, f"{block}._bn0", same(inner, state[f"{block}._expand_conv.weight"], 1)))
        depthwise = state[f"{block}._depthwise_conv.weight"]
        inner = six(normed(state, f"{block}._bn1", same(inner, depthwise, stride, groups=len(depthwise))))
        inner = normed(state, f"{block}._bn2", same(inner, state[f"{block}._project_conv.weight"], 1))
        values = inner + values if inner.shape == values.shape else inner
    values = six(normed(state, "_bn1", same(values, state["_conv_head.weight"], 1)))
    return values.mean(dim=(2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lite0")
    convert("efficientnet-lite0", WEIGHTS, directory)
    return directory


def test_the_packages_weights_give_what_the_published_network_gives(converted: Path) -> None:
    state = torch.load(WEIGHTS, weights_only=True)
    assert [state[f"_blocks.{at}._depthwise_conv.weight"].shape[-1] for at in range(16)] == [row[0] for row in ROWS]
    source = resolve_source(str(converted))
    model = build_pretrained(AutoModelForImageClassification, source, source.load_config(), seed=0).eval()
    assert new_parameters(model) == frozenset()
    images = torch.randn(2, 3, 97, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, reference(state, images), rtol=1e-4, atol=1e-4)


def test_the_real_weights_know_a_traffic_light_from_a_ball(converted: Path) -> None:
    """Two drawings, through the directory's own preprocessing; ImageNet's class 920 is the traffic light."""
    light = Image.new("RGB", (300, 300), (150, 190, 230))
    pen = ImageDraw.Draw(light)
    pen.rectangle((100, 20, 200, 280), fill=(25, 25, 25))
    for top, colour in ((40, (250, 30, 30)), (120, (250, 200, 30)), (200, (40, 220, 60))):
        pen.ellipse((118, top, 182, top + 64), fill=colour)
    inputs = AutoImageProcessor.from_pretrained(converted)(light, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 224, 224)
    with torch.no_grad():
        logits = AutoModelForImageClassification.from_pretrained(converted)(**inputs).logits[0]
    assert logits.argmax() == 920


@pytest.mark.parametrize(
    ("width", "depth", "millions"),
    [(1.0, 1.0, 4.7), (1.0, 1.1, 5.4), (1.1, 1.2, 6.1), (1.2, 1.4, 8.2), (1.4, 1.8, 13.0)],
)
def test_each_scale_has_its_published_size(width: float, depth: float, millions: float) -> None:
    config = EfficientNetLiteConfig(width=width, depth=depth, num_labels=1000)
    assert round(parameters_on_meta(AutoModelForImageClassification, config) / 1e6, 1) == millions


def test_it_is_a_model_source_like_any_other(tmp_path: Path) -> None:
    check_is_a_source(AutoModelForImageClassification, tiny(), tmp_path, batch(), "logits")
    check_scratch_follows_the_seed(AutoModelForImageClassification, tiny(), tmp_path / "scratch")


def test_it_learns_and_recomputes_its_activations() -> None:
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(tiny())
    check_structure(model, 16, {"classifier.weight", "classifier.bias"})
    check_checkpointing_changes_nothing(model, batch(labels=True))
    check_learns(model, batch(labels=True))


def test_its_features_serve_other_networks(tmp_path: Path) -> None:
    """Maps at strides 4 to 32 of the classifier's own weights."""
    model = fixed(AutoModelForImageClassification.from_config(tiny()))
    model.save_pretrained(tmp_path)
    backbone = EfficientNetLiteBackbone.from_pretrained(
        tmp_path, out_features=["stage2", "stage3", "stage5", "stage7"]
    ).eval()
    assert type(AutoBackbone.from_config(backbone.config)) is EfficientNetLiteBackbone
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = backbone(images).feature_maps
        whole = model.efficientnet_lite(images, output_hidden_states=True).hidden_states
    assert [tuple(each.shape[1:]) for each in maps] == [
        (channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]
    torch.testing.assert_close(maps[-1], whole[-1])


def test_stochastic_depth_and_dropout_act_in_training_alone() -> None:
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(tiny(dropout=0.5, drop_connect=0.5))
    images = batch()["pixel_values"]
    with torch.no_grad():
        assert not torch.equal(model.train()(images).logits, model(images).logits)
        assert torch.equal(model.eval()(images).logits, model(images).logits)


def test_weights_that_do_not_fit_say_so(tmp_path: Path) -> None:
    state = torch.load(WEIGHTS, weights_only=True)
    short = tmp_path / "short.pth"
    torch.save({name: tensor for name, tensor in state.items() if name != "_fc.bias"}, short)
    with pytest.raises(ModelError, match=r"lacks classifier\.bias"):
        convert("efficientnet-lite0", short, tmp_path / "out")
    torch.save({"features.0.weight": torch.zeros(1)}, short)
    with pytest.raises(ModelError, match=r"nothing is known of 'features\.0\.weight'"):
        convert("efficientnet-lite0", short, tmp_path / "out")
    short.write_bytes(b"no state dict")
    with pytest.raises(ModelError, match="cannot be read as a state dict"):
        convert("efficientnet-lite0", short, tmp_path / "out")
    with pytest.raises(ModelError, match="is no file"):
        convert("efficientnet-lite0", tmp_path / "absent", tmp_path / "out")
    with pytest.raises(ModelError, match="no converter is named 'lite0'"):
        convert("lite0", short, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Trap:
    """What a file could hold to have code run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("trapped"),)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"_fc.bias": Trap()}, "trap.pth")
    with pytest.raises(ModelError, match="code in it is never run"):
        convert("efficientnet-lite0", Path("trap.pth"), tmp_path / "out")
    assert not Path("trapped").exists()


def test_every_published_name_has_its_place() -> None:
    state = torch.load(WEIGHTS, weights_only=True)
    assert len(set(renamed(state, LITE, WEIGHTS))) == len(state)


def test_bad_values_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="width is 0"):
        tiny(width=0)
    with pytest.raises(ValueError, match=r"\[1, 1, 8, 8\].*\[batch, 3, height, width\]"):
        AutoModelForImageClassification.from_config(tiny())(torch.zeros(1, 1, 8, 8))
