"""Metrics of the tasks of pictures against kept libraries, with samples spread unevenly over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from many_ranks import merged
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score
from torchmetrics.detection import MeanAveragePrecision
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_jaccard_index,
    multilabel_f1_score,
)

from tlcore.errors import DataError
from tlcore.tasks.anomaly_metrics import RankedScores
from tlcore.tasks.base import IGNORED
from tlcore.tasks.classification_metrics import ClassificationCounts, MultiLabelCounts
from tlcore.tasks.detection_metrics import BoxCounts, corner_first
from tlcore.tasks.detectors import best_boxes, box_losses
from tlcore.tasks.gathered import SLOT, GatheredSamples
from tlcore.tasks.logits import mean_binary_cross_entropy
from tlcore.tasks.retrieval_metrics import TEMPERATURE, Neighbours, contrastive_losses
from tlcore.tasks.segmentation_metrics import PixelCounts

pytestmark = pytest.mark.unit

SHARES = ([3, 0, 9, 10], [1], [], [8, 2, 4, 7, 6, 5, 11])
"""Samples of each of four ranks; the third has none."""
NOBODY = torch.nn.Identity()


def spread(make: Any, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """What accumulators of four ranks make of 12 samples, fillers and all; the same on every rank."""
    ranks = []
    for share in SHARES:
        one = make()
        if share:
            one.update(NOBODY, {name: tensor[share] for name, tensor in batch.items()})
        filler = {name: tensor[:1].clone() for name, tensor in batch.items()}
        filler["labels"] = torch.full_like(filler["labels"], IGNORED)
        filler[SLOT] = torch.tensor([-1])
        one.update(NOBODY, filler)
        ranks.append(one)
    results = merged(ranks)
    assert all(result == results[0] for result in results)
    return results[0]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_any_number_of_labels_as_scikit_learn_and_torchmetrics_count_them() -> None:
    logits, labels = drawn(12, 4), (drawn(12, 4, seed=1) > 0.3).long()
    labels[2] = 0
    found = spread(
        lambda: MultiLabelCounts(4, lambda model, batch: batch["logits"]), {"logits": logits, "labels": labels}
    )
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, logits >= 0))
    assert found["f1"] == pytest.approx(multilabel_f1_score(logits.sigmoid(), labels, 4, average="macro").item())
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    assert found["loss"] == pytest.approx(plain.item())
    assert mean_binary_cross_entropy(logits, labels).item() == pytest.approx(plain.item())


def test_very_many_classes_are_counted_in_little_memory() -> None:
    classes = 50_000  # a confusion matrix would take 20 GB
    labels, answers = torch.tensor([7, 7, 49_999, 3, 2, 2] * 2), torch.tensor([7, 9, 49_999, 3, 2, 3] * 2)
    batch = {"answers": answers, "labels": labels}
    found = spread(
        lambda: ClassificationCounts(
            classes, lambda model, batch: torch.nn.functional.one_hot(batch["answers"], classes).float()
        ),
        batch,
    )
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, answers))
    assert found["f1"] == pytest.approx(
        f1_score(labels, answers, average="macro", labels=[2, 3, 7, 9, 49_999], zero_division=0)
    )


def test_pixels_as_torchmetrics_counts_them() -> None:
    logits = drawn(12, 3, 5, 6)
    labels = torch.randint(0, 3, (12, 5, 6), generator=torch.Generator().manual_seed(2))
    labels[:, 0, :3] = IGNORED
    found = spread(lambda: PixelCounts(3, lambda model, batch: batch["logits"]), {"logits": logits, "labels": labels})
    expected = multiclass_jaccard_index(logits, labels, 3, ignore_index=IGNORED, average="macro")
    assert found["miou"] == pytest.approx(expected.item())
    right = multiclass_accuracy(logits, labels, 3, ignore_index=IGNORED, average="micro")
    assert found["accuracy"] == pytest.approx(right.item())
    losses = [torch.nn.functional.cross_entropy(logits[at : at + 1], labels[at : at + 1]) for at in range(12)]
    assert found["loss"] == pytest.approx(torch.stack(losses).mean().item())


def neighbours_by_hand(vectors: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    first, precisions = [], []
    for query, vector in enumerate(vectors):
        others = [other for other in range(len(vectors)) if other != query]
        order = sorted(others, key=lambda other: -float(vector @ vectors[other]))
        hits = [labels[other] == labels[query] for other in order]
        wanted = sum(hits)
        if wanted:
            first.append(hits[0])
            precisions.append(sum(sum(hits[: k + 1]) / (k + 1) for k in range(wanted) if hits[k]) / wanted)
    return float(np.mean(first)), float(np.mean(precisions))


def test_neighbours_and_their_loss_as_counted_by_hand() -> None:
    vectors = torch.nn.functional.normalize(drawn(12, 5).double(), dim=1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 7])  # the last is alone
    batch = {"vectors": vectors, "labels": labels, SLOT: torch.arange(12)}
    found = spread(lambda: Neighbours(5, lambda model, batch: batch["vectors"]), batch)
    assert (found["recall_at_1"], found["map_at_r"]) == pytest.approx(
        neighbours_by_hand(vectors.numpy(), labels.numpy())
    )
    losses = []
    for query in range(11):
        scores = (vectors[query] @ vectors.T / TEMPERATURE).exp()
        others = torch.arange(12) != query
        same = others & (labels == labels[query])
        losses.append(-(scores[same] / scores[others].sum()).log().mean())
    assert found["loss"] == pytest.approx(torch.stack(losses).mean().item())


def test_contrast_needs_a_pair_and_passes_over_fillers() -> None:
    vectors = torch.nn.functional.normalize(drawn(3, 4), dim=1)
    assert contrastive_losses(vectors, torch.tensor([0, 1, 2])).isnan().all()
    assert contrastive_losses(vectors[:1], torch.tensor([IGNORED])).isnan().all()
    losses = contrastive_losses(vectors, torch.tensor([0, 0, IGNORED]))
    torch.testing.assert_close(losses[:2], torch.zeros(2))
    assert losses[2].isnan()


def test_scores_as_scikit_learn_ranks_them_with_ties() -> None:
    scores = (drawn(12) * 2).round().double()
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1])
    batch = {"scores": scores, "labels": labels, SLOT: torch.arange(12)}
    found = spread(lambda: RankedScores(lambda model, batch: batch["scores"]), batch)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["average_precision"] == pytest.approx(average_precision_score(labels, scores))
    assert found["loss"] == pytest.approx(scores[labels == 0].mean().item())
    with pytest.raises(DataError, match="only normal samples were evaluated"):
        spread(
            lambda: RankedScores(lambda model, batch: batch["scores"]), {**batch, "labels": torch.zeros_like(labels)}
        )


def test_boxes_as_torchmetrics_judges_them() -> None:
    pictures, queries, classes = 12, 8, 2
    centres = torch.rand(pictures, queries, 4, generator=torch.Generator().manual_seed(5)) * 0.4 + 0.3
    labels = torch.randint(0, classes, (pictures, 3), generator=torch.Generator().manual_seed(6))
    labels[4, 1:] = IGNORED
    labels[5] = IGNORED
    wanted = centres[:, :3] + 0.03 * drawn(pictures, 3, 4, seed=7)
    logits = drawn(pictures, queries, classes + 1, seed=8)
    logits[:, :3, :2] += 2 * torch.nn.functional.one_hot(labels.clamp(min=0), 2)
    scale = torch.linspace(50, 500, pictures, dtype=torch.float64)
    batch = {
        "logits": logits,
        "found": centres,
        "boxes": wanted,
        "labels": labels,
        "crowds": torch.zeros_like(labels),
        "scale": scale,
        "weights": torch.arange(1.0, 13),
        SLOT: torch.arange(pictures),
    }

    def ran(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return best_boxes(batch["logits"], batch["found"]), batch["logits"].mean(dim=(1, 2))

    found = spread(lambda: BoxCounts(("cat", "dog"), 3, ran), batch)
    judge = MeanAveragePrecision(box_format="xywh", backend="faster_coco_eval")
    scores, kinds = logits.softmax(-1)[..., :-1].max(-1)
    for at in range(pictures):
        there = labels[at] != IGNORED
        judge.update(
            [{"boxes": corner_first(centres[at]) * scale[at], "scores": scores[at], "labels": kinds[at]}],
            [{"boxes": corner_first(wanted[at][there]) * scale[at], "labels": labels[at][there]}],
        )
    expected = judge.compute()
    assert found["map"] == pytest.approx(expected["map"].item(), abs=1e-6)
    assert found["map_50"] == pytest.approx(expected["map_50"].item(), abs=1e-6)
    assert 0.05 < found["map"] < found["map_50"] < 1
    assert found["loss"] == pytest.approx(logits.mean(dim=(1, 2)).sum().item() / 78)
    with pytest.raises(DataError, match="no picture of the split has an object"):
        spread(lambda: BoxCounts(("cat", "dog"), 3, ran), {**batch, "labels": torch.full_like(labels, IGNORED)})


def test_a_detector_s_loss_is_transformers_own_for_each_picture() -> None:
    from transformers import YolosConfig
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    config = YolosConfig(num_labels=2)
    logits, boxes = drawn(2, 5, 3), drawn(2, 5, 4, seed=1).sigmoid()
    labels = torch.tensor([[1, IGNORED], [0, 1]])
    wanted = drawn(2, 2, 4, seed=2).sigmoid()
    found = box_losses(logits, boxes, {"labels": labels, "boxes": wanted}, config)
    for at, count in enumerate((1, 2)):
        target = {"class_labels": labels[at, :count], "boxes": wanted[at, :count]}
        one = slice(at, at + 1)
        expected = ForObjectDetectionLoss(logits[one], [target], logits.device, boxes[one], config)[0]
        torch.testing.assert_close(found[at], expected)
    nothing = {"labels": torch.zeros(2, 0, dtype=torch.int64), "boxes": torch.zeros(2, 0, 4)}
    empty = {"labels": torch.full((2, 1), IGNORED), "boxes": torch.zeros(2, 1, 4)}
    torch.testing.assert_close(box_losses(logits, boxes, nothing, config), box_losses(logits, boxes, empty, config))


def test_each_sample_is_gathered_once_or_it_is_said() -> None:
    def holding(*slots: int) -> GatheredSamples:
        samples = GatheredSamples(1)
        samples.add(torch.tensor(slots), torch.tensor(slots)[:, None].float())
        return samples

    def alone(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    assert holding(2, 0, 1, -1).merge(alone).flatten().tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="sample 0 of 2 was evaluated 0 times"):
        holding(1, 2).merge(alone)
    with pytest.raises(DataError, match="sample 0 of 2 was evaluated 2 times"):
        holding(0, 0).merge(alone)
    with pytest.raises(DataError, match="no sample was evaluated"):
        holding(-1).merge(alone)
