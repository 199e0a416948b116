"""Verdicts on points, what becomes of a suggestion, and the journal of both."""

from __future__ import annotations

import pytest
from recipe_cases import changed

from tlcore.errors import ModelError, RequestError
from tlcore.recipe import apply_point, plan_batch, recipe_from_dict
from tlcore.storage.journal import SweepState
from tlcore.sweep.cluster.estimates import _without_search, counting_files, what_matters
from tlcore.sweep.cluster.fit import FitCheck, admission, compare, in_settings, refuse, worker_room
from tlcore.sweep.cluster.gpus import gpu_memories, smallest
from tlcore.sweep.cluster.resources import Node, Shape
from tlcore.sweep.planning import distinct_points, this_machine
from tlcore.sweep.search.optuna_search import OptunaSearcher

pytestmark = pytest.mark.unit

GB = 10**9
NODE = Node({"CPU": 4.0, "memory": 8.0 * GB}, {})
MICRO = "train.micro_batch_size"


def recipe(**settings):
    space = {"train.global_batch_size": {"choice": [8, 64]}, "train.learning_rate": {"loguniform": [1e-5, 1e-3]}}
    base = {"resources.workers": 2, "search.space": space, "search.trials": 6}
    return recipe_from_dict(changed({**base, **{key.replace("__", "."): value for key, value in settings.items()}}))


def needs(recipe, on_gpu):
    """A quarter of a GB for each sample of a micro-batch, and half as much from stage 3 on."""
    size = plan_batch(recipe, recipe.resources.workers).micro_batch_size * GB / 4
    size = size / 2 if recipe.deepspeed.zero_stage == 3 else size
    return {"device_bytes": size if on_gpu else 0, "host_bytes": GB if on_gpu else size}


def check(recipe, nodes=(NODE,), estimate=needs, gpus=False):
    return FitCheck(recipe, nodes, gpus, estimate)


def gpu_node(kind, gpu_gb, host_gb, gpus=1.0):
    size = None if gpu_gb is None else gpu_gb * GB
    return Node(
        {"CPU": 4.0, "GPU": gpus, "memory": host_gb * GB, f"accelerator_type:{kind}": 1.0},
        {"kind": kind},
        gpu_bytes=size,
    )


def test_a_nodes_memory_is_shared_by_the_workers_that_can_sit_there():
    shape = Shape(2, 1.0, 0.0, "pack")
    assert worker_room(shape, [NODE], most=100).host_bytes == 2 * GB
    assert worker_room(Shape(2, 2.0, 0.0, "pack"), [NODE], most=100).host_bytes == 4 * GB
    assert worker_room(shape, [NODE], most=2).host_bytes == 4 * GB
    tighter = Node({"CPU": 8.0, "memory": 8.0 * GB}, {})
    assert worker_room(shape, [NODE, tighter], most=100).host_bytes == GB
    assert worker_room(Shape(2, 1.0, 0.5, "pack"), [gpu_node("A100", 80, 1)], 9).device_bytes == 40 * GB


def test_memory_is_that_of_the_nodes_with_the_accelerator_asked_for():
    nodes = [gpu_node("T4", 16, 8), gpu_node("A100", 80, 64), gpu_node("A100", 40, 96)]
    room = worker_room(Shape(1, 1.0, 1.0, "pack", accelerator="A100"), nodes, most=1)
    assert (room.host_bytes, room.device_bytes) == (64 * GB, 40 * GB)
    room = worker_room(Shape(1, 1.0, 1.0, "pack"), nodes, most=1)
    assert (room.host_bytes, room.device_bytes) == (8 * GB, 16 * GB)
    asked = recipe(resources__workers=1, resources__gpus_per_worker=1, resources__accelerator="A100")
    large = check(asked, nodes, lambda *_: {"device_bytes": 20 * GB, "host_bytes": GB}, gpus=True)
    assert large.verdict({"train.global_batch_size": 8}).fits is True


