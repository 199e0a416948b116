"""Metrics of produced text: BLEU, chrF and ROUGE as sums over samples, beside the mean loss per token.

Owns the counting and its sum over ranks. Called by `text_to_text.py` and the speech tasks that produce text.

BLEU and chrF are torchmetrics', whose states are sums of n-gram counts; ROUGE is rouge-score's F-measure per sample with stemming
off, so that it means the same in every language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from tlcore.errors import DataError
from tlcore.tasks.base import IGNORED, Batch, SumOverRanks

ROUGE: Final = ("rouge1", "rouge2", "rougeL")


class ProducedText:
    """A MetricAccumulator over (produced, expected) texts.

    Args:
        scores: `translation` (bleu, chrf, in percent) or `rouge` (rouge1, rouge2, rougeL, 0 to 1).
        produce: the model's texts for a batch, one for each sample that counts; every rank calls it equally often.
        expected: the texts of the same samples.
        told: logits and labels of the batch, for the loss.
    """

    def __init__(
        self,
        scores: str,
        produce: Callable[[nn.Module, Batch], Sequence[str]],
        expected: Callable[[Batch], Sequence[str]],
        told: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]],
    ) -> None:
        self._produce, self._expected, self._told = produce, expected, told
        self._scores: Any = TranslationScores() if scores == "translation" else RougeScores()
        self._loss = torch.zeros(2, dtype=torch.float64)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Produce for one batch and count."""
        with torch.no_grad():
            logits, labels = self._told(model, batch)
            logits, labels = logits.flatten(0, -2), labels.flatten()
            loss = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
            self._loss += torch.stack([loss.double(), (labels != IGNORED).sum().double()]).cpu()
        produced, expected = list(self._produce(model, batch)), list(self._expected(batch))
        if expected:
            self._scores.update(produced, expected)

    def merge(self, sum_over_ranks: SumOverRanks) -> None:
        """One sum for all counts."""
        own = self._scores.sums()
        summed = sum_over_ranks(torch.cat([self._loss, own]))
        self._loss = summed[:2]
        self._scores.load(summed[2:])

    def compute(self) -> dict[str, float]:
        """The scores and `loss`, the mean over tokens. Raises DataError when nothing was evaluated."""
        loss, tokens = self._loss.tolist()
        if tokens == 0:
            raise DataError("no text was evaluated", hint="the split is empty")
        return {**self._scores.compute(), "loss": loss / tokens}


class TranslationScores:
    """BLEU (Papineni et al. 2002, sacreBLEU's 13a tokens) and chrF (Popovic 2015, n-grams of up to 6 characters), in percent."""

    def __init__(self) -> None:
        from torchmetrics.text import CHRFScore, SacreBLEUScore

        self._metrics = {"bleu": SacreBLEUScore(), "chrf": CHRFScore(n_word_order=0)}

    def update(self, produced: Sequence[str], expected: Sequence[str]) -> None:
        """Count these samples."""
        for metric in self._metrics.values():
            metric.update(list(produced), [[text] for text in expected])

    def sums(self) -> Tensor:
        """Every count, float64 [N]."""
        return torch.cat([state.double().flatten() for metric in self._metrics.values() for state in _states(metric)])

    def load(self, sums: Tensor) -> None:
        """Take these counts for own ones."""
        place = 0
        for metric in self._metrics.values():
            for state in _states(metric):
                state.copy_(sums[place : place + state.numel()].reshape(state.shape))
                place += state.numel()

    def compute(self) -> dict[str, float]:
        """The scores, in percent."""
        return {name: 100 * float(_computed(metric)) for name, metric in self._metrics.items()}


class RougeScores:
    """ROUGE-1, -2 and -L (Lin 2004): the mean F-measure over samples."""

    def __init__(self) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self._scorer = RougeScorer(list(ROUGE), tokenizer=_Words())
        self._sums = torch.zeros(len(ROUGE) + 1, dtype=torch.float64)

    def update(self, produced: Sequence[str], expected: Sequence[str]) -> None:
        """Count these samples."""
        for text, wanted in zip(produced, expected, strict=True):
            found = self._scorer.score(wanted, text)
            self._sums += torch.tensor([*(found[name].fmeasure for name in ROUGE), 1.0], dtype=torch.float64)

    def sums(self) -> Tensor:
        """Every count, float64 [4]."""
        return self._sums

    def load(self, sums: Tensor) -> None:
        """Take these counts for own ones."""
        self._sums = sums

    def compute(self) -> dict[str, float]:
        """The mean scores."""
        return {name: float(self._sums[at] / self._sums[-1]) for at, name in enumerate(ROUGE)}


class _Words:
    """Words of any script; rouge-score's own tokenizer drops every letter that is not English."""

    def tokenize(self, text: str) -> list[str]:
        import re

        return re.findall(r"\w+", text.lower())


def _states(metric: Any) -> list[Tensor]:
    """The sums that a metric keeps, in a fixed order."""
    return [metric.metric_state[name] for name in sorted(metric.metric_state)]


def _computed(metric: Any) -> Tensor:
    """Of counts that were set from outside: torchmetrics would warn that `update` was never called, and keeps what it computed."""
    metric._update_count = max(1, metric._update_count)
    metric._computed = None
    value: Tensor = metric.compute()
    return value
