"""torchvision's classifiers as sources: converted once, the same answers as torchvision's own, and what cannot be used is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from transformers import AutoImageProcessor, AutoModelForImageClassification

from tlcore.errors import ModelError
from tlcore.models import build_pretrained, build_scratch, new_parameters, resolve_source
from tlcore.models.families import torchvision_models
from tlcore.models.torchvision_source import torchvision_directory

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchvision")


def saved(home: Path, name: str, **settings: Any) -> tuple[torch.nn.Module, str]:
    torch.manual_seed(1)
    network = torchvision.models.get_model(name, weights=None, **settings)
    torch.save(network.state_dict(), home / f"{name}.pth")
    return network.eval(), f"torchvision:{name}@{home}/{name}.pth"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0", "regnet_y_400mf"])
def test_a_converted_network_answers_as_torchvision_s_own(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    network, source = saved(home, name)
    found = resolve_source(source)
    model = build_pretrained(AutoModelForImageClassification, found, found.load_config(), 0).eval()
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=pictures).logits, network(pictures))
    assert new_parameters(model) == frozenset()
    assert model.config.id2label[0] == "tench"
    again = build_pretrained(AutoModelForImageClassification, found, found.load_config(num_labels=3), 0)
    assert new_parameters(again) == {"classifier.weight", "classifier.bias"}


def test_densenet_s_published_names_are_those_of_its_layers_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    network, source = saved(home, "densenet121")
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): each
        for name, each in network.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, home / "densenet121.pth")
    found = resolve_source(source)
    model = build_pretrained(AutoModelForImageClassification, found, found.load_config(), 0).eval()
    pictures = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=pictures).logits, network(pictures))


def test_a_head_without_a_bias_tells_its_classes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    network, source = saved(home, "maxvit_t")
    found = resolve_source(source)
    assert found.load_config().id2label[0] == "tench"
    model = build_pretrained(AutoModelForImageClassification, found, found.load_config(), 0).eval()
    assert new_parameters(model) == {"classifier.bias"}
    pictures = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=pictures).logits, network(pictures))


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet"])
def test_networks_without_one_linear_head_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"torchvision has no classifier '{name}' that can be taken"):
        torchvision_directory(f"torchvision:{name}")


def test_vgg_s_own_layers_stay_its_backbone() -> None:
    with torch.device("meta"):
        whole = torchvision.models.vgg16_bn()
        model = torchvision_models.TorchvisionForImageClassification(
            torchvision_models.TorchvisionConfig(network="vgg16_bn", num_labels=1000)
        )
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in whole.parameters()) == 138_365_992
    assert model.backbone.feature_size == 4096


def test_the_processor_is_the_published_weights_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    _, source = saved(home, "mobilenet_v2")
    processor = AutoImageProcessor.from_pretrained(resolve_source(source).directory)
    takes = torchvision.models.MobileNet_V2_Weights.DEFAULT.transforms()
    picture = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    made = processor(picture, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    torch.testing.assert_close(made[0], takes(picture), atol=2e-2, rtol=0)


def test_a_network_from_scratch_learns_from_the_seed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    _, source = saved(home, "mobilenet_v2")
    found = resolve_source(source)
    one, two = (build_scratch(AutoModelForImageClassification, found, found.load_config(), 5) for _ in range(2))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
        assert tensor.float().isfinite().all(), name


def test_weights_of_another_network_are_refused(home: Path, tmp_path: Path) -> None:
    saved(home, "mobilenet_v2")
    with pytest.raises(ModelError, match=r"conv1\.weight is missing\n  the file belongs to another network"):
        torchvision_directory(f"torchvision:resnet18@{home}/mobilenet_v2.pth", tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="not tensors by name"):
        torchvision_directory(f"torchvision:resnet18@{tmp_path}/list.pth", tmp_path / "shelf")


def test_published_weights_come_from_torch_s_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    network, _ = saved(home, "mobilenet_v2")
    file = home / "torch/hub/checkpoints" / torchvision.models.MobileNet_V2_Weights.DEFAULT.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    assert (resolve_source("torchvision:mobilenet_v2").directory / "model.safetensors").is_file()
