"""Adaptive input vectors and adaptive softmax of Transformer-XL: frequent words get many dimensions, rare ones few.

Source: Grave et al. 2017, "Efficient softmax approximation for GPUs", arXiv:1609.04309, and Baevski and Auli 2019,
arXiv:1809.10853, as Dai et al. 2019 (arXiv:1901.02860) publish them. Word ids are sorted by frequency; `cutoffs` divide them into
buckets. Called by `transfo_xl.py`.

Every rank runs every bucket in every step, also one that none of its words is in: under ZeRO-3 a bucket's weights are gathered by
all ranks together, and a rank that left it out would leave the others waiting.

Shapes: N words, D units of the model, V words of the vocabulary, E_i dimensions of bucket i.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from tlcore.models.families.checks import check_counts


def check_cutoffs(config: Any) -> None:
    """Raise ValueError where the buckets do not divide the vocabulary, or the last one has no dimension left."""
    check_counts(config, "vocab_size", "d_model", "d_embed", "div_val")
    cuts = list(config.cutoffs)
    if cuts != sorted(set(cuts)) or (cuts and not 0 < cuts[0] <= cuts[-1] < config.vocab_size):
        raise ValueError(
            f"{config.model_type}: cutoffs is {cuts!r}; give rising word ids above 0 and below vocab_size, {config.vocab_size}"
        )
    if config.d_embed // config.div_val ** len(cuts) < 1:
        raise ValueError(
            f"{config.model_type}: d_embed is {config.d_embed}, of which div_val {config.div_val} leaves nothing in the last of"
            f" {len(cuts) + 1} buckets"
        )


def buckets(config: Any) -> list[tuple[int, int, int]]:
    """First word, end and dimensions of each bucket."""
    ends = [0, *config.cutoffs, config.vocab_size]
    return [(ends[at], ends[at + 1], config.d_embed // config.div_val**at) for at in range(len(ends) - 1)]


def projected(config: Any) -> bool:
    """Whether word vectors have other dimensions than the model."""
    return bool(config.div_val > 1 or config.d_embed != config.d_model)


class AdaptiveEmbedding(nn.Module):
    """Word vectors, one table per bucket (one for all where `div_val` is 1), brought to the model's units and scaled."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.scale = math.sqrt(config.d_model)
        whole = [(0, config.vocab_size, config.d_embed)]
        self.buckets = buckets(config) if config.div_val > 1 else whole
        # no ModuleList: strategies would take tables for the network's blocks
        self.tables = nn.ModuleDict(
            {str(at): nn.Embedding(end - first, size) for at, (first, end, size) in enumerate(self.buckets)}
        )
        self.projections = nn.ModuleDict(
            {
                str(at): nn.Linear(size, config.d_model, bias=False)
                for at, (_, _, size) in enumerate(self.buckets)
                if projected(config)
            }
        )

    def forward(self, words: Tensor) -> Tensor:
        """[B, T] of ids to [B, T, D]."""
        found: Tensor | None = None
        for at, (first, end, _) in enumerate(self.buckets):
            vectors = self.tables[str(at)]((words - first).clamp(0, end - first - 1))
            vectors = self.projections[str(at)](vectors) if self.projections else vectors
            inside = ((words >= first) & (words < end)).unsqueeze(-1).to(vectors.dtype)
            found = vectors * inside if found is None else found + vectors * inside
        assert found is not None
        return found * self.scale


class AdaptiveSoftmax(nn.Module):
    """Log probabilities of words: a first choice among frequent words and buckets, then one inside the bucket.

    Weights and projections are tied to the embedding's by `TransfoXLForCausalLM`. They are this module's own parameters, not
    those of modules inside, so that they are gathered at once.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.buckets = buckets(config)
        self.divided = config.div_val > 1
        rows = self.buckets if self.divided else [(0, config.vocab_size, config.d_embed)]
        for at, (first, end, size) in enumerate(rows):
            self.register_parameter(f"weight_{at}", nn.Parameter(torch.empty(end - first, size)))
            self.register_parameter(f"bias_{at}", nn.Parameter(torch.empty(end - first)))
        for at, (_, _, size) in enumerate(self.buckets if projected(config) else []):
            self.register_parameter(f"projection_{at}", nn.Parameter(torch.empty(config.d_model, size)))
        rare = len(self.buckets) - 1
        self.cluster_weight = nn.Parameter(torch.empty(rare, config.d_embed)) if rare else None
        self.cluster_bias = nn.Parameter(torch.empty(rare)) if rare else None

    def forward(self, hidden: Tensor, words: Tensor | None = None) -> Tensor:
        """With `words` [N] their negative log probabilities [N] in fp32 (0 where a word is below 0), else all of them [N, V],
        as log probabilities. `hidden` is [N, D]."""
        first_choice = functional.log_softmax(self._scores(hidden, 0), dim=-1, dtype=torch.float32)
        return self._all(hidden, first_choice) if words is None else self._chosen(hidden, words, first_choice)

    def _scores(self, hidden: Tensor, bucket: int) -> Tensor:
        """Scores inside one bucket; of the first bucket, those of the other buckets stand behind its words'."""
        first, end, _ = self.buckets[bucket]
        at = bucket if self.divided else 0
        projection = getattr(self, f"projection_{bucket}", None)
        weight, bias = getattr(self, f"weight_{at}"), getattr(self, f"bias_{at}")
        if not self.divided:
            weight, bias = weight[first:end], bias[first:end]
        if bucket == 0 and self.cluster_weight is not None and self.cluster_bias is not None:
            weight, bias = torch.cat([weight, self.cluster_weight]), torch.cat([bias, self.cluster_bias])
        return functional.linear(hidden if projection is None else hidden @ projection, weight, bias)

    def _all(self, hidden: Tensor, first_choice: Tensor) -> Tensor:
        frequent = self.buckets[0][1]
        found = [first_choice[:, :frequent]]
        for bucket in range(1, len(self.buckets)):
            inside = functional.log_softmax(self._scores(hidden, bucket), dim=-1, dtype=torch.float32)
            found.append(first_choice[:, frequent + bucket - 1].unsqueeze(-1) + inside)
        return torch.cat(found, dim=-1)

    def _chosen(self, hidden: Tensor, words: Tensor, first_choice: Tensor) -> Tensor:
        """Rare buckets are scored for their own words alone."""
        frequent = self.buckets[0][1]
        bucket_of = sum((words >= first).long() for first, _, _ in self.buckets[1:]) + torch.zeros_like(words)
        place = torch.where(bucket_of > 0, frequent + bucket_of - 1, words.clamp(min=0))
        found = first_choice.gather(1, place.unsqueeze(1)).squeeze(1)
        for bucket in range(1, len(self.buckets)):
            inside = bucket_of == bucket
            rows = _rows(inside)
            first, end, _ = self.buckets[bucket]
            scores = functional.log_softmax(self._scores(hidden[rows], bucket), dim=-1, dtype=torch.float32)
            own = scores.gather(1, (words[rows] - first).clamp(0, end - first - 1).unsqueeze(1)).squeeze(1)
            found = found.index_add(0, rows, own * inside[rows].to(own.dtype))
        return -found * (words >= 0).to(found.dtype)


def _rows(inside: Tensor) -> Tensor:
    """Places that are true; the first place where none is. All of them over fake tensors, whose contents nobody knows."""
    if isinstance(inside, FakeTensor):
        return torch.arange(len(inside), device=inside.device)
    rows = inside.nonzero().squeeze(1)
    return rows if len(rows) else torch.zeros(1, dtype=torch.long, device=inside.device)
