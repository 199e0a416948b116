"""Candidates ranked on the target data: a source that knows the classes comes first, a failed one last with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_tasks_text_generation import task_of
from tiny_text_model import save_tiny_bert, snippets, tiny_recipe, write_rows

from tests.families import images, speech
from tlcore.errors import DataError, RequestError
from tlcore.recipe import apply_point, recipe_from_dict
from tlcore.tasks import build_task
from tlcore.transfer.select import _features, _own_steps, drawn, rank_sources

pytestmark = pytest.mark.unit


@pytest.fixture
def recipe(tmp_path: Path):
    save_tiny_bert(tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", snippets(40))
    return tiny_recipe(tmp_path)


def test_each_source_is_scored_and_a_bad_one_says_why(recipe, tmp_path: Path) -> None:
    other = save_tiny_bert(tmp_path / "other", seed=9)
    sources = [recipe.model.source, str(other), str(tmp_path / "nothing")]
    told: list[str] = []
    found = rank_sources(recipe, [apply_point(recipe, {"model.source": each}) for each in sources], 1000, told.append)
    assert told == sources
    assert sorted(each.rank for each in found[:2]) == [1, 2]
    assert all(each.features == 16 and each.parameters > 0 for each in found[:2])
    assert found[2].source == sources[2] and "does not exist" in found[2].error
    assert found[2].rank is None


def test_data_that_no_source_could_use_are_no_fault_of_each(recipe, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        rank_sources(recipe, [recipe, recipe], 10)


def test_sorted_data_are_looked_at_all_over(recipe, tmp_path: Path) -> None:
    rows = sorted(snippets(40), key=lambda row: row["label"])
    write_rows(tmp_path / "train.jsonl", rows)
    (found,) = rank_sources(recipe, [recipe], 12)
    assert found.error == "" and found.probe is not None
    write_rows(tmp_path / "train.jsonl", [*rows[:19], rows[-1]])
    with pytest.raises(DataError, match=r"the 2 samples drawn from .*train.jsonl are all of one class"):
        rank_sources(recipe, [recipe], 2)


def test_the_samples_are_drawn_by_the_seed_and_read_in_order() -> None:
    first = drawn(1000, 100, 0)
    assert list(first) == sorted(set(first)) and len(first) == 100
    assert first.min() < 100 and first.max() > 900
    assert list(drawn(1000, 100, 0)) == list(first) != list(drawn(1000, 100, 1))
    assert list(drawn(5, 100, 0)) == list(range(5))


def test_pictures_are_not_varied(tmp_path: Path) -> None:
    made = images.MAKERS["vit/image-classification"](tmp_path)
    whole = {"name": "seen", "task": "image-classification", "storage": str(tmp_path / "store")}
    recipe = recipe_from_dict({**whole, "model": made["model"], "data": {**made["data"], "image_size": "auto"}})
    plain = apply_point(recipe, {"data.augment": False})
    assert recipe.data.augment
    assert rank_sources(recipe, [recipe], 8) == rank_sources(plain, [plain], 8)


def test_pictures_of_another_size_than_the_source_s_and_a_source_that_cannot_take_them(tmp_path: Path) -> None:
    import transformers

    made = images.MAKERS["vit/image-classification"](tmp_path)
    assert made["data"]["image_size"] != images.SIDE
    transformers.ViTModel(transformers.ViTConfig(**images.VIT, num_channels=1)).save_pretrained(tmp_path / "grey")
    processor = transformers.ViTImageProcessor(size={"height": images.SIDE, "width": images.SIDE})
    processor.save_pretrained(tmp_path / "grey")
    recipe = recipe_from_dict(
        {"name": "seen", "task": "image-classification", "storage": str(tmp_path / "s"), **_sections(made)}
    )
    sources = [str(tmp_path / "grey"), recipe.model.source]
    found = rank_sources(recipe, [apply_point(recipe, {"model.source": each}) for each in sources], 8)
    assert [(each.source, each.rank) for each in found] == [(sources[1], 1), (sources[0], None)]
    assert found[0].probe is not None
    assert "Error: " in found[1].error and "channel" in found[1].error


@pytest.mark.parametrize("masked", [True, False])
def test_padding_is_no_part_of_a_sound(tmp_path: Path, masked: bool) -> None:
    made = speech.audio_classification("Wav2Vec2Model", "Wav2Vec2Config")(tmp_path)
    speech.save_waveform_extractor(Path(made["model"]["source"]), masked)
    recipe = recipe_from_dict(
        {"name": "heard", "task": "audio-classification", "storage": str(tmp_path / "store"), **_sections(made)}
    )
    task: Any = build_task(recipe)
    task.load_data(("train",))
    model = task.build_model(from_scratch=False).float().eval()
    lengths = [int(each) for each in task.lengths("train")]
    shortest, longest = lengths.index(min(lengths)), lengths.index(max(lengths))
    beside = task.collate("train", [shortest, longest])
    steps = int(model._get_feat_extract_output_lengths(max(lengths)))
    own = _own_steps(model, beside, steps)
    assert own is not None
    assert own.sum(dim=1).tolist() == [
        model._get_feat_extract_output_lengths(lengths[at]) for at in (shortest, longest)
    ]
    if masked:  # without a mask, steps attend to the padding as in training, and only the mean leaves it out
        alone = _features(task, model, task.collate("train", [shortest]))[0]
        torch.testing.assert_close(
            torch.from_numpy(_features(task, model, beside)[0][:1]), torch.from_numpy(alone), rtol=1e-3, atol=1e-4
        )


def _sections(made: dict[str, Any]) -> dict[str, Any]:
    return {name: made[name] for name in ("model", "data")}


def test_a_task_without_one_class_per_sample_is_refused(tmp_path: Path) -> None:
    task = task_of(tmp_path, "gpt2/text-generation")
    with pytest.raises(RequestError, match="one class per sample, and this is text-generation"):
        rank_sources(task._recipe, [task._recipe], 10)  # type: ignore[attr-defined]
