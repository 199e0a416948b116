"""Extractive question answering: the span of a text that answers a question, through transformers' question answering models.

Owns the task: question and text as tokens, in overlapping windows where they are longer than `data.max_length`, the answer's place
in each, collation, loss, scores of the answers found (Rajpurkar et al. 2016), prediction, export. Called through `build_task`; how
answers are read and found is `answers.py`'s.

A sample is one question with all its windows, so that its answer is judged on one rank; loss is the mean over windows (`weights`).
A window without the answer points at its first token, as published for BERT (Devlin et al. 2018). That a text has no answer is said
only by a model whose training data has such questions: of other data that place means no more than "not in this window".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import fingerprint, read_split
from tlcore.errors import DataError
from tlcore.tasks.answers import best_span, characters, read_answers, token_span
from tlcore.tasks.base import IGNORED, Batch, Draws, MetricAccumulator, SumOverRanks
from tlcore.tasks.classes import checked_places
from tlcore.tasks.examples import plain_examples
from tlcore.tasks.logits import inputs_of
from tlcore.tasks.model_task import TextTask
from tlcore.tasks.recent import Recent
from tlcore.tasks.splits import Splits
from tlcore.tasks.tokens import SEGMENTS, TokenBuilder, TokenStore, chunks, encode_with_offsets, store_tokens

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tlcore.recipe import Recipe

_KEPT: Final = 4
_INPUTS: Final = ("input_ids", "attention_mask", SEGMENTS)
_SPLITS: Final = ("train", "validation", "test")
_UNANSWERABLE: Final = "unanswerable"
"""Name among a checkpoint's facts."""


