"""Log spectrograms for DeepSpeech and DeepSpeech 2, in numpy.

Source: Amodei et al. 2015, arXiv:1512.02595, section 3: log spectrograms of power-normalised clips over windows of 20 ms; a step of
10 ms; Hannun et al. 2014, arXiv:1412.5567, section 2, likewise takes the power of each frequency bin. Each clip is then brought to
mean 0 and variance 1, so that a single clip needs no statistics of a corpus. Owns the features, not the decoding of audio files.
Registered by `__init__.py` as these families' AutoFeatureExtractor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from transformers import BatchFeature, SequenceFeatureExtractor

Clip = npt.NDArray[np.float32]


class SpectrogramFeatureExtractor(SequenceFeatureExtractor):
    """From clips to `input_features` [B, T, bins] and `attention_mask` [B, T].

    Args:
        sampling_rate: samples per second of the clips.
        window_s, step_s: length and distance of frames. Bins are half the window's samples and one: 161 at 16 kHz.
        normalise: bring each clip's features to mean 0 and variance 1.
    """

    model_input_names: ClassVar[list[str]] = ["input_features", "attention_mask"]

    def __init__(
        self,
        sampling_rate: int = 16_000,
        window_s: float = 0.02,
        step_s: float = 0.01,
        normalise: bool = True,
        padding_value: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.window_s, self.step_s, self.normalise = window_s, step_s, normalise
        if sampling_rate < 1 or round(window_s * sampling_rate) < 2 or round(step_s * sampling_rate) < 1:
            raise ValueError(
                f"windows of {window_s!r} s every {step_s!r} s at {sampling_rate!r} samples a second hold no spectrum;"
                " give at least two samples a window and one a step"
            )
        kwargs.pop("feature_size", None)  # follows from the rest
        kwargs.setdefault("return_attention_mask", True)
        bins = round(window_s * sampling_rate) // 2 + 1
        super().__init__(feature_size=bins, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)

    def __call__(
        self,
        raw_speech: Clip | Sequence[Clip] | Sequence[float],
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Features of one clip or several; lengths are in frames.

        Raises:
            ValueError: another sampling rate than the model's, an empty clip, one with several channels, or with values that are
                not finite.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"the clip has {sampling_rate} samples a second, this model takes {self.sampling_rate}; resample it first"
            )
        features = [self.spectrogram(clip) for clip in _clips(raw_speech)]
        return self.pad(
            BatchFeature({"input_features": features}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    def spectrogram(self, clip: Clip) -> npt.NDArray[np.float32]:
        """[T, bins] of one clip [samples]; a clip shorter than a window is filled up with silence."""
        window, step = self._sizes()
        power = float(np.sqrt(np.mean(np.square(clip, dtype=np.float64))))
        level = clip / power if power > 0 else clip
        level = np.pad(level, (0, max(0, window - len(level))))
        frames = np.lib.stride_tricks.sliding_window_view(level, window)[::step]
        logs = np.log1p(np.abs(np.fft.rfft(frames * np.hanning(window), axis=-1)))
        if self.normalise:
            logs = (logs - logs.mean()) / (logs.std() + 1e-7)
        return logs.astype(np.float32)

    def frames(self, samples: int) -> int:
        """Frames that a clip of so many samples makes."""
        window, step = self._sizes()
        return (max(samples, window) - window) // step + 1

    def _sizes(self) -> tuple[int, int]:
        """Samples of a window, and from one window to the next."""
        return round(self.window_s * self.sampling_rate), round(self.step_s * self.sampling_rate)


def _clips(raw: Any) -> list[Clip]:
    several = isinstance(raw, list | tuple) and len(raw) > 0 and np.ndim(raw[0]) > 0
    several = several or (isinstance(raw, np.ndarray) and raw.ndim == 2)
    clips = [np.asarray(clip, dtype=np.float32) for clip in (raw if several else [raw])]
    for at, clip in enumerate(clips):
        if clip.ndim != 1 or not clip.size:
            raise ValueError(
                f"clip {at} has the shape {list(clip.shape)}; give the samples of one channel, at least one"
            )
        if not np.isfinite(clip).all():
            raise ValueError(f"clip {at} has samples that are not finite")
    return clips
