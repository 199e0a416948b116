"""torchvision's classifiers (ResNet, VGG, EfficientNet, MobileNetV2, ...) as transformers models.

Owns the wrapper; the networks are torchvision's own, each after the paper that its documentation names. A network's last linear
layer is the head, all before it the backbone, whose parameters keep torchvision's names below `backbone.network`. Weights come
through `models/torchvision_source.py`. Registered by `__init__.py`.

Shapes: B pictures, 3 channels, h x w pixels, F features, C classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)

NOT_TAKEN = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")
"""Networks that give more than one answer in training, or whose classifier is no linear layer."""


class TorchvisionConfig(PreTrainedConfig):
    """`network`: torchvision's name of it, such as resnet50. `settings`: what else its constructor takes."""

    model_type = "tlcore-torchvision"

    network: str = "resnet50"
    settings: dict[str, Any] | None = None

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
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, 0.0, 0.01)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class TorchvisionModel(TorchvisionPreTrainedModel):
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
