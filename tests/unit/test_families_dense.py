"""Segmenters and detectors on the maps of classifiers: which maps, the published head, what a classifier's weights carry over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from tiny_text_model import tiny_recipe
from torch.nn import functional
from transformers import AutoModelForImageClassification, AutoModelForObjectDetection, AutoModelForSemanticSegmentation

from tlcore.errors import ModelError
from tlcore.models import build_pretrained, build_scratch, new_parameters, resolve_source
from tlcore.models.families import dense, register_families
from tlcore.models.families.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
from tlcore.models.families.torchvision_models import TorchvisionConfig, TorchvisionMaps
from tlcore.transfer import apply_strategy, read_structure
from tlcore.transfer.cut import BlocksCut

pytestmark = pytest.mark.unit

CHANNELS = {
    "resnet18": [64, 128, 256, 512],
    "vgg11_bn": [256, 512, 512, 512],
    "mobilenet_v2": [24, 32, 96, 1280],
    "efficientnet_b0": [24, 40, 112, 1280],
    "regnet_y_400mf": [48, 104, 208, 440],
    "densenet121": [256, 512, 1024, 1024],
    "convnext_tiny": [96, 192, 384, 768],
}


@pytest.mark.parametrize("name", CHANNELS)
def test_maps_are_the_last_ones_of_their_strides(name: str) -> None:
    model = TorchvisionMaps(TorchvisionConfig(network=name)).eval()
    assert model.channels == CHANNELS[name]
    with torch.no_grad():
        maps = model(torch.rand(2, 3, 96, 64))
    assert [list(each.shape) for each in maps] == [
        [2, channels, 96 // stride, 64 // stride]
        for channels, stride in zip(CHANNELS[name], dense.STRIDES, strict=True)
    ]


def saved(home: Path, name: str, **settings: Any) -> tuple[Any, Any]:
    torch.manual_seed(1)
    network = torchvision.models.get_model(name, weights=None, **settings)
    torch.save(network.state_dict(), home / f"{name}.pth")
    return network.eval(), resolve_source(f"torchvision:{name}@{home}/{name}.pth")


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2"])
def test_the_last_map_is_what_the_classifier_pools(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    network, source = saved(tmp_path, name)
    model: Any = build_pretrained(AutoModelForSemanticSegmentation, source, source.load_config(num_labels=3), 0)
    assert {each.partition(".")[0] for each in new_parameters(model)} == {"head"}
    held = {each for each, _ in model.named_parameters() if each.startswith("backbone.")}
    assert held == {
        f"backbone.network.{each}"
        for each, _ in network.named_parameters()
        if not each.startswith(("fc.", "classifier."))
    }
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        last = model.backbone.eval()(pictures)[-1]
        whole = last.mean(dim=(2, 3)) if name != "vgg11_bn" else network.avgpool(last).flatten(1)
        head = network.fc if name == "resnet18" else network.classifier
        torch.testing.assert_close(head(whole), network(pictures))


@pytest.mark.parametrize("auto", [AutoModelForSemanticSegmentation, AutoModelForObjectDetection])
def test_networks_without_such_maps_are_refused(auto: Any, tmp_path: Path) -> None:
    register_families()
    config = TorchvisionConfig(network="swin_t")
    config.save_pretrained(tmp_path)
    source = resolve_source(str(tmp_path))
    with pytest.raises(
        ModelError, match="swin_t has no maps at strides 4, 8, 16, 32 for a segmenter or detector: take a"
    ):
        build_scratch(auto, source, config, 0)


def test_a_segmenter_s_weights_are_a_classifier_s_source_too(tmp_path: Path) -> None:
    register_families()
    config = TorchvisionConfig(network="resnet18", num_labels=3)
    segmenter: Any = AutoModelForSemanticSegmentation.from_config(config)
    segmenter.save_pretrained(tmp_path)
    source = resolve_source(str(tmp_path))
    classifier: Any = build_pretrained(AutoModelForImageClassification, source, source.load_config(), 0)
    assert new_parameters(classifier) == {"classifier.weight", "classifier.bias"}
    torch.testing.assert_close(classifier.backbone.network.conv1.weight, segmenter.backbone.network.conv1.weight)


def semantic_branch(head: dense.PyramidHead, maps: list[torch.Tensor]) -> torch.Tensor:
    """Section 3.1 and figure 3 of the paper in so many words, for pictures whose sides are multiples of 32."""
    weights = dict(head.named_parameters())

    def convolved(name: str, values: torch.Tensor, padding: int) -> torch.Tensor:
        return functional.conv2d(values, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    summed = torch.zeros(())
    above = torch.zeros(())
    for level in (3, 2, 1, 0):
        above = convolved(f"lateral.{level}", maps[level], 0) + above
        values = convolved(f"smooth.{level}", above, 1)
        for stage in range(max(1, level)):
            values = convolved(f"branches.{level}.stages.{stage}.0", values, 1)
            norm = f"branches.{level}.stages.{stage}.1"
            values = functional.group_norm(values, 32, weights[f"{norm}.weight"], weights[f"{norm}.bias"]).relu()
            if level:
                values = functional.interpolate(values, scale_factor=2, mode="bilinear")
        assert values.shape == (2, 128, 16, 24)
        summed = summed + values
        above = functional.interpolate(above, scale_factor=2, mode="nearest")
    return convolved("classifier", summed, 0)


def test_the_semantic_branch_is_as_published() -> None:
    torch.manual_seed(0)
    channels = [8, 16, 24, 40]
    head = dense.PyramidHead(channels, 5)
    for name, each in head.named_parameters():
        torch.nn.init.normal_(each, 1.0 if ".1.weight" in name else 0.0, 0.1)
    maps = [
        torch.randn(2, each, 64 // stride, 96 // stride) for each, stride in zip(channels, dense.STRIDES, strict=True)
    ]
    with torch.no_grad():
        torch.testing.assert_close(head(maps), semantic_branch(head, maps))
    lateral, smooth = sum(256 * (each + 1) for each in channels), 4 * (256 * 256 * 9 + 256)
    first, further = 128 * 256 * 9 + 128, 128 * 128 * 9 + 128
    norms = 7 * 2 * 128  # of one stage each for the two finest maps, two and three for the others
    parameters = sum(each.numel() for each in head.parameters())
    assert parameters == lateral + smooth + 4 * first + 3 * further + norms + 5 * 129


def test_maps_of_odd_sizes_go_together() -> None:
    register_families()
    model: Any = AutoModelForSemanticSegmentation.from_config(
        TorchvisionConfig(network="resnet18", num_labels=4)
    ).eval()
    labels = torch.randint(0, 4, (1, 75, 101))
    labels[0, :10] = dense.NO_CLASS
    with torch.no_grad():
        found = model(pixel_values=torch.rand(1, 3, 75, 101), labels=labels)
    assert list(found.logits.shape) == [1, 4, 19, 26]
    whole = functional.interpolate(found.logits, (75, 101), mode="bilinear")
    expected = functional.cross_entropy(whole[:, :, 10:], labels[:, 10:])
    torch.testing.assert_close(found.loss, expected)


def test_lite_s_maps_are_those_of_its_stages() -> None:
    model: Any = EfficientNetLiteModel(EfficientNetLiteConfig(), with_top=False).eval()
    assert model.map_channels() == [24, 40, 112, 320]
    with torch.no_grad():
        maps = model.maps(torch.rand(1, 3, 64, 96))
    assert [list(each.shape[1:]) for each in maps] == [[24, 16, 24], [40, 8, 12], [112, 4, 6], [320, 2, 3]]


@pytest.mark.parametrize(
    "config", [TorchvisionConfig(network="resnet18"), EfficientNetLiteConfig()], ids=lambda config: config.model_type
)
def test_a_detector_begins_with_seeing_nothing_and_learns_a_box(config: Any) -> None:
    register_families()
    torch.manual_seed(0)
    config.num_labels, config.detector_width = 2, 0.125
    model: Any = AutoModelForObjectDetection.from_config(config).train()
    pictures = torch.rand(2, 3, 64, 64) * 0.2
    pictures[:, 0, 16:48, 16:48] = 1.0
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]])}] * 2
    assert model(pictures).objectness.sigmoid().mean().item() == pytest.approx(0.01, rel=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        loss = model(pictures, labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    assert all(each.grad is not None for each in model.parameters()), "ZeRO would wait for it"
    with pytest.raises(ValueError, match="pictures are 64 x 70; a detector takes multiples of 32"):
        model(torch.rand(1, 3, 64, 70))


BLOCKS = {
    "resnet18": [("layer1.0",), ("layer4.1",), 8],
    "vgg11_bn": [("features.0", "features.1"), ("features.22", "features.23", "features.25", "features.26"), 5],
    "mobilenet_v2": [("features.0",), ("features.18",), 19],
    "regnet_y_400mf": [("trunk_output.block1",), ("trunk_output.block4",), 4],
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(
    "auto", [AutoModelForImageClassification, AutoModelForSemanticSegmentation, AutoModelForObjectDetection]
)
def test_strategies_know_the_blocks_of_such_a_network(name: str, auto: Any) -> None:
    register_families()
    with torch.device("meta"):
        model: Any = auto.from_config(TorchvisionConfig(network=name))
    first, last, count = BLOCKS[name]
    parts = read_structure(model)
    assert len(parts.blocks) == count
    for block, layers in ((parts.blocks[0], first), (parts.blocks[-1], last)):
        held = [each.removeprefix("backbone.network.") for each in block]
        assert all(each.startswith(tuple(f"{layer}." for layer in layers)) for each in held)
        assert all(any(each.startswith(f"{layer}.") for each in held) for layer in layers)
    assert all(not each.startswith("backbone.") for each in parts.head)
    whole = [*parts.before, *(each for block in parts.blocks for each in block), *parts.after, *parts.head]
    assert sorted(whole) == sorted(each for each, _ in model.named_parameters())
    assert bool(parts.before) == (name in ("resnet18", "regnet_y_400mf")), "a stem"
    assert bool(parts.after) == (name == "vgg11_bn" and auto is AutoModelForImageClassification), (
        "VGG's own dense layers"
    )


def test_last_n_trains_the_last_block_of_such_a_network(tmp_path: Path) -> None:
    register_families()
    model: Any = AutoModelForObjectDetection.from_config(TorchvisionConfig(network="resnet18"))
    apply_strategy(model, tiny_recipe(tmp_path, transfer__strategy="last_n", transfer__n=1))
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert {name for name in trained if name.startswith("backbone.")} == {
        name for name, _ in model.named_parameters() if name.startswith("backbone.network.layer4.1.")
    }
    assert {name.partition(".")[0] for name in trained} == {"backbone", "detector"}


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2", "densenet121"])
def test_what_the_blocks_give_is_all_that_a_classifier_reads(name: str) -> None:
    register_families()
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, 64, 64)
    model: Any = AutoModelForImageClassification.from_config(TorchvisionConfig(network=name)).eval()
    cut = BlocksCut(model)
    with torch.no_grad(), cut.watched() as newest:
        whole = model(pictures).logits
        cut.given = newest()
        assert torch.equal(model(pictures).logits, whole)
