"""Speech to text by CTC: one sign, or none, for each step of the sound.

Owns labels, loss, greedy decoding, word times and pronunciation scores of such models (Wav2Vec2, HuBERT, DeepSpeech). Implements
`Transcriber`.

The loss is Graves et al. 2006, per sign: the sum over a batch divided by its signs. Padding is no step of a sound: neither the loss
nor the text sees what the model says there. A text that needs more steps than its sound has cannot be told and counts nothing.

Shapes: B sounds, S steps, V signs of the vocabulary, L signs of the longest text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tlcore.errors import DataError, Fault, RecipeError
from tlcore.tasks.base import IGNORED, Batch, MetricAccumulator
from tlcore.tasks.ctc_alignment import align, steps_needed
from tlcore.tasks.ctc_vocabulary import CtcVocabulary, Word, make_tokenizer
from tlcore.tasks.error_rates import ErrorRates, Heard
from tlcore.tasks.long_sounds import windows
from tlcore.tasks.sound_inputs import SoundInputs, model_inputs, output_lengths
from tlcore.tasks.sounds import Pcm, Sounds
from tlcore.tasks.telling import tell_once
from tlcore.tasks.tokens import store_tokens
from tlcore.tasks.transcriber import REFERENCES, decode_references

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.models import ModelSource
    from tlcore.recipe.data_schema import DataSection

_OWN_TOKENIZER: Final = ("vocab.json", "tokenizer.json", "tokenizer_config.json")
_SIGNS_PER_SECOND: Final = 20
"""More than anybody says: how long a text is reckoned for a sound where no data is read."""


class CtcTranscriber:
    """See `Transcriber`.

    Args:
        signs: the vocabulary where the source has none; asked for then alone.
    """

    def __init__(
        self, source: ModelSource, inputs: SoundInputs, data: DataSection, signs: Callable[[], Sequence[str]]
    ) -> None:
        from transformers import AutoModelForCTC

        self.auto_class = AutoModelForCTC
        self._source, self._inputs, self._signs = source, inputs, signs
        _check_settings(data)

    @cached_property
    def _has_own(self) -> bool:
        return any((self._source.directory / name).is_file() for name in _OWN_TOKENIZER)

    @cached_property
    def vocabulary(self) -> CtcVocabulary:
        """Raises ModelError, DataError."""
        return CtcVocabulary(self._source.load_tokenizer() if self._has_own else make_tokenizer(self._signs()))

    def facts(self) -> dict[str, Any]:
        return {} if self._has_own else {"vocabulary": list(self._signs())}

    def config(self) -> Any:
        vocabulary = self.vocabulary
        return self._source.load_config(
            vocab_size=len(vocabulary.tokenizer), pad_token_id=vocabulary.blank, ctc_zero_infinity=True
        )

    def processors(self) -> list[Any]:
        return [self._inputs.extractor, self.vocabulary.tokenizer]

    def prepare(self, model: Any) -> None:
        return None

    def encode(self, texts: Sequence[str], sounds: Sounds) -> list[list[int]]:
        labels = [self.vocabulary.encode(text) for text in texts]
        self._check_signs(sounds.rows.place, texts, labels)
        self._check_room(sounds, labels)
        return labels

    def batch(self, sounds: Sequence[Pcm], labels: Sequence[Sequence[int]]) -> Batch:
        import torch

        store = store_tokens(labels)
        told, _ = store.pad(np.arange(len(labels)), IGNORED) if labels else (np.full((1, 1), IGNORED), None)
        return {**self._inputs.batch(sounds), "labels": torch.from_numpy(told)}

    def largest(self, samples: int) -> Batch:
        import torch

        batch = self._inputs.largest(samples)
        signs = round(self._inputs.window / self._inputs.rate_hz * _SIGNS_PER_SECOND)
        return {**batch, "labels": torch.zeros(samples, max(1, signs), dtype=torch.int64)}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        _, losses, signs = self._told(model, batch)
        return losses.sum() / signs.clamp(min=1)

    def metrics(self) -> MetricAccumulator:
        return ErrorRates(self._hear)

    def answer(self, model: nn.Module, sound: Pcm, text: str | None) -> dict[str, Any]:
        """`prediction`, its `words` with times in seconds; with `text` the words of that, each with a `score`, and theirs."""
        log_probabilities = self._listen(model, sound)
        step_s = len(sound) / self._inputs.rate_hz / len(log_probabilities)
        found = self.vocabulary.words(log_probabilities.argmax(axis=-1))
        answer = {
            "prediction": " ".join(word.text for word in found),
            "words": [_timed(word, step_s) for word in found],
        }
        if text is None:
            return answer
        signs = np.array(self.vocabulary.encode(text), dtype=np.int64)
        said = align(log_probabilities, signs, self.vocabulary.blank)
        words = self.vocabulary.join(signs.tolist(), said.starts.tolist(), said.ends.tolist())
        scores = [float(said.scores[list(word.signs)].mean()) for word in words]
        pronounced = [{**_timed(word, step_s), "score": score} for word, score in zip(words, scores, strict=True)]
        return {**answer, "pronunciation": {"score": float(np.mean(scores)), "words": pronounced}}

    def _told(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, S, V] in fp32, the loss of each sound [B], and how many signs there are in all."""
        logits = model(**model_inputs(model, batch)).logits.float()
        steps = output_lengths(model, batch).to(logits.device).clamp(max=logits.shape[1])
        labels = batch["labels"].to(logits.device)
        losses = ctc_losses(logits, labels, steps, self.vocabulary.blank)
        return logits, losses, (labels != IGNORED).sum()

    def _hear(self, model: nn.Module, batch: Batch) -> Heard:
        logits, losses, signs = self._told(model, batch)
        steps = output_lengths(model, batch).tolist()
        best = logits.argmax(dim=-1).cpu().numpy()
        counted = (batch["labels"] != IGNORED).any(dim=-1).tolist()
        texts = [
            " ".join(word.text for word in self.vocabulary.words(row[:length]))
            for row, length in zip(best, steps, strict=True)
        ]
        said = [self.vocabulary.plain(text) for text in decode_references(batch[REFERENCES])]
        return Heard(losses.sum(), signs, _where(counted, said), _where(counted, texts))

    def _listen(self, model: nn.Module, sound: Pcm) -> Any:
        """Log probabilities [S, V] over a sound of any length, from the middles of overlapping windows."""
        import torch

        parts = []
        for window in windows(len(sound), self._inputs.window):
            batch = self._inputs.batch([sound[window.start : window.end]])
            with torch.no_grad():
                logits = model(**model_inputs(model, batch)).logits[0].float()
            told = logits[: int(output_lengths(model, batch)[0])].log_softmax(dim=-1)
            parts.append(told[window.steps_kept(len(told))].cpu().numpy())
        return np.concatenate(parts)

    def _check_signs(self, place: str, texts: Sequence[str], labels: Sequence[Sequence[int]]) -> None:
        """Say how many texts the vocabulary has nothing of, and how many not all. Raises DataError where it has nothing of any."""
        empty = [text for text, ids in zip(texts, labels, strict=True) if not ids]
        strange = [text for text, ids in zip(texts, labels, strict=True) if self.vocabulary.unknown in ids]
        if len(empty) == len(texts):
            raise DataError(
                f"{place}: nothing of any of the {len(texts)} texts is in the vocabulary, such as {texts[0]!r}",
                hint="give texts in the letters of the model, or a model without a vocabulary of its own",
            )
        if empty:
            tell_once(
                f"{place}: nothing of {len(empty)} of {len(texts)} texts is in the vocabulary, such as {empty[0]!r}: "
                "not learned, and in no metric"
            )
        if strange:
            tell_once(
                f"{place}: {len(strange)} of {len(texts)} texts have letters or digits that the vocabulary lacks, such as "
                f"{strange[0]!r}: learned as its unknown sign"
            )

    def _check_room(self, sounds: Sounds, labels: Sequence[Sequence[int]]) -> None:
        """Count the texts that cannot be told in their sound's steps; rank 0 says so. Raises DataError where none can be."""
        config = self._source.load_config()
        kind = self.auto_class._model_mapping[type(config)]
        lengths = [self._inputs.length(int(frames)) for frames in sounds.frames]
        # The method needs nothing of a model but its configuration.
        steps = kind._get_feat_extract_output_lengths(SimpleNamespace(config=config), _tensor(lengths)).tolist()
        short = sum(steps_needed(np.array(ids)) > room for ids, room in zip(labels, steps, strict=True))
        place = sounds.rows.place
        if short == len(labels):
            raise DataError(
                f"{place}: each of the {short} texts has more signs than its sound has steps of the model",
                hint="check that sounds and texts belong together",
            )
        if short:
            tell_once(
                f"{place}: {short} of {len(labels)} texts have more signs than their sound has steps of the model; they "
                "teach nothing"
            )