@pytest.mark.parametrize(
    ("selector", "host_gb"),
    [("slow", 8), ("!slow", 32), ("in(fast, new)", 32), ("!in(slow, fast)", 64), ("none", None)],
)
def test_memory_is_that_of_the_nodes_with_the_labels_asked_for(selector, host_gb):
    sizes = {"slow": 8, "fast": 32, "new": 64}
    nodes = [Node({"CPU": 4.0, "memory": size * GB}, {"disk": disk}) for disk, size in sizes.items()]
    room = worker_room(Shape(1, 1.0, 0.0, "pack", (("disk", selector),)), nodes, most=1)
    assert room.host_bytes == (None if host_gb is None else host_gb * GB)


def test_one_usable_node_that_does_not_tell_its_gpus_makes_their_memory_unknown():
    shape = Shape(1, 1.0, 1.0, "pack", accelerator="A100")
    dark = [gpu_node("A100", 80, 8), gpu_node("A100", None, 8)]
    assert worker_room(shape, dark, most=1).device_bytes is None
    elsewhere = [gpu_node("A100", 80, 8), gpu_node("T4", None, 8), Node({"CPU": 4.0, "memory": 8.0 * GB}, {})]
    assert worker_room(shape, elsewhere, most=1).device_bytes == 80 * GB


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("81559\n16384\n", [81559 << 20, 16384 << 20]),
        ("[N/A]\n", [None]),
        ("81559\n[Not Supported]\n", [81559 << 20, None]),
        ("", []),
    ],
)
def test_a_gpu_that_has_no_memory_of_its_own_to_tell_of_is_unknown(tmp_path, monkeypatch, said, found):
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpu_memories() == found
    [node] = this_machine().nodes
    assert (node.resources["GPU"], node.gpu_bytes) == (len(found), smallest(found))
    assert node.gpu_bytes == (min(found) if found and None not in found else None)


def test_a_point_that_fits():
    verdict = check(recipe()).verdict({"train.global_batch_size": 8})
    assert (verdict.fits, verdict.reason, verdict.changes) == (True, "", None)


def test_the_first_milder_settings_that_fit_are_named():
    verdict = check(recipe()).verdict({"train.global_batch_size": 64})
    assert verdict.fits is False
    assert verdict.reason == (
        "a worker needs 8.00 GB of memory and has 2.00 GB (a node's `memory` in Ray, shared by its workers)"
    )
    assert verdict.changes == {MICRO: 8}
    assert in_settings(verdict.changes) == "train.micro_batch_size=8"


def test_nothing_milder_fits():
    tiny = Node({"CPU": 4.0, "memory": 1000.0}, {})
    verdict = check(recipe(), [tiny]).verdict({"train.global_batch_size": 64})
    assert (verdict.fits, verdict.changes) == (False, None)


@pytest.mark.parametrize(
    ("nodes", "estimate", "reason"),
    [
        (
            [Node({"CPU": 4.0}, {})],
            needs,
            "memory of a worker is unknown (a node tells Ray no `memory`), 1.00 GB needed",
        ),
        ([NODE], lambda *_: {"unknown": "an op"}, "the memory that it needs is unknown: an op"),
    ],
)
def test_the_unknown_is_said_and_never_fits_silently(nodes, estimate, reason):
    verdict = check(recipe(), nodes, estimate).verdict({"train.global_batch_size": 8})
    assert (verdict.fits, verdict.reason) == (None, reason)


def test_gpu_memory_of_nobody_knows_what_size_is_unknown():
    asked = recipe(resources__gpus_per_worker=1)
    for gpu_gb, fits in ((None, None), (2.0, True), (0.9, False)):
        checked = check(asked, [gpu_node("A100", gpu_gb, 64, gpus=4.0)], gpus=True)
        assert checked.verdict({"train.global_batch_size": 8}).fits is fits


def test_what_can_never_be_placed_does_not_fit():
    verdict = check(recipe(resources__workers=8)).verdict({"train.global_batch_size": 8})
    assert verdict.fits is False
    assert "can never place it" in verdict.reason


def test_a_batch_that_does_not_divide_does_not_fit():
    verdict = check(recipe()).verdict({"train.global_batch_size": 7})
    assert verdict.fits is False
    assert "does not divide" in verdict.reason


