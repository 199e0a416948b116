"""What a model of sound takes: the source's own feature extractor around decoded samples.

Owns the tensors that come from sounds, and how long a sound the model takes. Called by the tasks of sound.

Three kinds of extractor are met: waveforms as they are, padded (Wav2Vec2, HuBERT); spectrograms, padded (DeepSpeech); and
spectrograms of one fixed window, whatever the sound's length (Whisper). Features are made anew for each batch: 16 clips of 3 s take
Whisper's extractor less than a tenth of the time that its smallest model takes for them on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tlcore.errors import Fault, RecipeError
from tlcore.tasks.base import Batch
from tlcore.tasks.logits import inputs_of
from tlcore.tasks.sounds import Pcm, as_floats

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.models import ModelSource

LENGTHS: Final = "input_lengths"
"""In a batch: how much of each row of the model's input is no padding (samples, or frames of a spectrogram)."""
_INPUTS: Final = ("input_values", "input_features", "attention_mask")


class SoundInputs:
    """The feature extractor of a source.

    Args:
        max_seconds: `data.max_seconds` of the recipe.
    """

    def __init__(self, source: ModelSource, max_seconds: float) -> None:
        self._source, self._max_seconds = source, max_seconds

    @cached_property
    def extractor(self) -> Any:
        """Raises ModelError; RecipeError where the model's window is shorter than `data.max_seconds`."""
        extractor = self._source.load_preprocessor("AutoFeatureExtractor")
        window_s = getattr(extractor, "chunk_length", None)
        if window_s is not None and self._max_seconds > window_s:
            text = f"is {self._max_seconds:g}, but model {self._source.name!r} hears {window_s} s at most"
            raise RecipeError([Fault("data.max_seconds", f"{text}; set it to {window_s} or less")])
        return extractor

    @property
    def rate_hz(self) -> int:
        """Samples per second that the model was trained on."""
        return int(self.extractor.sampling_rate)

    @property
    def window(self) -> int:
        """Most samples that are given to the model at once."""
        return round(self._max_seconds * self.rate_hz)

    def batch(self, sounds: Sequence[Pcm]) -> Batch:
        """The model's inputs for these sounds, [B, T] or [B, ...] of features, and `LENGTHS` [B]; silence fills up what is
        shorter than the model can take."""
        import torch

        one_step, one_span = self._least
        filled = [np.pad(as_floats(sound), (0, max(0, one_step - len(sound)))) for sound in sounds]
        made = self.extractor(
            filled,
            sampling_rate=self.rate_hz,
            return_attention_mask=True,
            return_tensors="pt",
            **self._padding(max(len(sound) for sound in filled), one_span),
        )
        mask = made["attention_mask"]
        batch = {name: made[name] for name in _INPUTS if name in made}
        # Some models were trained without a mask (Wav2Vec2's base): for them padding is silence.
        if not self.extractor.return_attention_mask:
            del batch["attention_mask"]
        return {**batch, LENGTHS: mask.sum(dim=-1).to(torch.int64)}

    def largest(self, samples: int) -> Batch:
        """As `batch` gives for sounds of the greatest length; nothing is computed."""
        import torch

        extractor = self.extractor
        shape: tuple[int, ...]
        if self._is_fixed:
            shape, name, length = (extractor.feature_size, extractor.nb_max_frames), _INPUTS[1], extractor.nb_max_frames
        elif hasattr(extractor, "frames"):
            length = self.length(self.window)
            shape, name = (length, extractor.feature_size), _INPUTS[1]
        else:
            length = max(self.window, *self._least)
            shape, name = (length,), _INPUTS[0]
        batch = {name: torch.zeros(samples, *shape), LENGTHS: torch.full((samples,), length)}
        if extractor.return_attention_mask:
            batch["attention_mask"] = torch.ones(samples, length, dtype=torch.int32)
        return batch

    def length(self, frames: int) -> int:
        """`LENGTHS` of a sound of so many samples."""
        return int(self.extractor.frames(frames)) if hasattr(self.extractor, "frames") else max(frames, self._least[0])

    @cached_property
    def _least(self) -> tuple[int, int]:
        """Samples that a model of waveforms needs: of each sound, for one step of its convolutions; of a batch, for one span of
        the steps that it hides in training (SpecAugment), without which transformers raises. 0 for other models."""
        config = self._source.load_config()
        layers = list(zip(getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ()), strict=True))
        span = int(config.mask_time_length) if getattr(config, "mask_time_prob", 0) else 1
        return (_samples_of(1, layers), _samples_of(span, layers)) if layers else (0, 0)

    def _padding(self, longest: int, least: int) -> dict[str, Any]:
        if self._is_fixed:
            return {}
        return {"padding": "max_length", "max_length": least} if longest < least else {"padding": True}

    @property
    def _is_fixed(self) -> bool:
        return hasattr(self.extractor, "nb_max_frames")


def _samples_of(steps: int, layers: Sequence[tuple[int, int]]) -> int:
    """The fewest samples of which convolutions of these (kernel, stride) make so many steps."""
    for kernel, stride in reversed(layers):
        steps = (steps - 1) * stride + kernel
    return steps


def model_inputs(model: nn.Module, batch: Batch) -> Batch:
    """What of a batch goes into the model, on its device and in the format that it computes in."""
    return inputs_of(model, {name: batch[name] for name in _INPUTS if name in batch})


def output_lengths(model: nn.Module, batch: Batch) -> Tensor:
    """Steps of the model's output that are no padding, [B]; `model` may be an engine around the model."""
    inner: Any = getattr(model, "module", model)
    return inner._get_feat_extract_output_lengths(batch[LENGTHS])  # type: ignore[no-any-return]
