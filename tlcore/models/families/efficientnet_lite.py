"""EfficientNet-lite: MobileNetV2's inverted residuals in EfficientNet's scaling, without squeeze-and-excitation and with ReLU6.

Source: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv:1905.11946, table 1, in
the lite form that its authors published in 2020 (tensorflow/tpu, models/official/efficientnet/lite): stem and head keep their
width at every scale, the first and the last stage their depth. Published sizes, in million parameters: lite0 4.7, lite1 5.4,
lite2 6.1, lite3 8.2, lite4 13.0. Owns configuration, backbones and the classification head; segmenter and detector take theirs of
`dense.py`. Published weights come through `convert.py`. Registered by `__init__.py`.

Shapes: B images, 3 channels, height and width h x w (224 x 224 for lite0), C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import stochastic_depth
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
    SemanticSegmenterOutput,
)

from tlcore.models.families.checks import check_counts, check_fraction
from tlcore.models.families.dense import MapDetector, PyramidHead, ScoreConv, segmented
from tlcore.models.families.yolo import YoloxConfig, YoloxForObjectDetection, YoloxOutput
from tlcore.models.families.yolo_loss import Labels

STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
"""Per stage: blocks, kernel, stride of the first block, expansion, channels."""
MAP_STAGES = (2, 3, 5, 7)
"""Those, counted from 1, whose maps are the last at strides 4, 8, 16 and 32."""
STEM, TOP = 32, 1280


class EfficientNetLiteConfig(BackboneConfigMixin, PreTrainedConfig):
    """Scales of an EfficientNet-lite; the defaults are lite0.

    `width`, `depth`: factors of channels and blocks: lite1 1.0/1.1, lite2 1.1/1.2, lite3 1.2/1.4, lite4 1.4/1.8. `dropout` acts
    before the classifier, `drop_connect` is the rate at which the last block's residual branch is left out, less for those before.
    `detector_width`, `detector_depth`: of a detector's neck and heads, as `YoloxConfig` has them.
    """

    model_type = "tlcore-efficientnet-lite"

    num_channels: int = 3
    image_size: int = 224
    width: float = 1.0
    depth: float = 1.0
    dropout: float = 0.2
    drop_connect: float = 0.2
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.01
    detector_width: float = 0.5
    detector_depth: float = 0.33

    def __post_init__(self, **kwargs: Any) -> None:
        check_counts(self, "num_channels", "image_size")
        check_fraction(self, "dropout", "drop_connect")
        for name in ("width", "depth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{self.model_type}: {name} is {getattr(self, name)!r}; give a factor above 0")
        self.stage_names = ["stem", *(f"stage{at}" for at in range(1, len(STAGES) + 1))]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def stages(self) -> list[tuple[int, int, int, int, int]]:
        """`STAGES` at this scale."""
        last = len(STAGES) - 1
        return [
            (
                blocks if at in (0, last) else math.ceil(self.depth * blocks),
                kernel,
                stride,
                expansion,
                _multiple_of_8(self.width * channels),
            )
            for at, (blocks, kernel, stride, expansion, channels) in enumerate(STAGES)
        ]


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, but not more than a tenth below what was asked for."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class SamePadConv(nn.Conv2d):
    """A convolution without bias whose output is the input's size over its stride, rounded up, as in TensorFlow: where the padding
    is odd, the extra row stands at the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, outputs, ceil(h / stride), ceil(w / stride)]."""
        sides: list[int] = []
        for size in (input.shape[-1], input.shape[-2]):
            steps = -(-size // self.stride[0])
            total = max((steps - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            sides += [total // 2, total - total // 2]
        return super().forward(functional.pad(input, sides) if any(sides) else input)


class ConvNorm(nn.Module):
    """A convolution and its batch norm, with ReLU6 where `active`."""

    def __init__(self, convolution: SamePadConv, config: EfficientNetLiteConfig, active: bool = True) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = nn.BatchNorm2d(convolution.out_channels, config.batch_norm_eps, config.batch_norm_momentum)
        self.active = active

    def forward(self, values: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, outputs, h', w']."""
        normed: Tensor = self.norm(self.convolution(values))
        return functional.relu6(normed) if self.active else normed


class EfficientNetLiteBlock(GradientCheckpointingLayer):
    """An inverted residual: expand, filter each channel by itself, project."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop: float, config: Any
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = ConvNorm(SamePadConv(inputs, inner, 1), config) if expansion > 1 else None
        self.depthwise = ConvNorm(SamePadConv(inner, inner, kernel, stride, groups=inner), config)
        self.project = ConvNorm(SamePadConv(inner, outputs, 1), config, active=False)
        self.residual = inputs == outputs and stride == 1
        self.drop = drop

    def forward(self, values: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, outputs, h / stride, w / stride]."""
        inner = values if self.expand is None else self.expand(values)
        branch: Tensor = self.project(self.depthwise(inner))
        if not self.residual:
            return branch
        kept: Tensor = stochastic_depth(branch, self.drop, "row", self.training)
        return values + kept


