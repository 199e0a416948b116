"""Sound that is still being recorded, in pieces that can be understood one by one.

Owns where a stream of samples is cut. Does not know what is said. Called by the command `caption`.

A piece ends at the first pause after `LEAST_S` seconds, so that no word is cut in two and what was said is there soon; where nobody
pauses, at the quietest tenth of a second of its second half, once it is as long as the model hears at once.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

LEAST_S: Final = 4.0
PAUSE_S: Final = 0.3
_FRAME_S: Final = 0.1
_QUIET: Final = 0.1
"""A pause is quieter than this part of how loud the piece is."""
_SAMPLE_BYTES: Final = 2


@dataclass(frozen=True)
class Piece:
    """`sound`: a WAV file's bytes, which began `start_s` after the stream and lasts `length_s`."""

    start_s: float
    length_s: float
    sound: bytes


def live_pieces(stream: BinaryIO, rate_hz: int, most_s: float) -> Iterator[Piece]:
    """The pieces of a stream of 16-bit little-endian samples of one channel, each as soon as it is whole, without gap or overlap.

    Args:
        most_s: how long a piece may be.
    """
    frame = max(1, round(_FRAME_S * rate_hz))
    held, start = np.empty(0, np.int16), 0
    while block := stream.read(frame * _SAMPLE_BYTES):
        whole = len(block) - len(block) % _SAMPLE_BYTES
        held = np.append(held, np.frombuffer(block[:whole], dtype="<i2"))
        if (end := _end(held, frame, rate_hz, most_s)) is not None:
            yield _piece(held[:end], start, rate_hz)
            held, start = held[end:], start + end
    if len(held):
        yield _piece(held, start, rate_hz)


def _end(held: npt.NDArray[np.int16], frame: int, rate_hz: int, most_s: float) -> int | None:
    """After how many samples the piece ends; None while it goes on."""
    if len(held) < min(LEAST_S, most_s) * rate_hz:
        return None
    loudness = _loudness(held, frame)
    pause = max(1, round(PAUSE_S / _FRAME_S))
    if len(loudness) > pause and loudness[-pause:].max() <= _QUIET * np.quantile(loudness, 0.95):
        return (len(loudness) - pause // 2) * frame if len(held) < most_s * rate_hz else len(held)
    if len(held) < most_s * rate_hz:
        return None
    half = len(loudness) // 2
    return max(1, (half + int(loudness[half:].argmin())) * frame + frame // 2)


def _loudness(held: npt.NDArray[np.int16], frame: int) -> npt.NDArray[np.float64]:
    """Root mean square of each whole frame."""
    frames = held[: len(held) - len(held) % frame].reshape(-1, frame).astype(np.float64)
    loudness: npt.NDArray[np.float64] = np.sqrt(np.square(frames).mean(axis=1))
    return loudness


def _piece(samples: npt.NDArray[np.int16], start: int, rate_hz: int) -> Piece:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(_SAMPLE_BYTES)
        file.setframerate(rate_hz)
        file.writeframes(samples.astype("<i2").tobytes())
    return Piece(start / rate_hz, len(samples) / rate_hz, content.getvalue())
