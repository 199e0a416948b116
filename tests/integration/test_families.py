"""Every family that says it works: loss falls, ZeRO 1, 2 and 3 agree with plain torch, restores are bit-exact, exports load."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_server import start

from tests.families import backbones, images, own, speech, text
from tlcore.recipe.task_table import TASK_TABLE
from tlcore.tasks.families import FAMILIES

pytestmark = pytest.mark.integration

MODALITIES = {
    "text": text.MAKERS,
    "image": images.MAKERS,
    "backbone": backbones.MAKERS,
    "speech": speech.MAKERS,
    "own": own.MAKERS,
}
MAKERS = {name: maker for makers in MODALITIES.values() for name, maker in makers.items()}
WORKING = [family.name for family in FAMILIES if not family.lacks]
LONG = {
    "torchvision-vgg/image-classification",
    *("roberta/text-classification", "distilbert/text-classification", "bart/summarization", "llama/text-generation"),
    *("convnext/image-classification", "swin/image-classification", "efficientnet/image-classification"),
    *("torchvision-resnet/image-classification", "torchvision-efficientnet/image-classification"),
    *("llava/image-text-to-text", "yolos/object-detection", "whisper/speech-translation"),
    *("hubert/audio-classification", "wav2vec2/speech-recognition"),
    *(set(backbones.MAKERS) - {"efficientnet-lite/object-detection", "torchvision-mobilenet_v2/image-segmentation"}),
}
"""What has no small form (VGG: 129 million parameters), and those that go the same way as another one that stays in `make test`."""


class Results:
    """What two ranks found for each family that this session of tests chose: one launch for a modality, when first asked for."""

    def __init__(self, home: Path, chosen: list[str]) -> None:
        self._home, self._chosen, self._found = home, chosen, dict[str, dict[str, Any]]()

    def of(self, name: str) -> Any:
        modality = next(key for key, makers in MODALITIES.items() if name in makers)
        if modality not in self._found:
            self._found[modality] = {}
            names = [each for each in self._chosen if each in MODALITIES[modality]]
            groups = [{"world": 2, "cases": cases(names, self._home)}]
            [done] = start("ranks_families", groups, self._home / f"ranks-{modality}", timeout_s=3600)
            self._found[modality] = {each["name"]: each for each in done}
        assert name in self._found[modality], f"the launch of the {modality} families failed before"
        return self._found[modality][name]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    chosen = [item.callspec.params["name"] for item in request.session.items if is_proof(item)]  # type: ignore[attr-defined]
    return Results(tmp_path_factory.mktemp("families"), chosen)


def is_proof(item: pytest.Item) -> bool:
    return item.name.startswith("test_the_family_works[") and Path(item.path) == Path(__file__)


def cases(names: list[str], home: Path) -> list[dict[str, Any]]:
    made = []
    for name in names:
        place = home / name.replace("/", "-")
        place.mkdir()
        task = name.partition("/")[2]
        made.append({"name": name, "task": task, "storage": f"file://{home}/store", "sections": MAKERS[name](place)})
    return made


def test_what_says_that_it_works_is_what_is_tried_here() -> None:
    assert sorted(MAKERS) == sorted(WORKING)
    assert set(WORKING) >= LONG


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in WORKING]
)
def test_the_family_works(results: Results, name: str) -> None:
    found = results.of(name)
    plain = found["plain"]
    third = len(plain) // 3
    assert np.mean(plain[-third:]) < 0.95 * np.mean(plain[:third]), "the loss does not fall"
    for stage in (1, 2, 3):
        sharded = found[f"stage{stage}"]
        np.testing.assert_allclose(sharded["whole"], plain, rtol=5e-3, err_msg=f"ZeRO {stage} and plain torch")
        expected = TASK_TABLE[name.partition("/")[2]].metrics
        assert set(expected) <= set(sharded["metrics"]), "every metric that the recipe may name is reported"
        assert all(math.isfinite(value) for value in sharded["metrics"].values())
    whole, half = found["halved"]
    assert half == pytest.approx(whole, rel=0.1, abs=0.05), "bf16"
    restored = found["restored"]
    assert restored["losses"] == found["stage3"]["whole"][len(plain) // 2 :], "restored in the middle"
    assert restored["metrics"] == found["stage3"]["metrics"]
    assert found["losses"][0] == found["losses"][1], "the export and the trained model differ"
    assert found["weights_equal"]
    assert found["answers"]
    assert alike(restored["answers"], found["answers"]), "the ranks of ZeRO 3 answer as the whole model does"


def alike(one: Any, other: Any) -> bool:
    """Equal, but for what adding up in another order does to figures."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == (pytest.approx(other, rel=1e-2, abs=1e-3) if isinstance(one, float) else other))
