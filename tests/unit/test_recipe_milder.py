"""The order in which settings are made milder, and that every step leaves a recipe that can run."""

from __future__ import annotations

from recipe_cases import changed

from tlcore.recipe import plan_batch, recipe_from_dict
from tlcore.recipe.milder import milder, with_settings


def steps(**settings):
    return list(milder(recipe_from_dict(changed({key.replace("__", "."): value for key, value in settings.items()}))))


def test_order_is_micro_batch_then_activations_then_stages_then_offload():
    found = steps(train__global_batch_size=16, deepspeed__zero_stage=2, resources__workers=2)
    assert [list(changes.items())[-1] for changes in found[:3]] == [
        ("train.micro_batch_size", size) for size in (4, 2, 1)
    ]
    assert found[3] == {"train.micro_batch_size": 1, "train.activation_checkpointing": True}
    assert found[4] == {**found[3], "deepspeed.zero_stage": 3}
    assert found[5] == {**found[4], "deepspeed.offload_optimizer": "cpu"}
    assert found[6] == {**found[5], "deepspeed.offload_param": "cpu"}
    assert len(found) == 7


def test_the_global_batch_stays_and_accumulation_grows():
    recipe = recipe_from_dict(changed({"train.global_batch_size": 36, "resources.workers": 2}))
    sizes = []
    for changes in milder(recipe):
        plan = plan_batch(with_settings(recipe, changes), 2)
        assert plan.global_batch_size == 36 == 2 * plan.micro_batch_size * plan.accumulation_steps
        sizes.append(plan.micro_batch_size)
    assert sizes[:4] == [9, 3, 1, 1]  # of 18: each divides it, and is half of the one before at most


def test_from_stage_0_every_stage_comes_before_any_offload():
    """Offloads need a stage: each of these settings is a recipe that can run, for each optimizer."""
    for optimizer in ("adamw", "muon"):
        recipe = recipe_from_dict(changed({"train.optimizer": optimizer, "deepspeed.zero_stage": 0}))
        stages = [with_settings(recipe, changes).deepspeed for changes in milder(recipe)]
        assert sorted({each.zero_stage for each in stages}) == [0, 1, 2, 3]
        assert {each.zero_stage for each in stages if "cpu" in (each.offload_optimizer, each.offload_param)} == {3}


def test_nothing_is_left_at_the_end():
    last = steps(train__global_batch_size=4)[-1]
    assert steps(train__global_batch_size=4, **{key.replace(".", "__"): value for key, value in last.items()}) == []


def test_settings_are_laid_over_a_recipe_with_its_search():
    recipe = recipe_from_dict(
        changed({"search.space": {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}}, "search.trials": 3})
    )
    mild = with_settings(recipe, {"train.micro_batch_size": 1})
    assert (mild.train.micro_batch_size, mild.search) == (1, recipe.search)
