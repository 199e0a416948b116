"""Writing down what is said, by CTC or by a decoder, whichever the source's model is made for; and translating it by a decoder.

Owns the tasks: sounds with their texts, collation, export. How sound becomes text is a `Transcriber`'s. Called through
`build_task`.

Loss is the mean over the labels of the global batch (`weights`): signs of a CTC model, tokens of a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.errors import ModelError
from tlcore.tasks.base import Batch, Draws, MetricAccumulator
from tlcore.tasks.ctc_vocabulary import ASSUMED, find_vocabulary
from tlcore.tasks.model_task import ModelTask
from tlcore.tasks.recent import Recent
from tlcore.tasks.sound_inputs import SoundInputs
from tlcore.tasks.sounds import Sounds, check_sounds, open_sound, read_sounds, sound_examples
from tlcore.tasks.splits import Splits
from tlcore.tasks.tokens import TokenStore, store_tokens
from tlcore.tasks.transcriber import REFERENCES, Transcriber, encode_references, sound_and_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

_KEPT: Final = 4


@dataclass(frozen=True)
class SpokenTexts:
    """Sounds, what is said in each, and the same as labels."""

    sounds: Sounds
    texts: list[str]
    labels: TokenStore

    def __len__(self) -> int:
        return len(self.texts)


_prepared: Recent[SpokenTexts] = Recent(_KEPT)


class SpeechRecognition(ModelTask[SpokenTexts]):
    """Implements `Task`; see there for what each method promises."""

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._known = facts
        self._inputs = SoundInputs(self._source, recipe.data.max_seconds)
        self._splits = Splits(recipe.data, self._read)

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        return {"vocabulary": list(ASSUMED)}

    def check_data(self) -> None:
        check_sounds(self._recipe.data, texts=[self._column])

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._splits[split]
        return chosen.read.sounds.frames[chosen.rows]

    def weights(self, split: str) -> npt.NDArray[np.float64]:
        chosen = self._splits[split]
        return chosen.read.labels.lengths[chosen.rows].astype(np.float64)

    def build_model(self, from_scratch: bool) -> nn.Module:
        model = super().build_model(from_scratch)
        self._way.prepare(model)
        return model

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        chosen = self._splits[split]
        filler = len(indices) == 0
        rows = chosen.rows_of([0] if filler else indices)
        read = chosen.read
        labels = [read.labels.tokens[read.labels.offsets[row] : read.labels.offsets[row + 1]].tolist() for row in rows]
        batch = self._way.batch(read.sounds.pcm(rows), [] if filler else labels)
        return {**batch, REFERENCES: encode_references([read.texts[row] for row in rows])}

    def largest_batch(self, samples: int) -> Batch:
        return self._way.largest(samples)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._way.loss(model, batch)

    def metrics(self) -> MetricAccumulator:
        return self._way.metrics()

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """What is said in each sound: a path, a URL of the store, bytes; of `{audio, text}` also how well the text was said."""
        answers = []
        for number, given in enumerate(inputs):
            sound, text = sound_and_text(given, number)
            answers.append(self._way.answer(model, open_sound(sound, self._inputs.rate_hz), text))
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        return sound_examples(self._recipe.data, split, count, self._column)

    def facts(self) -> dict[str, Any]:
        return self._way.facts()

    def _auto(self) -> Any:
        return self._way.auto_class

    def _config(self) -> Any:
        return self._way.config()

    def _processors(self) -> list[Any]:
        return list(self._way.processors())

    @property
    def _column(self) -> str:
        return self._recipe.data.target_column if self._translates else self._recipe.data.text

    @property
    def _translates(self) -> bool:
        return self._recipe.task == "speech-translation"

    @cached_property
    def _way(self) -> Transcriber:
        """Raises ModelError: the source is made for neither."""
        from transformers import AutoModelForCTC, WhisperConfig

        kind = type(self._source.load_config())
        if issubclass(kind, WhisperConfig):
            from tlcore.tasks.whisper_transcriber import WhisperTranscriber

            return WhisperTranscriber(self._source, self._inputs, self._recipe.data, self._translates)
        if kind in AutoModelForCTC._model_mapping and not self._translates:
            from tlcore.tasks.ctc_transcriber import CtcTranscriber

            return CtcTranscriber(self._source, self._inputs, self._recipe.data, self._vocabulary)
        wanted = "a decoder over sound: Whisper" if self._translates else "CTC, such as Wav2Vec2 and HuBERT, or Whisper"
        raise ModelError(
            f"model source {self._source.name!r} is a {kind.model_type}, which task {self._recipe.task} has no use for",
            hint=f"what is: {wanted}",
        )

    def _vocabulary(self) -> tuple[str, ...]:
        """The signs of a vocabulary of our own: those known from a checkpoint, or the training texts'."""
        if self._known is not None and "vocabulary" in self._known:
            return tuple(self._known["vocabulary"])
        return find_vocabulary(self._read_sounds(self._recipe.data.train, "train").cells(self._column))

    def _read(self, place: str, hub_split: str) -> SpokenTexts:
        data = self._recipe.data
        sounds = self._read_sounds(place, hub_split)
        heard = (place, sounds.rows.digest, hub_split, data.audio, sounds.rate_hz, data.max_seconds)
        told = (self._column, self._source.fingerprint, data.language, data.max_target_length, self._recipe.task)
        vocabulary = tuple(self.facts().get("vocabulary", ()))
        return _prepared.get((*heard, *told, vocabulary), lambda: self._prepare(sounds))

    def _prepare(self, sounds: Sounds) -> SpokenTexts:
        texts = sounds.cells(self._column)
        return SpokenTexts(sounds, texts, store_tokens(self._way.encode(texts, sounds)))

    def _read_sounds(self, place: str, hub_split: str) -> Sounds:
        data = self._recipe.data
        return read_sounds(place, data.audio, self._inputs.rate_hz, data.max_seconds, hub_split, texts=[self._column])
