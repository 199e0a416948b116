"""What a sweep says at its end: the table, the best recipe, the gain over scratch, predictions, the resume line."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

from rich.console import Console

from tlcore.report.rows import TrialRow
from tlcore.report.tables import best_lines, final_table, gain_line, prediction_lines, program, resume_line


def row(trial, strategy, by_rung, state="completed", **more):
    rung = max(by_rung) if by_rung else None
    point = {"train.learning_rate": 3.1e-4, "transfer.strategy": strategy}
    return TrialRow(
        trial, state, point, rung or 0.0, rung, metric=by_rung.get(rung), by_rung=by_rung, checkpoint_step=63, **more
    )


ROWS = [
    row("t000", "full", {0.25: 0.62, 0.5: 0.70, 1.0: 0.7812}, step=63, total_steps=63),
    row("t001", "scratch", {0.25: 0.51, 0.5: 0.50}, "stopped", step=32, total_steps=63),
    row("t002", "head", {0.25: 0.71}, "stopped", step=16, total_steps=63),
    TrialRow(
        "t003", "failed", {"transfer.strategy": "full"}, reason="OutOfMemory: rank 1 of 2\nhalve train.micro_batch_size"
    ),
]


def text_of(renderable, width=100):
    console = Console(file=io.StringIO(), width=width, height=40, color_system=None)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_final_table_is_sorted_by_metric_and_says_why_a_trial_failed():
    console = Console(file=io.StringIO(), width=100)
    assert text_of(final_table(ROWS, "eval_accuracy", "max", console)).splitlines() == [
        "trial  state      rung   step  accuracy  saved  lr      strategy",
        "t000*  completed  100%  63/63    0.7812     63  3.1e-4  full",
        "t002   stopped     25%  16/63    0.7100     63  3.1e-4  head",
        "t001   stopped     50%  32/63    0.5000     63  3.1e-4  scratch",
        "t003   failed        -      -         -      -  -       full",
        "t003 failed: OutOfMemory: rank 1 of 2",
        "  halve train.micro_batch_size",
    ]


def test_workers_stand_in_the_table_where_trials_differ_in_them():
    console = Console(file=io.StringIO(), width=100)
    same = [replace(one, workers=2) for one in ROWS[:3]]
    assert "workers" not in text_of(final_table(same, "eval_accuracy", "max", console))
    grown = [replace(ROWS[0], workers=4), *same[1:], ROWS[3]]
    assert text_of(final_table(grown, "eval_accuracy", "max", console)).splitlines()[:5] == [
        "trial  state      workers  rung   step  accuracy  saved  lr      strategy",
        "t000*  completed        4  100%  63/63    0.7812     63  3.1e-4  full",
        "t002   stopped          2   25%  16/63    0.7100     63  3.1e-4  head",
        "t001   stopped          2   50%  32/63    0.5000     63  3.1e-4  scratch",
        "t003   failed           -     -      -         -      -  -       full",
    ]


def test_final_table_without_a_single_result_marks_no_best():
    console = Console(file=io.StringIO(), width=100)
    assert "*" not in text_of(final_table(ROWS[3:], "eval_accuracy", "max", console))


def test_gain_compares_at_the_deepest_rung_both_kinds_reached():
    assert gain_line(ROWS[:3], "eval_accuracy", "max", "full") == (
        "transfer gained over scratch: +0.2000 eval_accuracy at 50% of the epochs "
        "(t000 0.7000, scratch t001 0.5000; best of 1 against best of 1)"
    )


def test_gain_says_out_loud_that_transfer_lost():
    rows = [row("t0", "full", {1.0: 0.48}), row("t1", "scratch", {1.0: 0.5}), row("t2", "scratch", {1.0: 0.4})]
    assert gain_line(rows, "eval_accuracy", "max", "full") == (
        "transfer LOST against scratch: -0.0200 eval_accuracy at 100% of the epochs "
        "(t0 0.4800, scratch t1 0.5000; best of 1 against best of 2)"
    )


def test_gain_is_positive_when_a_loss_gets_smaller():
    rows = [row("t0", "full", {1.0: 0.3}), row("t1", "scratch", {1.0: 0.7})]
    assert "gained over scratch: +0.4000 eval_loss" in gain_line(rows, "eval_loss", "min", "full")


def test_gain_reads_the_strategy_of_the_recipe_where_it_was_not_sampled():
    rows = [TrialRow("t0", "completed", {}, by_rung={1.0: 0.5}), row("t1", "full", {1.0: 0.6})]
    assert "scratch t0 0.5000" in gain_line(rows, "eval_accuracy", "max", "scratch")


def test_gain_is_unknown_without_scratch_without_transfer_and_without_a_common_rung():
    assert "no trial with transfer.strategy scratch reached a rung" in gain_line(
        [ROWS[0], ROWS[3]], "eval_accuracy", "max", "full"
    )
    assert "only trials from scratch" in gain_line([ROWS[1]], "eval_accuracy", "max", "full")
    apart = [row("t0", "full", {1.0: 0.6}), row("t1", "scratch", {0.25: 0.5})]
    assert "no rung was reached both" in gain_line(apart, "eval_accuracy", "max", "full")


def test_best_lines_name_every_difference():
    difference = {"train.learning_rate": (5.0e-5, 3.1e-4), "transfer.strategy": ("full", "head")}
    assert best_lines(ROWS[0], "eval_accuracy", difference) == [
        "best trial t000: eval_accuracy 0.7812 at 100% of its epochs; its recipe differs in",
        "  train.learning_rate  3.1e-4  (recipe: 5e-5)",
        "  transfer.strategy    head  (recipe: full)",
    ]
    assert best_lines(ROWS[0], "eval_accuracy", {})[0].endswith("its recipe is the one given, unchanged")


def test_predictions_are_one_short_line_each():
    found = prediction_lines(
        [{"text": "a fine\nfilm " * 20, "label": "positive", "score": 0.98765, "scores": {"positive": 0.98765}}]
    )
    assert prediction_lines([{"input": "dull", "label": "negative", "score": 0.9, "expected": "positive"}]) == [
        "'dull' -> negative 0.900 (expected positive)"
    ]
    assert len(found) == 1
    assert found[0].endswith(" -> positive 0.988")
    assert "\n" not in found[0]
    assert len(found[0]) < 110


def test_resume_line_repeats_the_command_once_with_resume():
    for words in (["sweep", "my recipe.yaml", "--resume"], ["sweep", "my recipe.yaml"]):
        assert resume_line(words).endswith("tlcore sweep 'my recipe.yaml' --resume")


def test_resume_line_names_a_program_that_exists(monkeypatch, tmp_path):
    script, python = tmp_path / "bin" / "tlcore", tmp_path / "bin" / "python"
    script.parent.mkdir()
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert program() == ["bin/python", "-m", "tlcore"]
    script.touch()
    assert program() == ["bin/tlcore"]
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    assert program() == ["tlcore"]


def test_final_table_says_what_a_trial_was_adapted_to():
    adapted = [*ROWS, row("t004", "full", {1.0: 0.7}, adapted={"train.micro_batch_size": 4, "deepspeed.zero_stage": 3})]
    console = Console(file=io.StringIO(), width=100)
    assert text_of(final_table(adapted, "eval_accuracy", "max", console)).splitlines()[-1] == (
        "t004 ran out of memory; it goes with train.micro_batch_size 4, deepspeed.zero_stage 3"
    )
