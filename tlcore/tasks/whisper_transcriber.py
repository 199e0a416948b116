"""Speech to text by Whisper: a decoder that writes tokens while it listens to a window of sound.

Owns labels, prompt, loss, produced text and word times of such models (Radford et al. 2022, "Robust Speech Recognition via
Large-Scale Weak Supervision"). Implements `Transcriber`, for transcription and for translation into English.

The prompt (start, language, task, no timestamps) is fed and not learned; what is learned are the text's tokens and the end, with
the blank before the first word that the model was trained with. Language and task stand in the prompt of models of several
languages only. Text is produced with the tokens suppressed that the source's generation_config.json names.

Shapes: B sounds, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tlcore.errors import DataError, Fault, RecipeError
from tlcore.models import quiet
from tlcore.tasks.base import IGNORED, Batch, MetricAccumulator
from tlcore.tasks.error_rates import ErrorRates, Heard
from tlcore.tasks.generate import generate
from tlcore.tasks.logits import mean_cross_entropy
from tlcore.tasks.long_sounds import Window, join_texts, windows
from tlcore.tasks.sound_inputs import LENGTHS, SoundInputs, model_inputs
from tlcore.tasks.sounds import Pcm, Sounds
from tlcore.tasks.telling import Cut
from tlcore.tasks.tokens import store_tokens
from tlcore.tasks.told import told_logits, with_most_told, with_told
from tlcore.tasks.transcriber import REFERENCES, decode_references

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.models import ModelSource
    from tlcore.recipe.data_schema import DataSection

_GENERATION: Final = "generation_config.json"
_UNSPACED: Final = frozenset({"chinese", "japanese", "thai", "lao", "myanmar", "cantonese"})
"""Languages that write nothing between words, which transformers therefore splits into signs."""
_STEP_S: Final = 0.02
"""Between two of the encoder's steps, which time stamps count in."""


