"""DeepSpeech 2: convolutions over the spectrogram, a stack of recurrent layers with sequence-wise batch norm, one dense layer, CTC.

Source: Amodei et al. 2015, "Deep Speech 2: End-to-End Speech Recognition in English and Mandarin", arXiv:1512.02595, section 3.
Owns configuration, backbone and CTC model; the features are `spectrogram.py`'s. Registered by `__init__.py`.

    convolution   h = g(B(w * h)), 1-D over time or 2-D over frequency and time
    recurrent     hf_t = g(B(W h_t) + Uf hf_t-1), hb_t likewise backward, h = hf + hb; W is shared by both directions
    row conv.     r_t,i = sum over j = 0..tau of R_i,j h_t+j,i, for one-directional stacks
    dense         h = g(B(W h)),   logits = W h + b

g(z) = min(max(z, 0), 20); B is batch norm with mean and variance over all frames of the batch (section 3.2); the GRU cell is that
of section 3.5, whose gates get the same treatment. The paper's table 1 has four networks of 38 million parameters: one 1-D
convolution of width 11 over all 161 bins, 1, 3, 5 or 7 recurrent layers of 2400, 1880, 1510 or 1280 units, and dense layers up to
5, 5, 7 or 9 layers in all. Its best English network has three 2-D convolutions and seven recurrent layers: the defaults here, at
1760 units.

Shapes: B utterances, T frames, F bins, S steps, H units, C classes.
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
from tlcore.models.families.recurrence import CELLS, Recurrence, clipped_relu

CONVOLUTIONS = [[32, 41, 11, 2, 2], [32, 21, 11, 2, 1], [96, 21, 11, 2, 1]]


class DeepSpeech2Config(PreTrainedConfig):
    """Sizes of a DeepSpeech 2 network.

    `convolutions`: per layer [channels, width in bins, width in frames, stride in bins, stride in frames]. A width of all the bins
    there are makes it a 1-D convolution, without padding in frequency. `cell`: rnn or gru. `row_context`: future steps that the
    row convolution sees, 0 for none; it needs `bidirectional` false. `pad_token_id`: the CTC blank.
    """

    model_type = "tlcore-deepspeech2"

    feature_size: int = 161
    convolutions: list[list[int]] | None = None
    hidden_size: int = 1760
    num_hidden_layers: int = 7
    dense_layers: int = 1
    cell: str = "rnn"
    bidirectional: bool = True
    row_context: int = 0
    dropout: float = 0.0
    batch_norm_momentum: float = 0.1
    batch_norm_eps: float = 1e-5
    vocab_size: int = 29
    pad_token_id: int = 0
    ctc_loss_reduction: str = "mean"
    ctc_zero_infinity: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.convolutions = CONVOLUTIONS if self.convolutions is None else self.convolutions
        check_counts(self, "feature_size", "hidden_size", "num_hidden_layers", "vocab_size")
        check_counts(self, "dense_layers", "row_context", least=0)
        check_fraction(self, "dropout")
        check_choice(self, "cell", tuple(CELLS))
        check_choice(self, "ctc_loss_reduction", ("mean", "sum"))
        for row in self.convolutions:
            if len(row) != 5 or not all(isinstance(each, int) and each > 0 for each in row) or not row[2] % 2:
                raise ValueError(
                    f"{self.model_type}: convolutions has {row!r}; give [channels, bins, frames, stride in bins, stride in frames],"
                    " with an odd width in frames"
                )
        if self.row_context and self.bidirectional:
            raise ValueError(f"{self.model_type}: row_context is {self.row_context}, which needs bidirectional: false")
        super().__post_init__(**kwargs)


class SequenceBatchNorm(nn.Module):
    """Batch norm whose mean and variance are over all frames of the batch that are no padding, and over the bins."""

    running_mean: Tensor
    running_var: Tensor
    fp32_statistics = True

    def __init__(self, channels: int, momentum: float, eps: float) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, values: Tensor, keep: Tensor) -> Tensor:
        """Normalise `values` [B, channels, bins, T]; `keep` [B, T]. Statistics are taken in fp32."""
        wide = values.float()
        if self.training:
            mean, variance = self._measured(wide, keep)
        else:
            mean, variance = self.running_mean.float(), self.running_var.float()
        scale = torch.rsqrt(variance + self.eps) * self.weight.float()
        shift = self.bias.float() - mean * scale
        return (wide * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(values.dtype)

    def _measured(self, wide: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        weights = keep[:, None, None, :].to(wide.dtype)
        count = (weights.sum() * wide.shape[2]).clamp(min=1)
        mean = (wide * weights).sum(dim=(0, 2, 3)) / count
        centred = (wide - mean.view(-1, 1, 1)) * weights
        variance = centred.square().sum(dim=(0, 2, 3)) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return mean, variance

    def reset(self) -> None:
        """Scale 1, shift 0, no statistics."""
        for one in (self.weight, self.running_var):
            init.ones_(one)
        for zero in (self.bias, self.running_mean):
            init.zeros_(zero)


class DeepSpeech2Convolution(nn.Module):
    """A convolution over bins and frames, batch norm, clipped ReLU."""

    def __init__(self, channels: int, bins: int, row: list[int], config: DeepSpeech2Config) -> None:
        super().__init__()
        made, wide, long, stride_bins, stride = row
        padding = 0 if wide == bins else wide // 2
        self.bins = (bins + 2 * padding - wide) // stride_bins + 1
        self.convolution = nn.Conv2d(
            channels, made, (wide, long), (stride_bins, stride), (padding, long // 2), bias=False
        )
        self.norm = SequenceBatchNorm(made, config.batch_norm_momentum, config.batch_norm_eps)

    def forward(self, values: Tensor, keep: Tensor) -> Tensor:
        """[B, channels, bins, T] to [B, channels', bins', S]; `keep` [B, S] is that of the result, which is 0 on padding."""
        normed = self.norm(self.convolution(values), keep)
        return clipped_relu(normed) * keep[:, None, None, :].to(normed.dtype)


class DeepSpeech2Dense(nn.Module):
    """A product with batch norm, before the non-linearity."""

    def __init__(self, inputs: int, outputs: int, config: DeepSpeech2Config) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = SequenceBatchNorm(outputs, config.batch_norm_momentum, config.batch_norm_eps)

    def forward(self, hidden: Tensor, keep: Tensor) -> Tensor:
        """B(W h): [B, S, inputs] to [B, S, outputs]."""
        channels_first = self.linear(hidden).transpose(1, 2).unsqueeze(2)
        normed: Tensor = self.norm(channels_first, keep)
        return normed.squeeze(2).transpose(1, 2)


class DeepSpeech2Layer(GradientCheckpointingLayer):
    """One recurrent layer; the sum of its directions goes on."""

    def __init__(self, inputs: int, config: DeepSpeech2Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.dense = DeepSpeech2Dense(inputs, CELLS[config.cell] * config.hidden_size, config)
        self.recurrence = Recurrence(config.hidden_size, config.cell, 2 if config.bidirectional else 1)

    def forward(self, hidden: Tensor, keep: Tensor) -> Tensor:
        """[B, S, inputs] to [B, S, H], zero on padding."""
        states = self.recurrence(self.dense(hidden, keep), keep)
        return functional.dropout(states, self.dropout, self.training)


class RowConvolution(nn.Module):
    """Each unit's weighted sum over its own present and `context` future steps (section 3.7)."""

    def __init__(self, units: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.weight = nn.Parameter(torch.empty(units, 1, context + 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, S, H] to the same shape; steps beyond the end count as zero."""
        ahead = functional.pad(hidden.transpose(1, 2), (0, self.context))
        return functional.conv1d(ahead, self.weight, groups=hidden.shape[-1]).transpose(1, 2)


class DeepSpeech2PreTrainedModel(PreTrainedModel):
    """What backbone and CTC model share."""

    config: DeepSpeech2Config
    config_class = DeepSpeech2Config
    base_model_prefix = "deepspeech2"
    main_input_name = "input_features"
    input_modalities: ClassVar[tuple[str, ...]] = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["DeepSpeech2Layer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Recurrence | SequenceBatchNorm):
            module.reset()
        elif isinstance(module, RowConvolution):
            bound = (module.context + 1) ** -0.5
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            init.kaiming_uniform_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)

    def _get_feat_extract_output_lengths(self, frames: Tensor | int) -> Tensor | int:
        """Steps that so many frames make, as transformers' CTC models name it."""
        for row in self.config.convolutions or []:
            frames = (frames - 1) // row[4] + 1
        return frames


class DeepSpeech2Model(DeepSpeech2PreTrainedModel):
    """Everything below the output layer."""

    def __init__(self, config: DeepSpeech2Config) -> None:
        super().__init__(config)
        channels, bins = 1, config.feature_size
        self.convolutions = nn.ModuleList()
        for row in config.convolutions or []:
            layer = DeepSpeech2Convolution(channels, bins, row, config)
            channels, bins = row[0], layer.bins
            self.convolutions.append(layer)
        units = config.hidden_size
        self.layers = nn.ModuleList(
            DeepSpeech2Layer(units if at else channels * bins, config) for at in range(config.num_hidden_layers)
        )
        self.row_convolution = RowConvolution(units, config.row_context) if config.row_context else None
        self.dense = nn.ModuleList(DeepSpeech2Dense(units, units, config) for _ in range(config.dense_layers))
        self.post_init()

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """The last layer's states [B, S, H] of features [B, T, F]; `attention_mask` [B, T] is 0 on padding, at the end."""
        check_features(input_features, self.config.feature_size)
        keep = frames_kept(input_features, attention_mask)
        image = (input_features * keep.unsqueeze(-1).to(input_features.dtype)).transpose(1, 2).unsqueeze(1)
        for convolution, row in zip(self.convolutions, self.config.convolutions or [], strict=True):
            keep = shortened(keep, row[4])
            image = convolution(image, keep)
        hidden = image.flatten(1, 2).transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden, keep)
        if self.row_convolution is not None:
            hidden = self.row_convolution(hidden)
        for dense in self.dense:
            hidden = clipped_relu(dense(hidden, keep))
        return BaseModelOutput(last_hidden_state=hidden)


class DeepSpeech2ForCTC(DeepSpeech2PreTrainedModel):
    """DeepSpeech 2 with its output layer and the CTC loss."""

    def __init__(self, config: DeepSpeech2Config) -> None:
        super().__init__(config)
        self.deepspeech2 = DeepSpeech2Model(config)
        self.ctc_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self, input_features: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Logits [B, S, C] of features [B, T, F]; with `labels` [B, L] (below 0: padding) the loss.

        Raises ValueError for features of another size and labels that are no class.
        """
        logits = self.ctc_head(self.deepspeech2(input_features, attention_mask).last_hidden_state)
        keep = frames_kept(input_features, attention_mask)
        for row in self.config.convolutions or []:
            keep = shortened(keep, row[4])
        loss = None if labels is None else ctc_loss(self.config, logits, labels, keep)
        return CausalLMOutput(loss=loss, logits=logits)
