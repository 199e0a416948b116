"""YOLOX: the published sizes, the network computed from its tensors without modules, SimOTA object by object, what comes out.

No package carries published weights under a licence to use: the network is tested at small random size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_checks import (
    check_checkpointing_changes_nothing,
    check_is_a_source,
    check_learns,
    check_scratch_follows_the_seed,
    check_structure,
    fixed,
    parameters_on_meta,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from transformers import AutoModelForObjectDetection

from tlcore.models.families.yolo import YoloxConfig, YoloxForObjectDetection, YoloxOutput
from tlcore.models.families.yolo_loss import Places, assign

pytestmark = pytest.mark.unit

Labels = list[dict[str, torch.Tensor]]


def tiny(**changes: Any) -> YoloxConfig:
    return YoloxConfig(**{"width": 0.125, "num_labels": 3} | changes)


def batch(labels: bool = False) -> dict[str, Any]:
    """Two images, the second without an object."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(4))
    objects = torch.tensor([[0.5, 0.5, 0.4, 0.6], [0.2, 0.3, 0.3, 0.3]])
    found: Labels = [
        {"class_labels": torch.tensor([0, 2]), "boxes": objects},
        {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)},
    ]
    return {"pixel_values": images} | ({"labels": found} if labels else {})


class Reference:
    """The published graph over tensors by name: which map goes where is written out here once more."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state

    def conv(self, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight, s = self.state[f"{name}.convolution.weight"], self.state
        x = functional.conv2d(x, weight, stride=stride, padding=(weight.shape[-1] - 1) // 2)
        x = (x - s[f"{name}.norm.running_mean"][:, None, None]) / (
            s[f"{name}.norm.running_var"][:, None, None] + 1e-3
        ).sqrt()
        x = x * s[f"{name}.norm.weight"][:, None, None] + s[f"{name}.norm.bias"][:, None, None]
        return x * torch.sigmoid(x)

    def csp(self, name: str, x: torch.Tensor, shortcut: bool) -> torch.Tensor:
        one, two = self.conv(f"{name}.through", x), self.conv(f"{name}.around", x)
        blocks = {key.split(".bottlenecks.")[1].split(".")[0] for key in self.state if f"{name}.bottlenecks." in key}
        for at in range(len(blocks)):
            block = f"{name}.bottlenecks.{at}"
            found = self.conv(f"{block}.filter", self.conv(f"{block}.reduce", one))
            one = one + found if shortcut else found
        return self.conv(f"{name}.join", torch.cat([one, two], 1))

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        parts = [images[..., y::2, x::2] for x in (0, 1) for y in (0, 1)]
        x, kept = self.conv("yolox.stem", torch.cat(parts, 1)), []
        for at in range(4):
            x = self.conv(f"yolox.stages.{at}.down", x, stride=2)
            if at == 3:
                x = self.conv(f"yolox.stages.{at}.pooling.reduce", x)
                wide = [functional.max_pool2d(functional.pad(x, [k // 2] * 4, value=-1e9), k, 1) for k in (5, 9, 13)]
                x = self.conv(f"yolox.stages.{at}.pooling.join", torch.cat([x, *wide], 1))
            x = self.csp(f"yolox.stages.{at}.cross", x, shortcut=at < 3)
            kept.append(x)
        _, c3, c4, c5 = kept
        p5 = self.conv("yolox.neck.reduce_coarse", c5)
        p4 = self.csp("yolox.neck.up_middle", torch.cat([_twice(p5), c4], 1), False)
        p4 = self.conv("yolox.neck.reduce_middle", p4)
        n3 = self.csp("yolox.neck.up_fine", torch.cat([_twice(p4), c3], 1), False)
        n4 = self.csp("yolox.neck.down_middle", torch.cat([self.conv("yolox.neck.halve_fine", n3, 2), p4], 1), False)
        n5 = self.csp("yolox.neck.down_coarse", torch.cat([self.conv("yolox.neck.halve_middle", n4, 2), p5], 1), False)
        return [n3, n4, n5]

    def __call__(self, images: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """Class scores, box and objectness of each place of the first image, map by map and row by row."""
        found = []
        for at, (stride, level) in enumerate(zip((8, 16, 32), self.maps(images), strict=True)):
            stem = self.conv(f"head.{at}.stem", level)
            kinds, boxes = stem, stem
            for layer in range(2):
                kinds = self.conv(f"head.{at}.class_branch.{layer}", kinds)
                boxes = self.conv(f"head.{at}.box_branch.{layer}", boxes)
            out = [
                functional.conv2d(x, self.state[f"head.{at}.{part}.weight"], self.state[f"head.{at}.{part}.bias"])[0]
                for part, x in (("classes", kinds), ("boxes", boxes), ("objectness", boxes))
            ]
            logits, box, objectness = (each.double().numpy() for each in out)
            for y in range(level.shape[2]):
                for x in range(level.shape[3]):
                    dx, dy, w, h = box[:, y, x]
                    place = np.array([(x + dx) * stride, (y + dy) * stride, math.exp(w) * stride, math.exp(h) * stride])
                    found.append((logits[:, y, x], place / [96, 64, 96, 64], objectness[0, y, x]))
        return found


def _twice(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_the_network_gives_what_its_published_graph_gives() -> None:
    model = fixed(AutoModelForObjectDetection.from_config(tiny(depth=0.67)))
    images = batch()["pixel_values"][:1]
    with torch.no_grad():
        found = model(images)
    expected = Reference(model.state_dict())(images)
    assert found.logits.shape[1] == len(expected) == 8 * 12 + 4 * 6 + 2 * 3
    for at, (logits, box, objectness) in enumerate(expected):
        np.testing.assert_allclose(found.logits[0, at], logits, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.pred_boxes[0, at], box, rtol=1e-3, atol=1e-4)
        assert found.objectness[0, at].item() == pytest.approx(objectness, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("width", "depth", "millions"),
    [(0.375, 0.33, 5.06), (0.5, 0.33, 8.97), (0.75, 0.67, 25.3), (1, 1, 54.2), (1.25, 1.33, 99.1)],
)
def test_each_scale_has_its_published_size(width: float, depth: float, millions: float) -> None:
    config = YoloxConfig(width=width, depth=depth, num_labels=80)
    assert parameters_on_meta(AutoModelForObjectDetection, config) / 1e6 == pytest.approx(millions, rel=2e-3)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    low = np.maximum(one[:2] - one[2:] / 2, other[:2] - other[2:] / 2)
    high = np.minimum(one[:2] + one[2:] / 2, other[:2] + other[2:] / 2)
    common = np.prod(np.clip(high - low, 0, None))
    return float(common / (one[2:].prod() + other[2:].prod() - common))


def simota(raw: np.ndarray, boxes: np.ndarray, places: Places, kinds: list[int], targets: np.ndarray) -> np.ndarray:
    """The paper's assignment in loops, over lists of candidates."""
    centres, strides = places.centres.numpy(), places.strides.numpy()
    inside, central = np.zeros((2, len(targets), len(raw)), bool)
    for g, target in enumerate(targets):
        for a in range(len(raw)):
            off = np.abs(centres[a] - target[:2])
            inside[g, a] = (off < target[2:] / 2).all()
            central[g, a] = (off < 2.5 * strides[a]).all()
    candidates = [a for a in range(len(raw)) if (inside[:, a] | central[:, a]).any()]
    sigmoid = 1 / (1 + np.exp(-raw))
    costs, wanted = np.zeros((len(targets), len(candidates))), np.zeros((len(targets), len(candidates)), bool)
    for g, target in enumerate(targets):
        overlaps = [iou(target, boxes[a]) for a in candidates]
        for at, a in enumerate(candidates):
            p = np.sqrt(sigmoid[a, 5:] * sigmoid[a, 4])
            cross = -sum(np.log(p[c]) if c == kinds[g] else np.log(1 - p[c]) for c in range(len(p)))
            costs[g, at] = cross - 3 * np.log(overlaps[at] + 1e-8) + 1e5 * (not (inside[g, a] and central[g, a]))
        many = max(1, int(sum(sorted(overlaps)[-10:])))
        wanted[g, np.argsort(costs[g])[:many]] = True
    found = np.zeros((len(targets), len(raw)), bool)
    for at, a in enumerate(candidates):
        owners = np.flatnonzero(wanted[:, at])
        if len(owners):
            found[owners[0] if len(owners) == 1 else costs[:, at].argmin(), a] = True
    return found