def ctc_losses(logits: Tensor, labels: Tensor, steps: Tensor, blank: int) -> Tensor:
    """Negative log likelihood of each text [B], 0 where there is none or it needs more steps; with gradient.

    Args:
        logits: [B, S, V] in fp32.
        labels: [B, L], `IGNORED` after each text's end.
        steps: [B], those of S that are no padding.
    """
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.nn.functional import ctc_loss

    told = logits.log_softmax(dim=-1).transpose(0, 1)
    if isinstance(told, FakeTensor):
        # Torch cannot run its CTC loss without memory: for estimates, something of the same size stands for its trellis.
        return told.sum(dim=(0, 2)) + told.new_zeros(*logits.shape[:2], 2 * labels.shape[1] + 1).sum(dim=(1, 2))
    lengths = (labels != IGNORED).sum(dim=-1)
    losses = ctc_loss(told, labels.clamp(min=0), steps, lengths, blank=blank, reduction="none", zero_infinity=True)
    return losses * (lengths > 0)


def _check_settings(data: DataSection) -> None:
    faults = []
    if data.beams != 1:
        faults.append(Fault("data.beams", f"is {data.beams}, but a CTC model is decoded greedily; set it to 1"))
    if data.language is not None:
        faults.append(Fault("data.language", f"is {data.language!r}, but a CTC model is asked for none; take it out"))
    if faults:
        raise RecipeError(faults)


def _timed(word: Word, step_s: float) -> dict[str, Any]:
    return {"word": word.text, "start_s": round(word.start * step_s, 3), "end_s": round(word.end * step_s, 3)}


def _where(counted: Sequence[bool], texts: Sequence[str]) -> list[str]:
    return [text for text, counts in zip(texts, counted, strict=True) if counts]


def _tensor(values: Sequence[int]) -> Tensor:
    import torch

    return torch.tensor(values, dtype=torch.int64)
