"""Deep support vector data description: a network that maps what is normal close to one point.

Source: Ruff et al. 2018, "Deep One-Class Classification", ICML, the one-class form (equation 4): a last layer without a bias, and a
fixed centre, the mean of the untrained network's answers. Their network has no bias anywhere, so that no constant answer can be
learned; a pre-trained backbone has, and what keeps it from that is that it is judged, and stopped, by anomalies held out. Owns
configuration and network; centre and loss are `tasks/anomaly_detection.py`'s. Registered by `__init__.py`.

Shapes: B pictures, 3 channels, h x w pixels, E numbers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from tlcore.models.families.torchvision_models import head_name


class OneClassConfig(PreTrainedConfig):
    """`network`: configuration of an image classifier, as its config.json has it. `embedding_size`: E."""

    model_type = "tlcore-one-class"

    network: dict[str, Any] | None = None
    embedding_size: int = 32

    def network_config(self) -> Any:
        """As transformers' class. Raises ValueError where there is none."""
        given = dict(self.network or {})
        kind = given.pop("model_type", None)
        if kind is None:
            raise ValueError(
                f"{self.model_type}: network is {self.network!r}; give an image classifier's configuration"
            )
        return AutoConfig.for_model(kind, **given)


class OneClassModel(PreTrainedModel):
    """An image classifier with a projection to E numbers in place of its last layer, and the `centre` [E]."""

    config: OneClassConfig
    config_class = OneClassConfig
    base_model_prefix = "network"
    main_input_name = "pixel_values"
    input_modalities: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, config: OneClassConfig) -> None:
        super().__init__(config)
        self.network = AutoModelForImageClassification.from_config(config.network_config())
        self.projection = nn.Linear(take_off_head(self.network), config.embedding_size, bias=False)
        self.register_buffer("centre", torch.zeros(config.embedding_size))
        self.post_init()

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None, **_: Any) -> ModelOutput:
        """`embeddings` [B, E]."""
        settings = {} if interpolate_pos_encoding is None else {"interpolate_pos_encoding": interpolate_pos_encoding}
        return ModelOutput(embeddings=self.projection(self.network(pixel_values=pixel_values, **settings).logits))


def take_off_head(network: nn.Module) -> int:
    """Leave out a classifier's last linear layer, so that its logits are the features; returns how many those are."""
    name = head_name(network)
    size = int(network.get_submodule(name).in_features)  # type: ignore[arg-type]
    network.set_submodule(name, nn.Identity())
    return size
