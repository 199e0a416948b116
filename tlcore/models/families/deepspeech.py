"""DeepSpeech: three dense layers over a window of spectrogram frames, one bidirectional recurrent layer, one dense, CTC.

Source: Hannun et al. 2014, "Deep Speech: Scaling up end-to-end speech recognition", arXiv:1412.5567, section 2 (equations 1 to 4)
and 3.3 (strides). Owns configuration, backbone and CTC model; the features are `spectrogram.py`'s. Registered by `__init__.py`.

    h1, h2, h3 = g(W h + b)      g(z) = min(max(z, 0), 20); h1 over the frames t - C .. t + C
    hf_t = g(W4 h3_t + Uf hf_t-1 + b4),   hb_t = g(W4 h3_t + Ub hb_t+1 + b4)      W4 and b4 are shared
    h5 = g(W5 (hf + hb) + b5),   logits = W6 h5 + b6

The paper names 2048, 2304 and 2560 units and windows of C = 5, 7 or 9 frames to each side; it gives no count of parameters.
Dropout acts on the dense layers only, between 5 and 10 %.

Shapes: B utterances, T frames, F features, S steps (every `stride`-th frame), H units, C classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from tlcore.models.families.checks import check_choice, check_counts, check_fraction
from tlcore.models.families.ctc import check_features, ctc_loss, frames_kept, shortened
from tlcore.models.families.recurrence import Recurrence, clipped_relu

DENSE_BEFORE = 3
LAYERS = 5


class DeepSpeechConfig(PreTrainedConfig):
    """Sizes of a DeepSpeech network; the defaults are the paper's 2048 units over 161 spectrogram bins and 29 characters.

    `feature_size`: values per frame. `context`: frames to each side of a step. `stride`: frames per step; the paper takes every
    second one. `pad_token_id`: the CTC blank.
    """

    model_type = "tlcore-deepspeech"

    feature_size: int = 161
    context: int = 9
    stride: int = 2
    hidden_size: int = 2048
    dropout: float = 0.05
    vocab_size: int = 29
    pad_token_id: int = 0
    ctc_loss_reduction: str = "mean"
    ctc_zero_infinity: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        check_counts(self, "feature_size", "stride", "hidden_size", "vocab_size")
        check_counts(self, "context", least=0)
        check_fraction(self, "dropout")
        check_choice(self, "ctc_loss_reduction", ("mean", "sum"))
        super().__post_init__(**kwargs)


class DeepSpeechLayer(GradientCheckpointingLayer):
    """One of the paper's five hidden layers; with `recurrent` the fourth."""

    def __init__(self, inputs: int, units: int, recurrent: bool, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, units)
        self.recurrence = Recurrence(units, "rnn", directions=2) if recurrent else None
        self.dropout = 0.0 if recurrent else dropout

    def forward(self, hidden: Tensor, keep: Tensor) -> Tensor:
        """[B, S, inputs] to [B, S, H]; `keep` [B, S] is false on padding."""
        product = self.dense(hidden)
        if self.recurrence is not None:
            states: Tensor = self.recurrence(product, keep)
            return states
        return functional.dropout(clipped_relu(product), self.dropout, self.training)


class DeepSpeechPreTrainedModel(PreTrainedModel):
    """What backbone and CTC model share."""

    config: DeepSpeechConfig
    config_class = DeepSpeechConfig
    base_model_prefix = "deepspeech"
    main_input_name = "input_features"
    input_modalities: ClassVar[tuple[str, ...]] = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["DeepSpeechLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Recurrence):
            module.reset()
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)

    def _get_feat_extract_output_lengths(self, frames: Tensor | int) -> Tensor | int:
        """Steps that so many frames make, as transformers' CTC models name it."""
        return (frames - 1) // self.config.stride + 1


class DeepSpeechModel(DeepSpeechPreTrainedModel):
    """The five hidden layers."""

    def __init__(self, config: DeepSpeechConfig) -> None:
        super().__init__(config)
        window, units = config.feature_size * (2 * config.context + 1), config.hidden_size
        self.layers = nn.ModuleList(
            DeepSpeechLayer(units if at else window, units, at == DENSE_BEFORE, config.dropout) for at in range(LAYERS)
        )
        self.post_init()

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """The last layer's states [B, S, H] of features [B, T, F]; `attention_mask` [B, T] is 0 on padding, at the end."""
        check_features(input_features, self.config.feature_size)
        keep = frames_kept(input_features, attention_mask)
        hidden = self._windows(input_features * keep.unsqueeze(-1).to(input_features.dtype))
        steps = shortened(keep, self.config.stride)
        for layer in self.layers:
            hidden = layer(hidden, steps)
        return BaseModelOutput(last_hidden_state=hidden)

    def _windows(self, features: Tensor) -> Tensor:
        """[B, S, (2C + 1) F]: each step's frame with its neighbours in the order of time, zeros beyond the ends."""
        context, stride = self.config.context, self.config.stride
        padded = functional.pad(features, (0, 0, context, context))
        return padded.unfold(1, 2 * context + 1, stride).transpose(2, 3).flatten(2)


class DeepSpeechForCTC(DeepSpeechPreTrainedModel):
    """DeepSpeech with its output layer and the CTC loss."""

    def __init__(self, config: DeepSpeechConfig) -> None:
        super().__init__(config)
        self.deepspeech = DeepSpeechModel(config)
        self.ctc_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self, input_features: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Logits [B, S, C] of features [B, T, F]; with `labels` [B, L] (below 0: padding) the loss.

        Raises ValueError for features of another size and labels that are no class.
        """
        hidden = self.deepspeech(input_features, attention_mask).last_hidden_state
        logits = self.ctc_head(hidden)
        keep = shortened(frames_kept(input_features, attention_mask), self.config.stride)
        loss = None if labels is None else ctc_loss(self.config, logits, labels, keep)
        return CausalLMOutput(loss=loss, logits=logits)