class EfficientNetLitePreTrainedModel(PreTrainedModel):
    """What backbones and classifier share."""

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities: ClassVar[tuple[str, ...]] = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["EfficientNetLiteBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As its authors: convolutions normal by their fan-out, the classifier uniform by its classes."""
        if isinstance(module, ScoreConv):
            module.begin()
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.out_features)
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class EfficientNetLiteModel(EfficientNetLitePreTrainedModel):
    """Stem, blocks, and (where `with_top`) the last 1x1 convolution with pooling over the image."""

    def __init__(self, config: EfficientNetLiteConfig, with_top: bool = True) -> None:
        super().__init__(config)
        stages = config.stages()
        total, made, channels = sum(stage[0] for stage in stages), 0, STEM
        self.stem = ConvNorm(SamePadConv(config.num_channels, STEM, 3, 2), config)
        self.blocks = nn.ModuleList()
        self.stage_ends: list[int] = []
        for blocks, kernel, stride, expansion, outputs in stages:
            for first in (True, *([False] * (blocks - 1))):
                drop = config.drop_connect * made / total
                step = stride if first else 1
                self.blocks.append(EfficientNetLiteBlock(channels, outputs, kernel, step, expansion, drop, config))
                channels, made = outputs, made + 1
            self.stage_ends.append(made - 1)
        self.top = ConvNorm(SamePadConv(channels, TOP, 1), config) if with_top else None
        self.post_init()

    def stages(self, pixel_values: Tensor) -> list[Tensor]:
        """Feature maps of the stem and of each stage. Raises ValueError for anything but images of the model's channels."""
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values are {list(pixel_values.shape)}; this model takes [batch, {self.config.num_channels}, height, width]"
            )
        values = self.stem(pixel_values)
        found = [values]
        for at, block in enumerate(self.blocks):
            values = block(values)
            if at in self.stage_ends:
                found.append(values)
        return found

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """Those at strides 4, 8, 16 and 32."""
        found = self.stages(pixel_values)
        return [found[at] for at in MAP_STAGES]

    def map_channels(self) -> list[int]:
        """Of `maps`."""
        stages = self.config.stages()
        return [stages[at - 1][-1] for at in MAP_STAGES]

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **_: Any
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """`last_hidden_state` [B, 1280, h / 32, w / 32] and its mean `pooler_output` [B, 1280]; on wish the stages' maps."""
        maps = self.stages(pixel_values)
        last = maps[-1] if self.top is None else self.top(maps[-1])
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last,
            pooler_output=last.mean(dim=(2, 3)),
            hidden_states=tuple(maps) if output_hidden_states else None,
        )


class EfficientNetLiteBackbone(BackboneMixin, EfficientNetLiteModel):
    """The maps that `config.out_features` names (`stem`, `stage1` .. `stage7`), for detectors and segmenters."""

    has_attentions = False

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config, with_top=False)
        self.num_features = [STEM, *(stage[-1] for stage in config.stages())]

    def forward(self, pixel_values: Tensor, output_hidden_states: bool | None = None, **_: Any) -> BackboneOutput:
        """Feature maps, finest first."""
        maps = dict(zip(self.config.stage_names, self.stages(pixel_values), strict=True))
        return BackboneOutput(
            feature_maps=tuple(maps[name] for name in self.out_features),
            hidden_states=tuple(maps.values()) if output_hidden_states else None,
        )


class EfficientNetLiteForImageClassification(EfficientNetLitePreTrainedModel):
    """The backbone with dropout and a linear classifier."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.efficientnet_lite = EfficientNetLiteModel(config)
        self.classifier = nn.Linear(TOP, config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits [B, C]; with `labels` (as `config.problem_type` says) the loss."""
        pooled = self.efficientnet_lite(pixel_values).pooler_output
        logits = self.classifier(functional.dropout(pooled, self.config.dropout, self.training))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


class EfficientNetLiteForSemanticSegmentation(EfficientNetLitePreTrainedModel):
    """A class for every pixel."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.efficientnet_lite = EfficientNetLiteModel(config, with_top=False)
        self.head = PyramidHead(self.efficientnet_lite.map_channels(), config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> SemanticSegmenterOutput:
        """Logits [B, C, h / 4, w / 4]; with `labels` [B, h, w] the loss."""
        return segmented(self.head(self.efficientnet_lite.maps(pixel_values)), labels)


class EfficientNetLiteForObjectDetection(EfficientNetLitePreTrainedModel):
    """Boxes, as YOLOX finds them."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.efficientnet_lite = EfficientNetLiteModel(config, with_top=False)
        scales = YoloxConfig(width=config.detector_width, depth=config.detector_depth, num_labels=config.num_labels)
        self.detector = MapDetector(scales, self.efficientnet_lite.map_channels()[1:])
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Sequence[Labels] | None = None, **_: Any) -> YoloxOutput:
        """As `YoloxForObjectDetection.forward`."""
        maps = self.efficientnet_lite.maps(pixel_values)[1:]
        return self.detector(maps, pixel_values.shape[-2:], labels)  # type: ignore[no-any-return]

    post_process_object_detection = staticmethod(YoloxForObjectDetection.post_process_object_detection)
