"""What differs between models that write down speech: one protocol, and what its two ways share.

Owns the protocol and what goes with it: reference texts inside batches, and what `predict` may be given. Implemented by
`ctc_transcriber.py` and `whisper_transcriber.py`; called by `speech_recognition.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tlcore.errors import DataError
from tlcore.tasks.base import Batch, MetricAccumulator
from tlcore.tasks.sounds import Pcm, Sounds

if TYPE_CHECKING:
    from torch import Tensor, nn

REFERENCES = "references"
"""In a batch: what is said in each row, as UTF-8 filled up with zeros [B, bytes]; a metric compares whole texts."""


class Transcriber(Protocol):
    """One way from sound to text. A label is a number of the model's vocabulary."""

    auto_class: Any
    """Transformers' Auto class of the model."""

    def facts(self) -> dict[str, Any]:
        """What the training data settled."""

    def config(self) -> Any:
        """The model's configuration. Raises ModelError, DataError."""

    def processors(self) -> list[Any]:
        """What a model directory holds beside the weights."""

    def prepare(self, model: Any) -> None:
        """Settle what of a fresh model is not in its weights."""

    def encode(self, texts: Sequence[str], sounds: Sounds) -> list[list[int]]:
        """Labels of each text that is said in a sound. Raises DataError."""

    def batch(self, sounds: Sequence[Pcm], labels: Sequence[Sequence[int]]) -> Batch:
        """What the model takes; no labels at all for a filler."""

    def largest(self, samples: int) -> Batch:
        """A batch of the largest samples."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over the labels of the batch."""

    def metrics(self) -> MetricAccumulator:
        """A fresh accumulator."""

    def answer(self, model: nn.Module, sound: Pcm, text: str | None) -> dict[str, Any]:
        """What is said in a sound; with `text`, how well that was said in it."""


def encode_references(texts: Sequence[str]) -> Tensor:
    """Texts as a tensor [B, bytes]."""
    import torch

    encoded = [text.encode() for text in texts]
    width = max((len(each) for each in encoded), default=0)
    return torch.tensor([list(each.ljust(width, b"\0")) for each in encoded], dtype=torch.uint8).reshape(
        len(texts), width
    )


def decode_references(references: Tensor) -> list[str]:
    """The texts of such a tensor."""
    return [bytes(row).rstrip(b"\0").decode() for row in references.tolist()]


def sound_and_text(given: Any, number: int) -> tuple[Any, str | None]:
    """What `predict` was given: a sound, or `{audio, text}` of a sound and what was to be said in it, also as JSON."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise _not_such(given, number) from error
    if isinstance(given, dict) and "audio" in given:
        if not set(given) <= {"audio", "text"} or not isinstance(given.get("text"), str | None):
            raise _not_such(given, number)
        return given["audio"], given.get("text")
    return given, None


def _not_such(given: Any, number: int) -> DataError:
    return DataError(
        f"input {number} is {str(given)[:200]!r}", hint='give a path, or {"audio": path, "text": what was to be said}'
    )
