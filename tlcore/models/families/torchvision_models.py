"""torchvision's classifiers (ResNet, VGG, EfficientNet, MobileNetV2, ...) as transformers models: as they are, and as backbones of
segmenters and detectors.

Owns the wrapper; the networks are torchvision's own, each after the paper that its documentation names. A network's last linear
layer is the head, all before it the backbone, whose parameters keep torchvision's names below `backbone.network`. So a
classifier's weights, torchvision's or those of a checkpoint, are what a segmenter or detector begins with; of the network these
keep what lies before its pooling. Weights come through `models/torchvision_source.py`, the heads of both are `dense.py`'s.
Registered by `__init__.py`.

Shapes: B pictures, 3 channels, h x w pixels, F features, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
    SemanticSegmenterOutput,
)

from tlcore.models.families.dense import STRIDES, MapDetector, PyramidHead, ScoreConv, segmented
from tlcore.models.families.yolo import YoloxConfig, YoloxForObjectDetection, YoloxOutput
from tlcore.models.families.yolo_loss import Labels

NOT_TAKEN = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")
"""Networks that give more than one answer in training, or whose classifier is no linear layer."""
_TRUNKS = (
    ("features",),
    ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    ("stem", "trunk_output"),
)
"""Most networks', ResNet's and RegNet's."""
_PROBE_SIDE = 64


class TorchvisionConfig(PreTrainedConfig):
    """`network`: torchvision's name of it, such as resnet50. `settings`: what else its constructor takes. `detector_width` and
    `detector_depth`: of a detector's neck and heads, as `YoloxConfig` has them."""

    model_type = "tlcore-torchvision"

    network: str = "resnet50"
    settings: dict[str, Any] | None = None
    detector_width: float = 0.5
    detector_depth: float = 0.33

    def __post_init__(self, **kwargs: Any) -> None:
        if self.network not in network_names():
            raise ValueError(f"torchvision has no classifier {self.network!r}")
        super().__post_init__(**kwargs)


def network_names() -> list[str]:
    """The classifiers that this wrapper takes."""
    import torchvision

    return [name for name in torchvision.models.list_models(module=torchvision.models) if name not in NOT_TAKEN]


def bare_network(name: str, **settings: Any) -> Any:
    """The network on torch's default device, with the weights that its constructor draws."""
    import torchvision

    try:
        network = torchvision.models.get_model(name, weights=None, **settings)
    except NotImplementedError:  # RegNet counts its blocks with tensors, which have no values on the meta device
        with torch.device("cpu"):
            network = torchvision.models.get_model(name, weights=None, **settings)
        network.to(torch.get_default_device())
    return network


def trunk(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and layer of what lies before the pooling, one after the other; empty where the network is of another build."""
    for names in _TRUNKS:
        if all(hasattr(network, name) for name in names):
            return [part for name in names for part in _parts(name, network.get_submodule(name))]
    return []


def blocks_of(network: nn.Module) -> list[tuple[str, ...]]:
    """The trunk's blocks, each by the names of its layers: a residual block or the like by itself, of plain layers (VGG's) those up
    to the next pooling together. A stem of plain layers is none where blocks follow."""
    blocks: list[tuple[str, ...]] = []
    plain: list[str] = []
    for name, layer in trunk(network):
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            plain.append(name)
        elif plain and isinstance(layer, nn.MaxPool2d):
            blocks.append(tuple(plain))
            plain = []
        elif any(True for _ in layer.parameters()):
            blocks.append((name,))
    if plain:
        blocks.append(tuple(plain))
    is_plain = all(
        isinstance(network.get_submodule(name), nn.Conv2d | nn.BatchNorm2d) for block in blocks for name in block
    )
    return blocks if is_plain else [block for block in blocks if len(block) == 1]


def _parts(name: str, layer: nn.Module) -> list[tuple[str, nn.Module]]:
    if isinstance(layer, nn.Sequential):
        return [(f"{name}.{child}", each) for child, each in layer.named_children()]
    return [(name, layer)]


@lru_cache
def map_places(name: str, settings: str) -> tuple[tuple[int, int], ...]:
    """For each of `STRIDES`: the last step of the trunk whose map is so coarse, and that map's channels.

    Args:
        settings: as the configuration has them, as JSON.

    Raises ValueError for a network without such maps.
    """
    with torch.device("meta"):
        values = torch.empty(1, 3, _PROBE_SIDE, _PROBE_SIDE)
        network = bare_network(name, **json.loads(settings)).eval()
        found: dict[int, tuple[int, int]] = {}
        for at, (_, layer) in enumerate(trunk(network)):
            values = layer(values)
            if values.dim() == 4 and values.shape[2] == values.shape[3]:
                found[_PROBE_SIDE // values.shape[2]] = (at, values.shape[1])
    if any(stride not in found for stride in STRIDES):
        raise ValueError(
            f"torchvision's {name} has no maps at strides {', '.join(map(str, STRIDES))} for a segmenter or detector:"
            " take a ResNet, RegNet, VGG, DenseNet, MobileNet, EfficientNet or ConvNeXt"
        )
    return tuple(found[stride] for stride in STRIDES)


def head_name(network: nn.Module) -> str:
    """Of a network's last linear layer."""
    *_, last = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    return str(last)


