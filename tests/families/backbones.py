"""Families of pictures that are classifiers' networks below a segmenter or a detector, at the size of a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.families.images import (
    boxed_pictures,
    lite0_weights,
    masked_pictures,
    mobilenet_v2,
    normalized,
    of_torchvision,
)

SIDE = 64
# Steps of all pictures, few for a detector: which places answer for an object is a choice, and one that rounding turned changes
# what follows.
SEGMENTED = {"learning_rate": 5e-3, "epochs": 6, "global_batch_size": 36}
DETECTED = {"optimizer": "adamw", "learning_rate": 2e-3, "epochs": 4, "global_batch_size": 36}


def below(
    make: Callable[[], tuple[Any, str]], task: str, side: int = SIDE, **train: Any
) -> Callable[[Path], dict[str, Any]]:
    """A segmenter or detector on a classifier's random network. `make` is as `normalized` takes it; `train` changes settings."""
    found = normalized(make, side)

    def write(home: Path) -> dict[str, Any]:
        sections = found(home)
        detects = task == "object-detection"
        if detects:
            narrow(home / "model")
        data = {"train": (boxed_pictures if detects else masked_pictures)(home)}
        return {
            **sections,
            "data": data,
            "train": {**sections["train"], **(DETECTED if detects else SEGMENTED), **train},
        }

    return write


def narrow(model: Path, **changes: Any) -> None:
    """Make the detector's neck and heads a fourth as wide as they are by default, and change what else is given."""
    import json

    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "detector_width": 0.125, **changes}))


def lite(task: str) -> Callable[[Path], dict[str, Any]]:
    """On the real weights of EfficientNet-lite0."""

    def write(home: Path) -> dict[str, Any]:
        from tlcore.models.families.convert import convert

        convert("efficientnet-lite0", lite0_weights(), home / "model")
        narrow(home / "model", drop_connect=0.0)
        detects = task == "object-detection"
        data = {"train": (boxed_pictures if detects else masked_pictures)(home), "image_size": SIDE}
        slow = {"learning_rate": 1e-3, "epochs": 7} if detects else {"optimizer": "adamw", "learning_rate": 2e-4}
        train = {**(DETECTED if detects else SEGMENTED), **slow}
        return {"model": {"source": str(home / "model")}, "data": data, "train": train}

    return write


def upernet(home: Path) -> dict[str, Any]:
    """transformers' UPerNet on its ResNet."""
    import transformers

    from tests.families.images import save

    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_channels=8)
    processor = transformers.SegformerImageProcessor(size={"height": SIDE, "width": SIDE})
    source = save(home / "model", config, "UperNetForSemanticSegmentation", processor)
    return {
        "model": {"source": source},
        "data": {"train": masked_pictures(home)},
        "train": {**SEGMENTED, "optimizer": "sgd", "learning_rate": 0.1},
    }


NETWORKS: dict[str, Callable[[], tuple[Any, str]]] = {
    "torchvision-resnet": of_torchvision("resnet18"),
    "torchvision-vgg": of_torchvision("vgg11_bn", dropout=0.0),
    "torchvision-mobilenet_v2": of_torchvision("mobilenet_v2", dropout=0.0, width_mult=0.25),
    "torchvision-efficientnet": of_torchvision("efficientnet_b0", dropout=0.0, stochastic_depth_prob=0.0),
}
SIDES = {"torchvision-vgg": 32}
"""VGG's first layers work on every pixel."""
TASKS = ("image-segmentation", "object-detection")

MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{f"{name}/{task}": below(make, task, SIDES.get(name, SIDE)) for name, make in NETWORKS.items() for task in TASKS},
    **{f"efficientnet-lite/{task}": lite(task) for task in TASKS},
    # so slowly that rounding stays small: at 5e-3 losses were 11 % apart after five steps, at 1e-3 0.9 %
    "mobilenet_v2/image-segmentation": below(mobilenet_v2, "image-segmentation", learning_rate=2e-4),
    "upernet/image-segmentation": upernet,
}
"""Row's name -> makes the model under a directory and returns the recipe's sections that differ."""