def test_points_that_differ_in_nothing_that_matters_are_estimated_once():
    asked = []

    def counting(recipe, on_gpu):
        asked.append(recipe)
        return needs(recipe, on_gpu)

    checked = check(recipe(), estimate=counting)
    for rate in (1e-5, 2e-5, 1e-3):
        checked.verdict({"train.global_batch_size": 8, "train.learning_rate": rate})
    assert len(asked) == 1


@pytest.mark.parametrize(("error", "fits"), [(ModelError("no tokenizer"), None), (RequestError("has 6 blocks"), False)])
def test_a_recipe_that_its_model_refuses_does_not_fit_and_an_unreadable_model_is_unknown(error, fits):
    def broken(recipe, on_gpu):
        raise error

    verdict = check(recipe(), estimate=broken).verdict({"train.global_batch_size": 8})
    assert verdict.fits is fits
    assert error.message in verdict.reason


def admitted(policy, size, nodes=(NODE,)):
    mine = recipe(failures__on_infeasible=policy)
    return admission(mine, check(mine, nodes))({"train.global_batch_size": size})


def test_repair_lays_the_milder_settings_over_the_point():
    found = admitted("repair", 64)
    assert found.point == {"train.global_batch_size": 64, MICRO: 8}
    assert found.repaired == {MICRO: ["auto", 8]}
    assert found.failure is None


@pytest.mark.parametrize("policy", ["refuse", "drop"])
def test_otherwise_it_does_not_run_and_the_reason_says_what_would(policy):
    found = admitted(policy, 64)
    assert found.point == {"train.global_batch_size": 64}
    assert found.failure is not None
    assert found.failure["message"].startswith("not run: a worker needs 8.00 GB")
    assert found.failure["hint"] == "it would fit with train.micro_batch_size=8"


def test_what_cannot_be_repaired_does_not_run():
    assert admitted("repair", 64, [Node({"CPU": 4.0, "memory": 1000.0}, {})]).failure is not None


@pytest.mark.parametrize("policy", ["refuse", "drop", "repair"])
def test_what_fits_is_left_alone(policy):
    assert admitted(policy, 8).point == {"train.global_batch_size": 8}


def test_a_repaired_point_needs_no_repair():
    mine = recipe(failures__on_infeasible="repair")
    admit = admission(mine, check(mine))
    once = admit({"train.global_batch_size": 64})
    assert admit(once.point).point == once.point


def test_the_refusal_names_points_and_fixes():
    checked = check(recipe())
    bad = [(point, checked.verdict(point)) for point in ({"train.global_batch_size": 64, "train.learning_rate": 0.1},)]
    error = refuse(bad, 6)
    assert error.exit_code == 2
    assert "1 of 6 points" in error.message
    assert "train.global_batch_size=64: a worker needs 8.00 GB" in error.message
    assert "would fit with train.micro_batch_size=8" in error.message
    assert "learning_rate" not in error.message
    assert "failures.on_infeasible" in error.hint


def test_compare_names_both_memories():
    room = worker_room(Shape(1, 1.0, 1.0, "pack"), [gpu_node("A100", 1, 1)], 1)
    fits, reason = compare({"device_bytes": 2 * GB, "host_bytes": 3 * GB}, room)
    assert fits is False
    assert "2.00 GB of GPU memory and has 1.00 GB" in reason
    assert "3.00 GB of memory and has 1.00 GB" in reason


def dropped(trial):
    return {
        "kind": "dropped",
        "trial": trial,
        "point": {"train.global_batch_size": 64, "train.learning_rate": 1e-4},
        "of": 6,
        "error": "CannotFit",
        "message": "not run: too large",
        "hint": "",
    }


def test_a_dropped_trial_has_ended_and_says_why():
    state = SweepState.from_entries([dropped("t000"), {"kind": "unknown", "trial": None, "reasons": ["x"]}])
    trial = state.trials["t000"]
    assert (trial.status, trial.ended, trial.reason) == ("failed", True, "not run: too large")
    assert trial.failure is not None
    assert state.unfinished() == []


def test_a_repair_is_in_the_state():
    entry = {"kind": "suggested", "trial": "t000", "point": {MICRO: 8}, "of": 1, "repaired": {MICRO: ["auto", 8]}}
    assert SweepState.from_entries([entry]).trials["t000"].repaired == {MICRO: ["auto", 8]}