@pytest.mark.parametrize("seed", range(4))
def test_places_answer_for_objects_as_the_paper_assigns_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    places = Places.of([(8, 8), (4, 4), (2, 2)], (8, 16, 32), torch.device("cpu"))
    raw = torch.from_numpy(random.normal(size=(84, 8))).float()
    boxes = places.decode(torch.cat([raw[:, :2] * 0.5 + 0.5, raw[:, 2:4] * 0.5 + 0.8], dim=-1))
    targets = np.concatenate([random.uniform(8, 56, (4, 2)), random.uniform(10, 40, (4, 2))], axis=1).astype(np.float32)
    targets[1] = targets[0] + 2  # two that want the same places
    kinds = [0, 1, 2, 0]
    found = assign(raw, boxes, places, torch.tensor(kinds), torch.from_numpy(targets)).numpy()
    expected = simota(raw.double().numpy(), boxes.double().numpy(), places, kinds, targets.astype(float))
    assert expected.any()
    np.testing.assert_array_equal(found, expected)


def test_the_loss_is_the_papers_sum_over_answering_places() -> None:
    model = fixed(AutoModelForObjectDetection.from_config(tiny()))
    given = batch(labels=True)
    with torch.no_grad():
        output = model(**given)
        size = torch.tensor([96.0, 64.0, 96.0, 64.0])
        places = Places.of([(8, 12), (4, 6), (2, 3)], (8, 16, 32), torch.device("cpu"))
        raw = torch.cat([torch.zeros(2, 126, 4), output.objectness.unsqueeze(-1), output.logits], dim=-1)
        targets, kinds = given["labels"][0]["boxes"] * size, given["labels"][0]["class_labels"]
        boxes = output.pred_boxes * size
        answers = assign(raw[0], boxes[0], places, kinds, targets)
        count, box, classes = int(answers.sum()), 0.0, 0.0
        for g, a in answers.nonzero().tolist():
            overlap = iou(boxes[0, a].double().numpy(), targets[g].double().numpy())
            box += 1 - overlap**2
            wanted = torch.zeros(3)
            wanted[kinds[g]] = overlap
            classes += functional.binary_cross_entropy_with_logits(output.logits[0, a], wanted, reduction="sum").item()
        here = torch.stack([answers.any(dim=0).float(), torch.zeros(126)])
        seen = (
            functional.binary_cross_entropy_with_logits(output.objectness, here, reduction="none").sum(dim=1).tolist()
        )
    assert count > 0
    assert output.loss.item() == pytest.approx((5 * box + classes + sum(seen)) / count, rel=1e-4)
    assert output.image_losses.tolist() == pytest.approx([(5 * box + classes + seen[0]) / count, seen[1] / 5], rel=1e-4)