@dataclass(frozen=True)
class Windows:
    """Questions with their texts. Window w belongs to sample `sample[w]`; `starts` and `ends` are token places of the answer, 0
    where it is not there; `spans[w]` [T, 2] gives each token's characters in the text, (-1, -1) outside it. `segments` tells
    question and text apart, for models that learned to."""

    tokens: TokenStore
    segments: TokenStore | None
    sample: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    spans: list[npt.NDArray[np.int32]]
    contexts: list[str]
    answers: list[list[str]]

    def __len__(self) -> int:
        return len(self.contexts)

    def windows_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Windows of these samples, sample by sample."""
        first, last = np.searchsorted(self.sample, rows), np.searchsorted(self.sample, rows, side="right")
        return np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])


_prepared: Recent[Windows] = Recent(_KEPT)


class QuestionAnswering(TextTask[Windows]):
    """Implements `Task`; see there for what each method promises."""

    auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, recipe: Recipe, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(recipe)
        self._facts = facts
        self._splits = Splits(recipe.data, self._read)

    @staticmethod
    def assumed_facts(recipe: Recipe) -> dict[str, Any]:
        return {_UNANSWERABLE: False}

    def facts(self) -> dict[str, Any]:
        """Whether the training data has questions without an answer."""
        return {_UNANSWERABLE: self._may_be_nothing}

    @cached_property
    def _may_be_nothing(self) -> bool:
        if self._facts is not None:
            # a checkpoint of an earlier version does not say
            return bool(self._facts.get(_UNANSWERABLE, True))
        return not all(self._splits.read_training_place().answers)

    def check_data(self) -> None:
        data = self._recipe.data
        for split, place in checked_places(data):
            self._columns_of(place, split)

    def lengths(self, split: str) -> npt.NDArray[np.int32]:
        chosen = self._splits[split]
        read = chosen.read
        totals = np.bincount(read.sample, weights=read.tokens.lengths, minlength=len(read))
        return totals[chosen.rows].astype(np.int32)

    def weights(self, split: str) -> npt.NDArray[np.float64]:
        chosen = self._splits[split]
        counts = np.bincount(chosen.read.sample, minlength=len(chosen.read))
        return counts[chosen.rows].astype(np.float64)

    def collate(self, split: str, indices: Sequence[int] | npt.NDArray[np.int64], draws: Draws = None) -> Batch:
        import torch

        chosen = self._splits[split]
        read = chosen.read
        filler = len(indices) == 0
        windows = read.windows_of(chosen.rows_of([0] if filler else indices))
        windows = windows[:1] if filler else windows
        arrays = {
            **self._padded(read.tokens, read.segments, windows),
            "starts": np.full(len(windows), IGNORED) if filler else read.starts[windows],
            "ends": np.full(len(windows), IGNORED) if filler else read.ends[windows],
            "windows": windows,
            "split": np.full(len(windows), _SPLITS.index(split)),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def largest_batch(self, samples: int) -> Batch:
        import torch

        tokens = torch.zeros(samples, self._text.max_length, dtype=torch.int64)
        places = tokens[:, 0]
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if self._text.has_segments:
            batch[SEGMENTS] = torch.zeros_like(tokens)
        return {**batch, "starts": places, "ends": places, "windows": places, "split": places}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        from torch.nn.functional import cross_entropy

        scores = _scores(model, batch)
        told = (batch["starts"] != IGNORED).sum().clamp(min=1).to(scores.device)
        parts = [
            cross_entropy(scores[..., at], batch[name].to(scores.device), ignore_index=IGNORED, reduction="sum")
            for at, name in enumerate(("starts", "ends"))
        ]
        return (parts[0] + parts[1]) / (2 * told)

    def metrics(self) -> MetricAccumulator:
        return AnswerCounts(self)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The answer to each {question, context}, given as such or as JSON."""
        import torch

        answers = []
        for number, given in enumerate(inputs):
            pair = _question_and_context(given, number)
            encoded = self._encode([pair["question"]], [pair["context"]], "input", number)
            windows = range(len(encoded["input_ids"]))
            arrays = self._padded(*self._stored(encoded), np.array(windows))
            with torch.no_grad():
                scores = _scores(model, {name: torch.from_numpy(array) for name, array in arrays.items()}).cpu()
            spans = [characters(encoded, window) for window in windows]
            answers.append({"prediction": best_span(scores, spans, pair["context"], self._may_be_nothing)})
        return answers

    def examples(self, split: str, count: int) -> list[tuple[Any, Any]]:
        data = self._recipe.data
        questions = plain_examples(data, split, count, data.question, data.answers)
        contexts = plain_examples(data, split, count, data.context, None)
        return [
            ({"question": question, "context": context}, answers["text"][0] if answers["text"] else "")
            for (question, answers), (context, _) in zip(questions, contexts, strict=True)
        ]

    def answers(self, scores: Tensor, windows: Sequence[int], split: str) -> list[tuple[str, list[str]]]:
        """(best span, right answers) of each sample among these windows.

        Args:
            scores: [W, T, 2] of start and end.
        """
        read = self._splits[split].read
        found = []
        owners = read.sample[list(windows)]
        for sample in dict.fromkeys(owners.tolist()):
            own = np.flatnonzero(owners == sample)
            spans = [read.spans[windows[at]] for at in own.tolist()]
            said = best_span(scores[own], spans, read.contexts[sample], self._may_be_nothing)
            found.append((said, read.answers[sample]))
        return found

    def _encode(self, questions: list[str], contexts: list[str], where: str, first: int) -> Any:
        """Both in windows, which overlap by a quarter. Raises DataError for a question that leaves the text no room: `where` and
        its number, from `first` on; ModelError for a tokenizer that does not tell characters."""
        most, tokenizer = self._text.max_length, self._text.tokenizer
        room = most - most // 4 - tokenizer.num_special_tokens_to_add(pair=True)
        for number, ids in enumerate(tokenizer(questions, add_special_tokens=False)["input_ids"], first):
            if len(ids) >= room:
                raise DataError(
                    f"{where} {number}: the question has {len(ids)} tokens, and data.max_length {most} leaves room for {room - 1}",
                    hint="raise data.max_length, or leave the question out",
                )
        return encode_with_offsets(
            tokenizer,
            questions,
            contexts,
            truncation="only_second",
            max_length=most,
            stride=most // 4,
            return_overflowing_tokens=True,
        )

    def _stored(self, encoded: Any) -> tuple[TokenStore, TokenStore | None]:
        return store_tokens(encoded["input_ids"]), store_tokens(encoded[SEGMENTS]) if self._text.has_segments else None

    def _padded(
        self, tokens: TokenStore, segments: TokenStore | None, windows: npt.NDArray[np.int64]
    ) -> dict[str, npt.NDArray[np.int64]]:
        ids, mask = tokens.pad(windows, self._text.pad_id)
        found = {"input_ids": ids, "attention_mask": mask}
        return found if segments is None else {**found, SEGMENTS: segments.pad(windows, 0)[0]}

    def _read(self, place: str, hub_split: str) -> Windows:
        data = self._recipe.data
        key = (fingerprint(place), hub_split, *_columns(data), self._text.max_length, self._source.fingerprint)
        return _prepared.get(key, lambda: self._prepare(place, hub_split))

    def _columns_of(self, place: str, hub_split: str) -> tuple[list[str], list[str], list[list[tuple[str, int]]]]:
        """Questions, their texts, and their answers, checked. Raises DataError."""
        data = self._recipe.data
        table = read_split(place, _columns(data), texts=[data.question, data.context], split=hub_split).data.table
        questions, contexts, given = (table.column(name).to_pylist() for name in _columns(data))
        answers = [
            read_answers(cell, text, f"{place}, row {row + 1}")
            for row, (cell, text) in enumerate(zip(given, contexts, strict=True))
        ]
        return questions, contexts, answers

    def _prepare(self, place: str, hub_split: str) -> Windows:
        questions, contexts, answers = self._columns_of(place, hub_split)
        tokens, segments, samples, spans, first = TokenBuilder(), TokenBuilder(), [], [], 0
        for chunk in chunks(contexts):
            encoded = self._encode(questions[first : first + len(chunk)], chunk, f"{place}, row", first + 1)
            tokens.append(encoded["input_ids"])
            if self._text.has_segments:
                segments.append(encoded[SEGMENTS])
            samples.append(np.array(encoded["overflow_to_sample_mapping"], dtype=np.int64) + first)
            spans += [characters(encoded, window) for window in range(len(samples[-1]))]
            first += len(chunk)
        sample = np.concatenate(samples)
        places = [token_span(span, answers[owner]) for span, owner in zip(spans, sample.tolist(), strict=True)]
        return Windows(
            tokens.store(),
            segments.store() if self._text.has_segments else None,
            sample,
            np.array([start for start, _ in places], dtype=np.int64),
            np.array([end for _, end in places], dtype=np.int64),
            spans,
            contexts,
            [[text for text, _ in each] for each in answers],
        )


