"""YOLOX: a real-time convolutional detector without anchors, as published.

Source: Ge et al. 2021, "YOLOX: Exceeding YOLO Series in 2021", arXiv:2107.08430: a CSP Darknet (Wang et al. 2020,
arXiv:1911.11929) with spatial pooling, a path aggregation network (Liu et al. 2018, arXiv:1803.01534) over strides 8, 16 and 32,
and at each a decoupled head for class, box and objectness. Published sizes with 80 classes, in million parameters: tiny 5.06,
S 9.0, M 25.3, L 54.2, X 99.1 (the depthwise Nano is not here). The paper adds an L1 loss in its last 15 of 300 epochs; here there
is none. Owns configuration, network and the reading of its outputs; the loss is `yolo_loss.py`'s. Registered by `__init__.py`.

Inputs are images whose sides are multiples of 32; labels are DETR's: one {"class_labels" [G], "boxes" [G, 4]} per image, boxes as
centre and size over the image's. Published weights are not read: they come as pickled training states.

Shapes: B images, h x w, A places (h/8 w/8 + h/16 w/16 + h/32 w/32), C classes, G objects of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms, box_convert
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from tlcore.models.families.checks import check_counts
from tlcore.models.families.yolo_loss import Labels, Places, detection_loss

STRIDES = (8, 16, 32)
PRIOR = 0.01
"""What a place is thought to hold before any training."""


class YoloxConfig(PreTrainedConfig):
    """Scales of a YOLOX; the defaults are S.

    `width`, `depth`: factors of channels and blocks: tiny 0.375/0.33, S 0.5/0.33, M 0.75/0.67, L 1/1, X 1.25/1.33.
    """

    model_type = "tlcore-yolox"

    num_channels: int = 3
    width: float = 0.5
    depth: float = 0.33
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.03

    def __post_init__(self, **kwargs: Any) -> None:
        check_counts(self, "num_channels")
        for name in ("width", "depth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{self.model_type}: {name} is {getattr(self, name)!r}; give a factor above 0")
        if self.channels()[0] < 2:
            raise ValueError(f"{self.model_type}: width {self.width} leaves no channels; give at least {2 / 64}")
        super().__post_init__(**kwargs)

    def channels(self) -> list[int]:
        """Of the stem and of the maps at strides 4 to 32."""
        stem = int(64 * self.width)
        return [stem * 2**at for at in range(5)]


@dataclass
class YoloxOutput(ModelOutput):
    """`logits` [B, A, C] and `objectness` [B, A] before the sigmoid; `pred_boxes` [B, A, 4], centre and size over the image's;
    `image_losses` [B], each image's own."""

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    objectness: Tensor | None = None
    pred_boxes: Tensor | None = None
    image_losses: Tensor | None = None


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, config: YoloxConfig, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, config.batch_norm_eps, config.batch_norm_momentum)

    def forward(self, values: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, outputs, h / stride, w / stride]."""
        return functional.silu(self.norm(self.convolution(values)))


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution, with a residual connection where `shortcut`."""

    def __init__(self, config: YoloxConfig, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.reduce, self.filter = Conv(config, channels, channels, 1), Conv(config, channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, values: Tensor) -> Tensor:
        """[B, channels, h, w] to the same."""
        found: Tensor = self.filter(self.reduce(values))
        return values + found if self.shortcut else found


class CrossStage(nn.Module):
    """Half of the channels go through bottlenecks, half around them."""

    def __init__(self, config: YoloxConfig, inputs: int, outputs: int, blocks: int, shortcut: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.through, self.around = Conv(config, inputs, half, 1), Conv(config, inputs, half, 1)
        self.bottlenecks = nn.Sequential(*(Bottleneck(config, half, shortcut) for _ in range(blocks)))
        self.join = Conv(config, 2 * half, outputs, 1)

    def forward(self, values: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, outputs, h, w]."""
        found: Tensor = self.join(torch.cat([self.bottlenecks(self.through(values)), self.around(values)], dim=1))
        return found


class SpatialPooling(nn.Module):
    """A map beside its maxima over 5, 9 and 13 places."""

    def __init__(self, config: YoloxConfig, channels: int) -> None:
        super().__init__()
        self.reduce, self.join = Conv(config, channels, channels // 2, 1), Conv(config, channels // 2 * 4, channels, 1)

    def forward(self, values: Tensor) -> Tensor:
        """[B, channels, h, w] to the same."""
        reduced = self.reduce(values)
        pooled = [functional.max_pool2d(reduced, size, 1, size // 2) for size in (5, 9, 13)]
        found: Tensor = self.join(torch.cat([reduced, *pooled], dim=1))
        return found


class YoloxStage(GradientCheckpointingLayer):
    """Halves the map and doubles its channels; the last one pools over space too."""

    def __init__(self, config: YoloxConfig, inputs: int, blocks: int, last: bool) -> None:
        super().__init__()
        outputs = 2 * inputs
        self.down = Conv(config, inputs, outputs, 3, 2)
        self.pooling = SpatialPooling(config, outputs) if last else None
        self.cross = CrossStage(config, outputs, outputs, blocks, shortcut=not last)

    def forward(self, values: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, 2 inputs, h / 2, w / 2]."""
        halved = self.down(values)
        found: Tensor = self.cross(halved if self.pooling is None else self.pooling(halved))
        return found


class YoloxNeck(nn.Module):
    """Path aggregation: what the coarse maps know goes up to the fine ones and down again."""

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.channels()[2:]
        blocks = round(3 * config.depth)

        def cross(inputs: int, outputs: int) -> CrossStage:
            return CrossStage(config, inputs, outputs, blocks, shortcut=False)

        self.reduce_coarse, self.up_middle = Conv(config, coarse, middle, 1), cross(2 * middle, middle)
        self.reduce_middle, self.up_fine = Conv(config, middle, fine, 1), cross(2 * fine, fine)
        self.halve_fine, self.down_middle = Conv(config, fine, fine, 3, 2), cross(2 * fine, middle)
        self.halve_middle, self.down_coarse = Conv(config, middle, middle, 3, 2), cross(2 * middle, coarse)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps at strides 8, 16 and 32 to maps of the same shapes."""
        top = self.reduce_coarse(coarse)
        between = self.reduce_middle(self.up_middle(torch.cat([_doubled(top), middle], dim=1)))
        first = self.up_fine(torch.cat([_doubled(between), fine], dim=1))
        second = self.down_middle(torch.cat([self.halve_fine(first), between], dim=1))
        return first, second, self.down_coarse(torch.cat([self.halve_middle(second), top], dim=1))


def _doubled(values: Tensor) -> Tensor:
    return functional.interpolate(values, scale_factor=2, mode="nearest")


class RareConv(nn.Conv2d):
    """A convolution that begins with saying `PRIOR`."""


class YoloxLevelHead(nn.Module):
    """Class, box and objectness at each place of one map, from two branches."""

    def __init__(self, config: YoloxConfig, inputs: int) -> None:
        super().__init__()
        units = int(256 * config.width)
        self.stem = Conv(config, inputs, units, 1)
        self.class_branch = nn.Sequential(Conv(config, units, units, 3), Conv(config, units, units, 3))
        self.box_branch = nn.Sequential(Conv(config, units, units, 3), Conv(config, units, units, 3))
        self.classes = RareConv(units, config.num_labels, 1)
        self.boxes = nn.Conv2d(units, 4, 1)
        self.objectness = RareConv(units, 1, 1)

    def forward(self, values: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, h w, 4 + 1 + C]."""
        stem = self.stem(values)
        classes, boxes = self.class_branch(stem), self.box_branch(stem)
        found = torch.cat([self.boxes(boxes), self.objectness(boxes), self.classes(classes)], dim=1)
        return found.flatten(2).transpose(1, 2)


class YoloxPreTrainedModel(PreTrainedModel):
    """What network and detector share."""

    config: YoloxConfig
    config_class = YoloxConfig
    base_model_prefix = "yolox"
    main_input_name = "pixel_values"
    input_modalities: ClassVar[tuple[str, ...]] = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["YoloxStage"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                rare = isinstance(module, RareConv)
                init.constant_(module.bias, -math.log((1 - PRIOR) / PRIOR) if rare else 0.0)
        else:
            super()._init_weights(module)


class YoloxModel(YoloxPreTrainedModel):
    """Backbone and neck."""

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__(config)
        channels, base = config.channels(), max(round(3 * config.depth), 1)
        self.stem = Conv(config, 4 * config.num_channels, channels[0], 3)
        depths = (base, 3 * base, 3 * base, base)
        self.stages = nn.ModuleList(
            YoloxStage(config, channels[at], depths[at], last=at == len(depths) - 1) for at in range(len(depths))
        )
        self.neck = YoloxNeck(config)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """`hidden_states`: maps at strides 8, 16 and 32 of images [B, channels, h, w]. Raises ValueError for other inputs."""
        channels = self.config.num_channels
        if pixel_values.dim() != 4 or pixel_values.shape[1] != channels or any(n % 32 for n in pixel_values.shape[2:]):
            raise ValueError(
                f"pixel_values are {list(pixel_values.shape)}; this model takes [batch, {channels}, height, width] with sides that"
                " are multiples of 32: resize or pad them"
            )
        values = self.stem(_by_four(pixel_values))
        maps = []
        for stage in self.stages:
            values = stage(values)
            maps.append(values)
        found = self.neck(*maps[1:])
        return BaseModelOutput(last_hidden_state=found[-1], hidden_states=tuple(found))


def _by_four(images: Tensor) -> Tensor:
    """Each 2x2 pixels become channels: top left, bottom left, top right, bottom right, as published."""
    left, right = images[..., ::2], images[..., 1::2]
    return torch.cat([left[..., ::2, :], left[..., 1::2, :], right[..., ::2, :], right[..., 1::2, :]], dim=1)


def answers(
    heads: nn.ModuleList, maps: Sequence[Tensor], size: Sequence[int], labels: Sequence[Labels] | None
) -> YoloxOutput:
    """What the heads say of maps at `STRIDES` of pictures of `size` (height, width); with `labels` the loss and its parts."""
    raw = torch.cat([head(each) for head, each in zip(heads, maps, strict=True)], dim=1).float()
    places = Places.of([each.shape[-2:] for each in maps], STRIDES, raw.device)
    boxes = places.decode(raw[..., :4])
    height, width = size
    scale = boxes.new_tensor([width, height, width, height])
    loss, parts, images = (None, None, None) if labels is None else detection_loss(raw, boxes, places, labels, scale)
    return YoloxOutput(
        loss=loss,
        loss_dict=parts,
        logits=raw[..., 5:],
        objectness=raw[..., 4],
        pred_boxes=boxes / scale,
        image_losses=images,
    )


class YoloxForObjectDetection(YoloxPreTrainedModel):
    """The detector."""

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.yolox = YoloxModel(config)
        self.head = nn.ModuleList(YoloxLevelHead(config, channels) for channels in config.channels()[2:])
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Sequence[Labels] | None = None, **_: Any) -> YoloxOutput:
        """What is seen at each place; with `labels` the loss and its parts. Raises ValueError for bad images or labels."""
        return answers(self.head, self.yolox(pixel_values).hidden_states, pixel_values.shape[-2:], labels)

    @staticmethod
    def post_process_object_detection(
        outputs: YoloxOutput,
        threshold: float = 0.5,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        iou_threshold: float = 0.65,
    ) -> list[dict[str, Tensor]]:
        """Objects per image: `scores` [K] falling, `labels` [K], `boxes` [K, 4] as corners (x, y, x, y).

        A place's score is its likeliest class's probability times its objectness; of boxes of one class that overlap by more than
        `iou_threshold` the best stays. Boxes are in pixels of `target_sizes` (height, width), or from 0 to 1.
        """
        assert outputs.logits is not None and outputs.objectness is not None and outputs.pred_boxes is not None
        likeliest, classes = outputs.logits.sigmoid().max(dim=-1)
        scores = likeliest * outputs.objectness.sigmoid()
        corners = box_convert(outputs.pred_boxes, "cxcywh", "xyxy")
        found = []
        for at in range(len(scores)):
            kept = scores[at] > threshold
            boxes, each, kinds = corners[at][kept], scores[at][kept], classes[at][kept]
            if target_sizes is not None:
                height, width = (float(side) for side in target_sizes[at])
                boxes = boxes * boxes.new_tensor([width, height, width, height])
            best = batched_nms(boxes, each, kinds, iou_threshold)
            found.append({"scores": each[best], "labels": kinds[best], "boxes": boxes[best]})
        return found
