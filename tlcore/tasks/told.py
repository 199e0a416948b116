"""Logits, or their loss, at the places that have a label, and nowhere else.

Owns where a batch of tokens has labels, and the forward pass that computes the logits of these alone: a vocabulary is wide, and a
prompt, a padded end or a word that nobody hid is told nothing. The rows of the model's last hidden state are chosen right before
they are multiplied with the vocabulary, so the logits elsewhere are never made: of a hundred tokens of which fifteen are hidden,
that saves six sevenths of the product, of its gradient and of the memory of both. Called by the tasks that predict tokens.

Where: found when a batch is made, on the host, since a device would have to be waited for to learn how many there are.

A compiled model keeps its logits whole, since a hook on its inside would have it compiled anew, and so does one whose output layer
is not found or is given anything else than one row per token; the labelled ones are chosen afterwards.

An adaptive softmax goes further: for a loss it scores the labels' own clusters of the vocabulary alone. A model that has one says
so (`scores_labels_alone`) and is asked for its loss when it trains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from tlcore.tasks.base import IGNORED, Batch
from tlcore.tasks.logits import inputs_of, mean_cross_entropy

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLD: Final = "told"
"""In a batch: which places [M] of its labels [B, T], flattened, a logit is compared with."""
UNFED: Final = ("labels", TOLD)
"""What of a batch no model takes."""


def with_told(batch: Batch, ahead: int = 0) -> Batch:
    """The batch with its `TOLD`. `ahead`: how many tokens later a place's label stands, 1 where the next token is predicted."""
    return {**batch, TOLD: (_labels(batch, ahead) != IGNORED).nonzero()[:, 0]}


def with_most_told(batch: Batch, share: float = 1.0) -> Batch:
    """The batch as if this share of its places were told, whatever its labels are: for an estimate of memory."""
    import torch

    return {**batch, TOLD: torch.arange(math.ceil(share * batch["labels"].numel()))}


def told_logits(
    model: nn.Module, batch: Batch, inputs: Batch | None = None, ahead: int = 0, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Logits [M, V] in fp32 at a batch's told places, and the label [M] of each, on the model's device.

    Args:
        batch: its `labels` [B, T], its `TOLD`, and what goes into the model.
        inputs: what goes into the model, where that is not the rest of the batch.
        ahead: as it was for `with_told`.
        settings: passed to the model.
    """
    inputs = inputs_of(model, batch, UNFED) if inputs is None else inputs
    device = next(model.parameters()).device
    labels, places = (each.to(device, non_blocking=True) for each in (_labels(batch, ahead), batch[TOLD]))
    with _chosen_before_output(model, places, tuple(batch["labels"].shape)) as chosen:
        logits: Tensor = model(**inputs, **settings).logits
    if not chosen:
        logits = logits.flatten(0, -2)[places]
    return logits.float(), labels[places]


def told_loss(model: nn.Module, batch: Batch, **settings: Any) -> Tensor:
    """Mean cross entropy [] in fp32 of the next token at a batch's told places (`ahead` is 1); 0 where there is none.

    Args:
        batch: its `labels` [B, T], its `TOLD`, and what goes into the model.
        settings: passed to the model.
    """
    if model.training and _scores_labels_alone(_inner(model)):
        inputs = inputs_of(model, batch, (TOLD,))
        loss: Tensor = model(**inputs, **settings).loss
        return loss
    return mean_cross_entropy(*told_logits(model, batch, ahead=1, **settings))


def _scores_labels_alone(inner: Any) -> bool:
    return getattr(inner, "scores_labels_alone", False) and inner._compiled_call_impl is None


def _inner(model: nn.Module) -> Any:
    """The model inside a DeepSpeed engine."""
    return getattr(model, "module", model)


def _labels(batch: Batch, ahead: int) -> Tensor:
    """The label of each place, flat [B * T]; the last places of a row have none where labels stand ahead."""
    from torch.nn.functional import pad

    labels = batch["labels"]
    return pad(labels[:, ahead:], (0, ahead), value=IGNORED).flatten() if ahead else labels.flatten()


@contextmanager
def _chosen_before_output(model: nn.Module, places: Tensor, shape: tuple[int, ...]) -> Iterator[list[bool]]:
    """While it lasts, the output layer sees these places' rows only; the list has something in it once it did."""
    chosen: list[bool] = []

    def choose(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if len(given) != 1 or given[0].shape[:-1] != shape:
            return None
        chosen.append(True)
        return (given[0].flatten(0, -2)[places],)

    output = _output_layer(model)
    if output is None:
        yield chosen
        return
    hook = output.register_forward_pre_hook(choose)
    try:
        yield chosen
    finally:
        hook.remove()


def _output_layer(model: nn.Module) -> nn.Module | None:
    """The product with the vocabulary, where the model says which it is and may be looked into."""
    inner = _inner(model)
    if inner._compiled_call_impl is not None:
        return None
    found: nn.Module | None = inner.get_output_embeddings()
    return found
