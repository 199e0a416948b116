"""A trial that takes over another one's state goes on at the donor's step, sample and weights, whatever of its settings differs."""

from __future__ import annotations

from collections import Counter

import pytest
from rank_server import start

from tests.small_model import make_small_bert

pytestmark = pytest.mark.integration


def settings(stage=2, **train):
    return {"deepspeed": {"zero_stage": stage}, "train": {"global_batch_size": 24, **train}}


def last_n(n, stage):
    return settings(stage) | {"transfer": {"strategy": "last_n", "n": n}}


SMALLER = {"global_batch_size": 16, "weight_decay": 0.1}
CASES = [
    {"name": "batch", "donor": last_n(1, 2), "receiver": last_n(2, 2) | {"train": SMALLER}},
    {"name": "freeze-3", "donor": last_n(2, 3), "receiver": last_n(1, 3)},
]
LONG = [
    {"name": "thaw-3", "donor": last_n(1, 3), "receiver": last_n(2, 3)},
    {"name": "thaw-0", "donor": last_n(1, 0), "receiver": last_n(2, 0)},
    {"name": "across", "donor": last_n(1, 3), "receiver": last_n(2, 1) | {"train": SMALLER}},
]
NAMES = [case["name"] for case in CASES] + [pytest.param(case["name"], marks=pytest.mark.long) for case in LONG]


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """The cases that this session's tests ask for, in one launch."""
    directory = tmp_path_factory.mktemp("takeover")
    model, storage = str(make_small_bert(directory / "model")), f"file://{directory}/store"
    asked = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    cases = [{**case, "model": model, "storage": storage} for case in CASES + LONG if case["name"] in asked]
    (found,) = start("ranks_takeover", [{"world": 2, "cases": cases}], directory / "ranks")
    return {one["name"]: one for one in found}


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_with_the_donors_weights_at_the_donors_step(results, name):
    step, metrics = results[name]["donor"]
    assert results[name]["begins"][0] == step
    assert results[name]["begins"][1] == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_of_every_epoch_is_taken_once_by_donor_and_receiver_together(results, name):
    found = results[name]
    taken = Counter(sample for rank in found["taken"] for sample in rank)
    assert taken == dict.fromkeys(range(found["samples"]), 2)  # two epochs


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_from_its_own_checkpoints_afterwards_and_ends_at_its_last_step(results, name):
    saved, resumed = results[name]["resumed"]
    assert saved == resumed
    step, total, loss = results[name]["last"]
    assert step == total
    assert loss < 2.0


@pytest.mark.parametrize("name", ["batch"])
def test_after_a_smaller_batch_more_steps_are_left(results, name):
    assert (results[name]["donor"][0], results[name]["last"][1]) == (6, 17)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "freeze-3"])
def test_what_was_frozen_begins_with_fresh_optimizer_state(results, name):
    assert results[name]["begins"][2] == {"exp_avg": False, "exp_avg_sq": False}


@pytest.mark.parametrize("name", ["freeze-3"])
def test_what_is_frozen_now_has_no_optimizer_state(results, name):
    assert results[name]["begins"][2] == {}