class WhisperTranscriber:
    """See `Transcriber`.

    Args:
        translates: into English, instead of writing down what is said.
    """

    def __init__(self, source: ModelSource, inputs: SoundInputs, data: DataSection, translates: bool) -> None:
        from transformers import AutoModelForSpeechSeq2Seq

        self.auto_class = AutoModelForSpeechSeq2Seq
        self._source, self._inputs, self._data = source, inputs, data
        self._task = "translate" if translates else "transcribe"

    @cached_property
    def tokenizer(self) -> Any:
        """With the prompt set. Raises ModelError; RecipeError for a language that the model does not know, or none given."""
        tokenizer = self._source.load_tokenizer()
        told = self._spoken
        try:
            tokenizer.set_prefix_tokens(**told, predict_timestamps=False)
        except ValueError as error:
            text = f"is {self._data.language!r}: {str(error).partition('. Language')[0]}"
            raise RecipeError([Fault("data.language", f"{text}; give a name or a code such as en")]) from error
        return tokenizer

    def facts(self) -> dict[str, Any]:
        return {}

    def config(self) -> Any:
        config = self._source.load_config()
        most = config.max_target_positions - len(self.tokenizer.prefix_tokens)
        if self._data.max_target_length > most:
            text = f"is {self._data.max_target_length}, but model {self._source.name!r} writes {most} tokens at most"
            raise RecipeError([Fault("data.max_target_length", f"{text}; set it to {most} or less")])
        return config

    def processors(self) -> list[Any]:
        return [self._inputs.extractor, self.tokenizer, self._generation]

    def prepare(self, model: Any) -> None:
        model.generation_config = self._generation

    def encode(self, texts: Sequence[str], sounds: Sounds) -> list[list[int]]:
        spaced = [f" {text.strip()}" if text.strip() else "" for text in texts]
        tokens = self.tokenizer(spaced, add_special_tokens=False)["input_ids"]
        most = self._data.max_target_length
        # with the one that ends a text
        Cut.of([len(ids) + 1 for ids in tokens], most).tell(sounds.rows.place, "data.max_target_length")
        return [[*ids[: most - 1], self.tokenizer.eos_token_id] for ids in tokens]

    def batch(self, sounds: Sequence[Pcm], labels: Sequence[Sequence[int]]) -> Batch:
        import torch

        prompt, end = self.tokenizer.prefix_tokens, self.tokenizer.eos_token_id
        store = store_tokens(labels or [[end]])
        ids, mask = store.pad(np.arange(max(1, len(labels))), end)
        told = np.where((mask == 1) & bool(labels), ids, IGNORED)
        before = np.tile(np.array(prompt, dtype=np.int64), (len(ids), 1))
        fed = np.concatenate([before, ids[:, :-1]], axis=1)
        unlearned = np.full((len(ids), len(prompt) - 1), IGNORED, dtype=np.int64)
        return with_told(
            {
                **self._inputs.batch(sounds),
                "decoder_input_ids": torch.from_numpy(fed),
                "labels": torch.from_numpy(np.concatenate([unlearned, told], axis=1)),
            }
        )

    def largest(self, samples: int) -> Batch:
        import torch

        tokens = len(self.tokenizer.prefix_tokens) - 1 + self._data.max_target_length
        ids = torch.zeros(samples, tokens, dtype=torch.int64)
        return with_most_told({**self._inputs.largest(samples), "decoder_input_ids": ids, "labels": ids.clone()})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return mean_cross_entropy(*self._told(model, batch))

    def metrics(self) -> MetricAccumulator:
        if self._task == "translate":
            from tlcore.tasks.produced_metrics import ProducedText

            return ProducedText("translation", self._produce_counted, self._expected, self._told)
        return ErrorRates(self._hear)

    def answer(self, model: nn.Module, sound: Pcm, text: str | None) -> dict[str, Any]:
        """`prediction`; where the source tells how to find them, also `words` with times in seconds."""
        if text is not None:
            raise DataError(
                "how well a text was said is found by a CTC model, and this one is a decoder",
                hint="train one from a Wav2Vec2 or HuBERT source",
            )
        found = windows(len(sound), self._inputs.window)
        if getattr(self._generation, "alignment_heads", None):
            return self._timed(model, sound, found)
        texts = [self._produce(model, self._window(sound, window), together=False)[0] for window in found]
        return {"prediction": join_texts(texts, self._between)}

    @cached_property
    def _language(self) -> str | None:
        """The name of the language as transformers has it, whatever name or code the recipe gives; None where it gives none."""
        from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

        if self._data.language is None:
            return None
        given = self._data.language.lower()
        name: str = LANGUAGES.get(TO_LANGUAGE_CODE.get(given, given), given)
        return name

    @property
    def _between(self) -> str:
        """What is written between two words; a translation is into English."""
        return "" if self._task == "transcribe" and self._language in _UNSPACED else " "

    @property
    def _spoken(self) -> dict[str, str]:
        """Language and task where the model asks for them."""
        language = self._language
        if not getattr(self._generation, "is_multilingual", False):
            if language is not None:
                text = f"is {self._data.language!r}, but model {self._source.name!r} knows one language"
                raise RecipeError([Fault("data.language", f"{text}; take it out")])
            return {}
        if language is None:
            text = f"is null, but model {self._source.name!r} knows many languages"
            raise RecipeError([Fault("data.language", f"{text}; say which one is spoken, such as en")])
        return {"language": language, "task": self._task}

    @cached_property
    def _generation(self) -> Any:
        """How text is produced: as the source says, without time stamps."""
        from transformers import GenerationConfig

        if (self._source.directory / _GENERATION).is_file():
            return GenerationConfig.from_pretrained(self._source.directory)
        settings = GenerationConfig.from_model_config(self._source.load_config())
        settings.no_timestamps_token_id = self._source.load_tokenizer().convert_tokens_to_ids("<|notimestamps|>")
        return settings

    def _told(self, model: nn.Module, batch: Batch, heard: Mapping[str, Any] | None = None) -> tuple[Tensor, Tensor]:
        """Logits [M, V] in fp32 where a token is learned, and that token [M]. `heard`: instead of the batch's sounds."""
        inputs: Mapping[str, Any] = model_inputs(model, batch) if heard is None else heard
        fed = batch["decoder_input_ids"].to(next(model.parameters()).device)
        # Not the model's own `labels`: with those it would also compute a loss over the prompt.
        return told_logits(model, batch, {**inputs, "decoder_input_ids": fed}, use_cache=False)

    def _produce(self, model: nn.Module, batch: Batch, together: bool, **heard: Any) -> list[str]:
        ids = self._generate(model, model_inputs(model, batch), together, **heard)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _generate(self, model: nn.Module, inputs: Batch, together: bool, **more: Any) -> Any:
        settings = {
            "max_new_tokens": self._data.max_target_length,
            "num_beams": self._data.beams,
            **self._spoken,
            **more,
        }
        with quiet():  # it warns of settings that it makes itself
            return generate(model, inputs, together=together, **settings)

    def _produce_counted(self, model: nn.Module, batch: Batch) -> list[str]:
        """For the samples that count; a filler is produced for as well, since the other ranks wait for that."""
        return _where(batch, self._produce(model, batch, together=True))

    def _expected(self, batch: Batch) -> list[str]:
        return _where(batch, decode_references(batch[REFERENCES]))

    def _hear(self, model: nn.Module, batch: Batch) -> Heard:
        from torch.nn.functional import cross_entropy

        # Both need what the encoder hears, which is most of the work: once for the two of them.
        encoder: Any = model.get_encoder()  # type: ignore[operator]
        heard = {"encoder_outputs": encoder(model_inputs(model, batch)["input_features"])}
        logits, labels = self._told(model, batch, heard)
        loss = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        said = [self._normal(text) for text in self._expected(batch)]
        understood = [self._normal(text) for text in _where(batch, self._produce(model, {}, together=True, **heard))]
        return Heard(loss, (labels != IGNORED).sum(), said, understood)

    def _normal(self, text: str) -> str:
        """As Radford et al. compare texts (appendix C): without case, punctuation, fillers; English also in one spelling."""
        if self._language in (None, "english"):
            from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

            normal: str = EnglishTextNormalizer(self.tokenizer.english_spelling_normalizer or {})(text)
        else:
            normal = self.tokenizer.basic_normalize(text)
        return " ".join(normal.split())

    def _window(self, sound: Pcm, window: Window) -> Batch:
        return self._inputs.batch([sound[window.start : window.end]])

    def _timed(self, model: nn.Module, sound: Pcm, found: Sequence[Window]) -> dict[str, Any]:
        """Text and word times: the source's alignment heads tell them, by dynamic time warping of what they attend to. Of
        overlapping windows each word is taken from the one that believes the time of its middle."""
        rate = self._inputs.rate_hz
        text, words = "", []
        for window in found:
            for part, start, end in self._words(model, sound, window):
                middle = (start + end) / 2
                if not (window.kept_start <= middle and (middle < window.kept_end or window.end == len(sound))):
                    continue
                text += part
                if word := part.strip():
                    words.append({"word": word, "start_s": round(start / rate, 3), "end_s": round(end / rate, 3)})
        return {"prediction": text.strip(), "words": words}

    def _words(self, model: nn.Module, sound: Pcm, window: Window) -> list[tuple[str, float, float]]:
        """(word, start, end) of a window, in samples of the whole sound; a word has the blank before it that is written there."""
        import torch

        batch = self._window(sound, window)
        inputs = model_inputs(model, batch)
        frames = inputs["input_features"].shape[-1]
        # Without the mask, the last word would last to the end of the window.
        heard = {"attention_mask": (torch.arange(frames) < batch[LENGTHS][:, None]).long()}
        produced = self._generate(model, {**inputs, **heard}, together=False, return_token_timestamps=True)
        output = {"tokens": produced["sequences"].cpu(), "token_timestamps": produced["token_timestamps"].cpu()}
        with quiet():
            _, more = self.tokenizer._decode_asr(
                [output], return_timestamps="word", return_language=False, time_precision=_STEP_S
            )
        rate, length = self._inputs.rate_hz, window.end - window.start
        times = [
            [length if time is None else min(time * rate, length) for time in chunk["timestamp"]]
            for chunk in more["chunks"]
        ]
        texts = [chunk["text"] for chunk in more["chunks"]]
        if texts:
            # Not every model writes a blank first, and another window's text may stand before.
            texts[0] = f"{self._between}{texts[0].lstrip()}"
        return [
            (text, window.start + start, window.start + end) for text, (start, end) in zip(texts, times, strict=True)
        ]


def _where(batch: Batch, texts: Sequence[str]) -> list[str]:
    counted = (batch["labels"] != IGNORED).any(dim=-1).tolist()
    return [text for text, counts in zip(texts, counted, strict=True) if counts]