def test_optuna_is_told_of_a_dropped_point_as_failed():
    searcher = OptunaSearcher(recipe(search__algorithm="optuna"))
    searcher.observe(dropped("t000"))
    told = searcher._study(1).get_trials(deepcopy=False)
    assert [trial.state.name for trial in told] == ["FAIL"]
    assert searcher.suggest(1)


def test_kinds_of_points_leave_out_what_does_not_matter():
    kinds = distinct_points(recipe(search__trials=50))
    assert {point["train.global_batch_size"] for point, _ in kinds} == {8, 64}
    assert len(kinds) == 2
    assert sum(trials for _, trials in kinds) == 50


@pytest.mark.parametrize("scheduler", [{"pbt": {}}, {"asha": {"workers": [2, 4, 4]}}, {"hyperband": {}}])
def test_what_is_asked_about_a_trial_can_be_read_whatever_its_sweep_searches(scheduler):
    """A trial's recipe has an empty space, for which alone a population scheduler would be refused."""
    whole = recipe(search__scheduler=scheduler)
    asked = recipe_from_dict(_without_search(apply_point(whole, {"train.learning_rate": 5e-4})))
    assert asked.train.learning_rate == 5e-4


@pytest.mark.parametrize("task", ["translation", "question-answering", "object-detection", "speech-recognition"])
def test_what_is_asked_about_a_trial_has_a_metric_of_its_task(task):
    """None of these reports accuracy, the metric of a recipe that says nothing."""
    whole = recipe_from_dict(
        {"name": "r", "task": task, "model": {"source": "m"}, "data": {"train": "d"}, "storage": "runs"}
    )
    assert recipe_from_dict(_without_search(whole)).search.metric == whole.search.metric != "eval_accuracy"
    both = recipe(search__metric=["eval_f1", "eval_loss"], search__mode=["max", "min"])
    assert recipe_from_dict(_without_search(both)).search.metrics == ("eval_f1", "eval_loss")


def test_settings_that_change_no_shape_share_a_verdict():
    gradual = {"strategy": "gradual", "schedule": 0.5, "decay": 0.9}
    one = what_matters(recipe(transfer=gradual))
    assert one == what_matters(recipe(transfer={**gradual, "decay": 0.8, "schedule": 0.7}))
    assert one != what_matters(recipe(transfer={**gradual, "schedule": [0.5]})), "fewer blocks ever train"
    assert one != what_matters(recipe(transfer={"strategy": "layerwise", "decay": 0.9}))


def test_an_estimate_depends_on_the_code_in_rooms_within_rooms(tmp_path):
    names = ["models/build.py", "models/families/own.py", "train/inputs.py", "report/live.py"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert counting_files(tmp_path) == [tmp_path / name for name in names[:3]]


def growing(*workers, **settings):
    asha = {"asha": {"workers": list(workers)}}
    return recipe(resources__workers=workers[0], search__scheduler=asha, failures__on_infeasible="repair", **settings)


def verdicts(mine, point, nodes):
    """What becomes of a point, and the verdict on what it was repaired to."""
    checked = check(mine, nodes)
    found = admission(mine, checked)(point)
    return found, checked.verdict(found.point)


@pytest.mark.parametrize(
    ("memory_gb", "repaired"), [(32, {MICRO: 8}), (1.6, {MICRO: 1, "deepspeed.zero_stage": 3})], ids=["divides", "fits"]
)
def test_a_point_is_repaired_for_every_number_of_workers_that_its_trial_has(memory_gb, repaired):
    """At one worker a micro-batch of 16, or of 1, would do; eight workers have 8 samples each, and less of the node's memory."""
    node = Node({"CPU": 8.0, "memory": memory_gb * GB}, {})
    found, after = verdicts(growing(1, 2, 8), {"train.global_batch_size": 64}, [node])
    assert found.failure is None
    assert after.fits is True
    assert found.point.items() >= repaired.items()


def test_what_cannot_be_placed_on_its_way_is_said_before_what_could_be_repaired():
    found, _ = verdicts(growing(2, 4, 8), {"train.global_batch_size": 64}, [NODE])
    assert found.failure is not None
    assert "can never place it" in found.failure["message"]
    assert found.failure["hint"] == ""