def test_it_is_a_model_source_like_any_other(tmp_path: Path) -> None:
    check_is_a_source(AutoModelForObjectDetection, tiny(), tmp_path, batch(), "pred_boxes")
    check_scratch_follows_the_seed(AutoModelForObjectDetection, tiny(), tmp_path / "scratch")


def test_it_learns_and_recomputes_its_activations() -> None:
    torch.manual_seed(0)
    model = AutoModelForObjectDetection.from_config(tiny())
    head = {name for name, _ in model.named_parameters() if name.startswith("head.")}
    check_structure(model, 4, head)
    assert model(**batch()).objectness.sigmoid().mean() < 0.05
    check_checkpointing_changes_nothing(model, batch(labels=True))
    check_learns(model, batch(labels=True), steps=15)


def test_images_without_any_object_give_every_parameter_a_gradient() -> None:
    """Under ZeRO-3 all ranks reduce the same parameters in every step, whatever their images show."""
    model = AutoModelForObjectDetection.from_config(tiny()).train()
    empty = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    model(batch()["pixel_values"], labels=[empty, empty]).loss.backward()
    assert not [name for name, each in model.named_parameters() if each.grad is None or not each.grad.isfinite().all()]


def test_its_memory_can_be_counted_over_fake_tensors() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForObjectDetection.from_config(tiny()).train()
        label = {"class_labels": torch.zeros(2, dtype=torch.long), "boxes": torch.rand(2, 4)}
        model(torch.zeros(1, 3, 64, 64), labels=[label]).loss.backward()


def test_overlapping_boxes_of_one_class_are_one_object_in_pixels() -> None:
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.51, 0.5, 0.2, 0.4], [0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]]])
    logits = torch.tensor([[[9.0, -9], [8, -9], [-9, 9], [9, -9]]])
    output = YoloxOutput(logits=logits, objectness=torch.tensor([[4.0, 3, 3, -4]]), pred_boxes=boxes)
    [found] = YoloxForObjectDetection.post_process_object_detection(output, 0.5, [(100, 200)])
    assert found["labels"].tolist() == [0, 1]
    torch.testing.assert_close(found["boxes"][0], torch.tensor([80.0, 30, 120, 70]))
    assert found["scores"][0].item() == pytest.approx(1 / (1 + math.exp(-9)) / (1 + math.exp(-4)))
    [nothing] = YoloxForObjectDetection.post_process_object_detection(output, 0.9999)
    assert nothing["boxes"].shape == (0, 4)


def test_bad_values_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="depth is -1"):
        tiny(depth=-1)
    with pytest.raises(ValueError, match="leaves no channels"):
        tiny(width=0.01)
    model, given = AutoModelForObjectDetection.from_config(tiny()), batch(labels=True)
    with pytest.raises(ValueError, match=r"\[1, 3, 64, 60\].*multiples of 32"):
        model(torch.zeros(1, 3, 64, 60))
    with pytest.raises(ValueError, match="labels of 1 images for a batch of 2"):
        model(given["pixel_values"], labels=given["labels"][:1])
    given["labels"][0]["class_labels"] = torch.tensor([0, 3])
    with pytest.raises(ValueError, match="classes from 0 to 3; there are 3"):
        model(**given)
    given["labels"][0] = {"class_labels": torch.tensor([0]), "boxes": torch.zeros(2, 4)}
    with pytest.raises(ValueError, match=r"boxes \[2, 4\] and class_labels \[1\]"):
        model(**given)