class TorchvisionPreTrainedModel(PreTrainedModel):
    """What backbone and classifier share."""

    config: TorchvisionConfig
    config_class = TorchvisionConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities: ClassVar[tuple[str, ...]] = ("image",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As torchvision's ResNet and VGG: convolutions normal by fan-out (He et al. 2015), linear layers normal and small."""
        if isinstance(module, ScoreConv):
            module.begin()
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, 0.0, 0.01)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class TorchvisionNetwork(TorchvisionPreTrainedModel):
    """What holds `network`, whole or up to its pooling."""

    network: Any

    def blocks_in_order(self) -> list[tuple[str, ...]]:
        """For strategies that train some blocks: `transfer/structure.py` asks."""
        return [tuple(f"network.{name}" for name in block) for block in blocks_of(self.network)]


class TorchvisionModel(TorchvisionNetwork):
    """The network without its last linear layer."""

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__(config)
        self.network = bare_network(config.network, **(config.settings or {}))
        head = head_name(self.network)
        self.feature_size = int(self.network.get_submodule(head).in_features)
        self.network.set_submodule(head, nn.Identity())
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPoolingAndNoAttention:
        """`pooler_output` [B, F], which is also the `last_hidden_state`."""
        features = self.network(pixel_values)
        return BaseModelOutputWithPoolingAndNoAttention(last_hidden_state=features, pooler_output=features)


class TorchvisionForImageClassification(TorchvisionPreTrainedModel):
    """The whole network, its last layer with this task's classes."""

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.backbone = TorchvisionModel(config)
        self.classifier = nn.Linear(self.backbone.feature_size, config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits [B, C]; with `labels` (as `config.problem_type` says) the loss."""
        logits = self.classifier(self.backbone(pixel_values).pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


class TorchvisionMaps(TorchvisionNetwork):
    """The network up to its pooling; what follows is left out. Raises ValueError for one without maps at `STRIDES`."""

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__(config)
        settings = config.settings or {}
        places = map_places(config.network, json.dumps(settings, sort_keys=True))
        self._steps = [at for at, _ in places]
        self.channels = [channels for _, channels in places]
        self.network = bare_network(config.network, **settings)
        kept = {name.partition(".")[0] for name, _ in trunk(self.network)}
        for name, _ in list(self.network.named_children()):
            if name not in kept:
                setattr(self.network, name, nn.Identity())
        self.post_init()

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Maps at `STRIDES` of pictures [B, 3, h, w]."""
        layers = [layer for _, layer in trunk(self.network)]  # anew: adapters may have taken a layer's place
        values, maps = pixel_values, []
        for first, end in pairwise([0, *(at + 1 for at in self._steps)]):
            for layer in layers[first:end]:
                values = layer(values)
            maps.append(values)
        return maps


class TorchvisionForSemanticSegmentation(TorchvisionPreTrainedModel):
    """A class for every pixel."""

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.backbone = TorchvisionMaps(config)
        self.head = PyramidHead(self.backbone.channels, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> SemanticSegmenterOutput:
        """Logits [B, C, h / 4, w / 4]; with `labels` [B, h, w] the loss."""
        return segmented(self.head(self.backbone(pixel_values)), labels)


class TorchvisionForObjectDetection(TorchvisionPreTrainedModel):
    """Boxes, as YOLOX finds them."""

    def __init__(self, config: TorchvisionConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.backbone = TorchvisionMaps(config)
        scales = YoloxConfig(width=config.detector_width, depth=config.detector_depth, num_labels=config.num_labels)
        self.detector = MapDetector(scales, self.backbone.channels[1:])
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Sequence[Labels] | None = None, **_: Any) -> YoloxOutput:
        """As `YoloxForObjectDetection.forward`."""
        return self.detector(self.backbone(pixel_values)[1:], pixel_values.shape[-2:], labels)  # type: ignore[no-any-return]

    post_process_object_detection = staticmethod(YoloxForObjectDetection.post_process_object_detection)