class AnswerCounts:
    """Exact matches, overlap F1 and loss, summed over questions; a MetricAccumulator."""

    def __init__(self, task: QuestionAnswering) -> None:
        import torch

        self._task = task
        self._sums = torch.zeros(5, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Count one batch; a filler counts nowhere."""
        import torch
        from torchmetrics.functional.text import squad

        with torch.no_grad():
            loss = self._task.loss(model, batch).item()
            scores = _scores(model, batch).cpu()
        if bool((batch["starts"] == IGNORED).all()):
            return
        windows = batch["windows"].tolist()
        found = self._task.answers(scores, windows, _SPLITS[int(batch["split"][0])])
        produced = [{"prediction_text": said, "id": str(at)} for at, (said, _) in enumerate(found)]
        expected = [
            {"answers": {"answer_start": [0] * max(1, len(right)), "text": right or [""]}, "id": str(at)}
            for at, (_, right) in enumerate(found)
        ]
        scored = squad(produced, expected)
        count = len(found)
        values = [count * float(scored["f1"]) / 100, count * float(scored["exact_match"]) / 100, count]
        self._sums += torch.tensor([*values, loss * len(windows), len(windows)], dtype=torch.float64)

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """One sum for all counts."""
        self._sums = sum_over_ranks(self._sums)

    def compute(self) -> dict[str, float]:
        """f1 and exact over questions (0 to 1), loss over windows. Raises DataError when no question was counted."""
        f1, exact, questions, loss, windows = self._sums.tolist()
        if questions == 0:
            raise DataError("no question was evaluated", hint="the split is empty")
        return {"f1": f1 / questions, "exact": exact / questions, "loss": loss / windows}


def _scores(model: nn.Module, batch: Batch) -> Tensor:
    """[W, T, 2] in fp32: how well each token starts and ends the answer; padding never does."""
    import torch

    inputs = inputs_of(model, {name: batch[name] for name in _INPUTS if name in batch})
    mask = inputs["attention_mask"]
    output = model(**inputs)
    scores = torch.stack([output.start_logits, output.end_logits], dim=-1).float()
    return scores.masked_fill(mask[..., None] == 0, torch.finfo(torch.float32).min)


def _columns(data: Any) -> list[str]:
    return [data.question, data.context, data.answers]


def _question_and_context(given: Any, number: int) -> dict[str, str]:
    try:
        pair = json.loads(given) if isinstance(given, str) else given
    except json.JSONDecodeError:
        pair = None
    if not isinstance(pair, Mapping) or not {"question", "context"} <= set(pair):
        raise DataError(
            f"input {number} is {str(given)[:80]!r}, no question with its text",
            hint='give {"question": "...", "context": "..."}',
        )
    return {name: str(pair[name]) for name in ("question", "context")}
