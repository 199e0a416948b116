"""The step benches' accounting: which families, with how many samples, and what is said of their blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.bench import step, step_all, step_blocks
from jobs.bench.step_families import FAMILIES, Family
from tlcore.tasks.families import FAMILIES as KNOWN

pytestmark = pytest.mark.unit


def blocks(*seconds: float) -> list[dict[str, float]]:
    return [{"seconds": each, "steps": 2, "tokens": 8, "cpu_s": each} for each in seconds]


def test_every_family_is_one_of_the_products() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert set(names) <= {known.name for known in KNOWN}
    own = {known.name for known in KNOWN if known.source == "tlcore"}
    assert {family.name for family in FAMILIES if not family.trainer} == own & set(names)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("vit/image-classification", ["vit/image-classification"]),
        ("whisper, vit", ["vit/image-classification", "whisper/speech-recognition"]),
        ("bert", ["bert/text-classification", "bert/masked-language-modeling"]),
    ],
)
def test_families_are_chosen_by_whole_or_by_first_name(wanted: str, names: list[str]) -> None:
    assert [family.name for family in step_all.choose(wanted)] == names


def test_without_a_choice_all_are_timed() -> None:
    assert step_all.choose(None) == list(FAMILIES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--all", "--families", "bert,nothing"], "no family is named 'nothing'; there are bert/"),
        (["--families", "bert"], "goes with --all"),
        (["--all", "--rounds", "1"], "at least two"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        step.parse(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "size"),
    [([], (8, 6)), (["--all"], (6, 3)), (["--all", "--quick"], (2, 2)), (["--all", "--quick", "--steps", "5"], (2, 5))],
)
def test_how_much_is_measured(arguments: list[str], size: tuple[int, int]) -> None:
    chosen = step.parse(arguments)
    assert (chosen.rounds, chosen.steps) == size


def test_a_family_is_told_by_its_ratios_and_their_intervals() -> None:
    answers = {"tlcore": blocks(1.0, 1.0), "bare": blocks(2.0, 2.0), "trainer": blocks(1.0, 4.0)}
    said = step_all.figures(answers)
    assert said["ratio_bare"] == 2.0 and said["ratio_bare_interval"] == [2.0, 2.0]
    assert said["ratio_hf"] == 2.0 and said["ratio_hf_interval"][0] < 2.0 < said["ratio_hf_interval"][1]
    assert said["step_s"] == {"tlcore": 0.5, "bare": 1.0, "trainer": 1.25}
    assert said["blocks"] == 2


def test_a_family_without_trainer_has_no_ratio_to_it() -> None:
    said = step_all.figures({"tlcore": blocks(1.0, 1.0), "bare": blocks(2.0, 2.0)})
    assert "ratio_bare" in said and not any("hf" in key for key in said)


def test_over_all_the_lowest_upper_end_counts() -> None:
    families = {
        "one": {"ratio_bare_interval": [0.9, 1.2], "ratio_hf_interval": [1.0, 1.1]},
        "two": {"ratio_bare_interval": [0.95, 0.97]},
    }
    said = step_all.lowest(families)
    assert (said["min_ratio_bare"], said["min_ratio_bare_family"], said["min_ratio_bare_target"]) == (0.97, "two", 0.98)
    assert (said["min_ratio_hf"], said["min_ratio_hf_family"], said["min_ratio_hf_target"]) == (1.1, "one", 1.0)
    assert step_all.lowest({"two": families["two"]})["min_ratio_hf"] is None


@pytest.mark.parametrize("batch", [4, 8, 16])
def test_one_epoch_has_samples_for_every_step(tmp_path: Path, batch: int) -> None:
    asked: list[int] = []

    def make(home: Path, samples: int) -> dict[str, object]:
        asked.append(samples)
        return {"model": {"source": "none"}, "data": {"train": "none"}}

    recipe = step_all.recipe(Family("bert/text-classification", make, batch), tmp_path, 1, 21)
    assert asked[0] * 0.9 - 1 >= 21 * batch
    assert recipe["train"]["global_batch_size"] == batch and recipe["resources"]["workers"] == 1


def test_samples_have_a_text_a_class_and_a_target(tmp_path: Path) -> None:
    step_blocks.write_samples(tmp_path / "rows.jsonl", 9)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [0, 1] * 4 + [0]
    assert all(5 <= len(row["text"].split()) <= 60 and 5 <= len(row["target"].split()) <= 20 for row in rows)


@pytest.mark.parametrize("ranks", [1, 2])
def test_loops_of_a_world_size_share_the_same_threads(ranks: int) -> None:
    loops = step.loops(ranks)
    assert {loop.ranks * loop.threads for loop in loops} == {step.THREADS}
    assert {loop.name for loop in loops} == {"tlcore", *step_blocks.RATIOS}
