"""Heads that answer for every place of a picture, on the feature maps of a convolutional network: segmentation and detection.

Sources: segmentation is the semantic branch of Kirillov et al. 2019, "Panoptic Feature Pyramid Networks", arXiv:1901.02446, section
3.1, on a feature pyramid (Lin et al. 2017, arXiv:1612.03144). Detection is YOLOX's neck and heads (`yolo.py`), with the network in
place of its Darknet. Owns the heads and what both take of a network; which maps a network has is its own module's
(`torchvision_models.py`, `efficientnet_lite.py`), and so are the models made of both.

Shapes: B images of h x w pixels, C classes; maps at strides 4, 8, 16 and 32, finest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput

from tlcore.models.families.yolo import (
    Conv,
    YoloxConfig,
    YoloxLevelHead,
    YoloxNeck,
    YoloxOutput,
    YoloxPreTrainedModel,
    answers,
)
from tlcore.models.families.yolo_loss import Labels

STRIDES: Final = (4, 8, 16, 32)
"""Of the maps that the heads take; a detector leaves the first one."""
PYRAMID_CHANNELS, BRANCH_CHANNELS, GROUPS = 256, 128, 32
"""As published."""
NO_CLASS: Final = 255


class ScoreConv(nn.Conv2d):
    """The layer that gives classes, which begins with small weights, so that training begins with no opinion."""

    def begin(self) -> None:
        """Draw them."""
        init.normal_(self.weight, 0.0, 0.01)
        if self.bias is not None:
            init.zeros_(self.bias)


class PyramidHead(nn.Module):
    """Semantic segmentation of four maps. Args: `channels`: of the maps, finest first."""

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(each, PYRAMID_CHANNELS, 1) for each in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(PYRAMID_CHANNELS, PYRAMID_CHANNELS, 3, padding=1) for _ in channels)
        self.branches = nn.ModuleList(_Branch(max(1, at)) for at in range(len(channels)))
        self.classifier = ScoreConv(BRANCH_CHANNELS, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [B, C, h / 4, w / 4]."""
        above: Tensor | None = None
        pyramid: list[Tensor] = []
        for lateral, smooth, values in reversed(list(zip(self.lateral, self.smooth, maps, strict=True))):
            own = lateral(values)
            above = own if above is None else own + functional.interpolate(above, own.shape[-2:], mode="nearest")
            pyramid.insert(0, smooth(above))
        finer = [values.shape[-2:] for values in pyramid]
        summed = sum(
            branch(values, finer[:at]) for at, (branch, values) in enumerate(zip(self.branches, pyramid, strict=True))
        )
        found: Tensor = self.classifier(summed)
        return found


class _Branch(nn.Module):
    """One map to the finest one's size, in stages of a convolution, a group norm and doubling."""

    def __init__(self, stages: int) -> None:
        super().__init__()
        inputs = [PYRAMID_CHANNELS, *[BRANCH_CHANNELS] * (stages - 1)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(each, BRANCH_CHANNELS, 3, padding=1), nn.GroupNorm(GROUPS, BRANCH_CHANNELS), nn.ReLU()
            )
            for each in inputs
        )

    def forward(self, values: Tensor, finer: Sequence[Any]) -> Tensor:
        """`finer`: heights and widths of the maps finer than this one, finest first."""
        for at, stage in enumerate(self.stages):
            values = stage(values)
            if finer:
                values = functional.interpolate(values, finer[-1 - at], mode="bilinear", align_corners=False)
        return values


def segmented(logits: Tensor, labels: Tensor | None) -> SemanticSegmenterOutput:
    """`logits` as they are; with `labels` [B, h, w] the mean loss over pixels but those of `NO_CLASS`, as in transformers."""
    loss = None
    if labels is not None:
        whole = functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        loss = functional.cross_entropy(whole, labels, ignore_index=NO_CLASS)
    return SemanticSegmenterOutput(loss=loss, logits=logits)


class MapDetector(YoloxPreTrainedModel):
    """YOLOX's neck and heads on three maps of another network, each brought to the channels of a Darknet by a 1x1 convolution.

    It is a model of its own inside another, so that its layers begin as YOLOX's do, whatever rule the network's family has.

    Args:
        config: scales and classes.
        channels: of the maps at strides 8, 16 and 32.
    """

    def __init__(self, config: YoloxConfig, channels: Sequence[int]) -> None:
        super().__init__(config)
        own = config.channels()[2:]
        self.bring = nn.ModuleList(Conv(config, each, to, 1) for each, to in zip(channels, own, strict=True))
        self.neck = YoloxNeck(config)
        self.head = nn.ModuleList(YoloxLevelHead(config, each) for each in own)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int], labels: Sequence[Labels] | None) -> YoloxOutput:
        """What `YoloxForObjectDetection` answers for pictures of `size` (height, width). Raises ValueError for sides that are no
        multiples of 32."""
        if any(side % STRIDES[-1] for side in size):
            raise ValueError(
                f"pictures are {' x '.join(map(str, size))}; a detector takes multiples of {STRIDES[-1]}: resize or pad them"
            )
        brought = [bring(values) for bring, values in zip(self.bring, maps, strict=True)]
        return answers(self.head, self.neck(*brought), size, labels)
