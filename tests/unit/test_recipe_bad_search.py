"""Bad search spaces and the exact message that each one gets."""

from __future__ import annotations

import pytest
from recipe_cases import BATCH, LR, STRATEGIES, STRATEGY, assert_faults, changed, space

from tlcore.recipe import recipe_from_dict

pytestmark = pytest.mark.unit

CASES = {
    "key that names nothing": (
        space(train__learning_rte={"uniform": [0.1, 1]}),
        ["search.space.train.learning_rte: names no setting of a recipe; did you mean train.learning_rate?"],
    ),
    "key without its section": (
        space(zero_stage={"choice": [1, 2]}),
        ["search.space.zero_stage: names no setting of a recipe; did you mean deepspeed.zero_stage?"],
    ),
    "training data of which a part is held out": (
        space(data__train={"choice": ["reviews.csv", "more.csv"]}),
        [
            "search.space.data.train: cannot be searched, data.validation=0.1 of it is held out, so that trials are measured on "
            "different examples: give data.validation a place of its own, or take it out"
        ],
    ),
    "how much evaluations hide": (
        {"task": "masked-language-modeling", **space(data__mask_probability={"uniform": [0.1, 0.4]})},
        [
            "search.space.data.mask_probability: cannot be searched, evaluations hide as much, so that trials would be measured "
            "on different tasks; take it out"
        ],
    ),
    "where evaluated texts are cut": (
        {"task": "text-generation", **space(data__max_length={"choice": [128, 256]})},
        [
            "search.space.data.max_length: cannot be searched, evaluated texts are cut by it too, so that trials are measured on "
            "different tokens; take it out"
        ],
    ),
    "key of a section": (
        space(train={"choice": [1]}),
        ["search.space.train: names a section; name one of its settings, such as train.epochs"],
    ),
    "name": (
        space(name={"choice": ["a", "b"]}),
        ["search.space.name: cannot be searched, it names the whole sweep; take it out"],
    ),
    "storage": (
        space(storage={"choice": ["a", "b"]}),
        ["search.space.storage: cannot be searched, all trials of a sweep share one place; take it out"],
    ),
    "test examples": (
        space(data__test={"choice": ["a", "b"]}),
        ["search.space.data.test: cannot be searched, the test examples are for the final figures alone; take it out"],
    ),
    "the search itself": (
        space(search__trials={"choice": [1]}),
        ["search.space.search.trials: cannot be searched, it is the search itself; take it out"],
    ),
    "bare list": (
        {"search.space": {LR: [0.1, 1]}},
        [
            "search.space.train.learning_rate: got [0.1, 1]; "
            "give a section with keys choice, uniform, loguniform, quniform, randint, grid, when"
        ],
    ),
    "no domain": (
        {"search.space": {LR: {}}},
        [
            "search.space.train.learning_rate: gives no domain; "
            "give exactly one of choice, uniform, loguniform, quniform, randint, grid"
        ],
    ),
    "two domains": (
        {"search.space": {LR: {"choice": [1], "uniform": [1, 2]}}},
        [
            "search.space.train.learning_rate: gives choice and uniform; "
            "give exactly one of choice, uniform, loguniform, quniform, randint, grid"
        ],
    ),
    "range of one": (
        {"search.space": {LR: {"uniform": [1]}}},
        ["search.space.train.learning_rate.uniform: got [1]; give a list of 2 numbers"],
    ),
    "upside down": (
        {"search.space": {LR: {"uniform": [1, 0.1]}}},
        ["search.space.train.learning_rate: uniform from 1 to 0.1 is empty; the first must be below the second"],
    ),
    "logarithm of zero": (
        {"search.space": {LR: {"loguniform": [0, 1]}}},
        ["search.space.train.learning_rate: loguniform from 0 has no logarithm; start above 0, or use uniform"],
    ),
    "step of zero": (
        {"search.space": {LR: {"quniform": [0.1, 1, 0]}}},
        ["search.space.train.learning_rate: quniform step 0 must be above 0"],
    ),
    "no multiple": (
        {"search.space": {LR: {"quniform": [0.1, 0.4, 0.5]}}},
        [
            "search.space.train.learning_rate: quniform has no multiple of 0.5 between 0.1 and 0.4; "
            "widen the range or make the step smaller"
        ],
    ),
    "no values": (
        {"search.space": {LR: {"choice": []}}},
        ["search.space.train.learning_rate.choice: got []; give a list of one or more values"],
    ),
    "a value twice": (
        {"search.space": {LR: {"choice": [1, 1.0]}}},
        ["search.space.train.learning_rate: choice gives 1.0 twice; keep one"],
    ),
    "a choice of the wrong type": (
        {"search.space": {LR: {"choice": [0.1, "fast"]}}},
        ["search.space.train.learning_rate: can give 'fast', which cannot be used: got 'fast'; give a number above 0"],
    ),
    "an end out of range": (
        space(train__weight_decay={"uniform": [-0.1, 0.1]}),
        ["search.space.train.weight_decay: can give -0.1, which cannot be used: got -0.1; give a number of at least 0"],
    ),
    "fractions for a whole number": (
        space(train__epochs={"uniform": [1, 3]}),
        ["search.space.train.epochs: can give 1.0, which cannot be used: got 1.0; give a whole number of at least 1"],
    ),
    "a batch that does not divide": (
        {"search.space": {BATCH: {"choice": [16, 17]}}, "resources.workers": 2},
        [
            "search.space.train.global_batch_size: can give 17, which cannot be used: "
            "17 does not divide over 2 workers; give 16 or 18, or set resources.workers to 1"
        ],
    ),
    "a range of batches that do not divide": (
        {"search.space": {BATCH: {"randint": [16, 640]}}, "resources.workers": 2},
        [
            "search.space.train.global_batch_size: can give 17, which cannot be used: "
            "17 does not divide over 2 workers; give 16 or 18, or set resources.workers to 1"
        ],
    ),
    "batch and workers, both searched": (
        {"search.space": {BATCH: {"choice": [16, 30]}, "resources.workers": {"choice": [2, 4]}}},
        [
            "search.space: can give {train.global_batch_size: 30, resources.workers: 4}, which cannot be used: "
            "train.global_batch_size: 30 does not divide over 4 workers; give 28 or 32, "
            "or set resources.workers to 1, 2, 3, 5 or 6"
        ],
    ),
    "the one bad combination in a large space": (
        {
            "search.space": {
                LR: {"uniform": [0.1, 1]},
                "train.epochs": {"randint": [1, 30]},
                BATCH: {"choice": [*range(64, 1024, 64), 32]},
                "train.micro_batch_size": {"choice": [1, 2, 4, 8]},
                "resources.workers": {"choice": [1, 2, 4, 8]},
            },
        },
        [
            "search.space: can give {train.learning_rate: 0.1, train.epochs: 1, train.global_batch_size: 32, "
            "train.micro_batch_size: 8, resources.workers: 8}, which cannot be used: train.micro_batch_size: 8 does "
            "not divide a worker's share of 4 samples (32 over 8 workers); give one of 1, 2, 4, or auto"
        ],
    ),
    "last_n among the choices, n nowhere": (
        {"search.space": {STRATEGY: {"choice": ["full", "last_n"]}}},
        [
            "search.space: can give {transfer.strategy: 'last_n'}, which cannot be used: transfer.n: missing with "
            "strategy last_n; give the number of last blocks to train, such as 2"
        ],
    ),
    "condition on nothing": (
        {"search.space": {"transfer.n": {"choice": [1], "when": {"transfer.strateg": "last_n"}}}},
        [
            "search.space.transfer.n.when: transfer.strateg names no setting of a recipe; "
            "did you mean transfer.strategy?"
        ],
    ),
    "condition that never holds": (
        {
            "search.space": {
                STRATEGY: {"choice": ["full", "head"]},
                "transfer.n": {"choice": [1], "when": {STRATEGY: "last_n"}},
            }
        },
        ['search.space.transfer.n.when: transfer.strategy is never \'last_n\'; its choice is ["full", "head"]'],
    ),
    "condition on a value that is none": (
        {"search.space": {"transfer.n": {"choice": [1], "when": {STRATEGY: "lastn"}}}},
        [
            "search.space.transfer.n.when: transfer.strategy: got 'lastn'; "
            f"give one of {STRATEGIES}; did you mean 'last_n'?"
        ],
    ),
    "condition on a continuous setting": (
        {
            "search.space": {
                LR: {"uniform": [0.1, 1]},
                "train.seed": {"choice": [1, 2], "when": {LR: 0.5}},
            }
        },
        [
            "search.space.train.seed.when: train.learning_rate is searched by uniform, which never gives one exact "
            "value; name one with listed values"
        ],
    ),
    "conditions in a circle": (
        {
            "search.space": {
                "train.epochs": {"choice": [1, 2], "when": {"train.seed": 1}},
                "train.seed": {"choice": [1, 2], "when": {"train.epochs": 1}},
            }
        },
        ["search.space: train.epochs and train.seed wait for each other; take one of their conditions out"],
    ),
    "grid without the algorithm": (
        {"search.space": {LR: {"grid": [0.1, 1]}}},
        [
            "search.space.train.learning_rate: grid needs search.algorithm: grid, which is random; "
            "use choice, or change it"
        ],
    ),
    "algorithm without a grid": (
        {"search.algorithm": "grid"},
        [
            "search.algorithm: got grid, but no domain of search.space is a grid; "
            "write one as {grid: [...]}, or use random"
        ],
    ),
    "grid and number of trials": (
        {"search.space": {LR: {"grid": [0.1, 1]}}, "search.algorithm": "grid", "search.trials": 8},
        ["search.trials: got 8, but the grid has 2 points; take search.trials out, or give 2"],
    ),
    "grid without end": (
        {
            "search.algorithm": "grid",
            "search.space": {f"train.{key}": {"grid": list(range(1, 102))} for key in ("epochs", "seed")},
        },
        ["search.space: the grids cross to 10201 points; give fewer values, 10000 points at most, or use random"],
    ),
    "trials that are all the same": (
        {"search.trials": 3},
        ["search.trials: got 3 without a search.space: all would be the same; give a space, or 1"],
    ),
    "first points": (
        {
            "search.space": {LR: {"uniform": [0.1, 1]}},
            "search.first": [{LR: 0.2}, {LR: 3}, {"train.epochs": 2}],
        },
        [
            "search.first[1]: train.learning_rate cannot be 3; its domain is uniform [0.1, 1]",
            "search.first[2]: train.epochs is not in search.space; give it a domain there, or take it out of the point",
        ],
    ),
    "first point without its condition": (
        {
            "search.space": {
                STRATEGY: {"choice": ["full", "last_n"]},
                "transfer.n": {"choice": [1, 2], "when": {STRATEGY: "last_n"}},
            },
            "search.first": [{STRATEGY: "full", "transfer.n": 2}],
        },
        [
            "search.first[0]: transfer.n is searched only when transfer.strategy is last_n; "
            "add that to the point, or take transfer.n out"
        ],
    ),
    "more first points than trials": (
        {"search.space": {LR: {"uniform": [0.1, 1]}}, "search.first": [{LR: 0.2}, {LR: 0.3}], "search.trials": 1},
        ["search.trials: got 1, fewer than the 2 points of search.first; give at least as many"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_recipe_gets_exactly_this_message(case):
    assert_faults(*CASES[case])


def test_what_is_measured_on_the_same_examples_is_searched():
    lengths = space(data__max_length={"choice": [64, 128]})
    places = {"data.validation": "held.csv", **space(data__train={"choice": ["reviews.csv", "more.csv"]})}
    for settings in (lengths, places):
        assert recipe_from_dict(changed(settings)).search.space
