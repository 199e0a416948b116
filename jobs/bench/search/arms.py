"""What the search bench compares: the arms, their recipes and sizes. Fixed before the first run and the same for every seed.

Owns the design. Both questions stand on the sentiment recipe, its model and a part of its movie snippets; an arm is one sweep, one
seed gives it the points drawn, the new head and the order of the data.

`population`: PBT against random search over a constant learning rate (1e-5 to 1e-2) and weight decay, for the last two blocks and
the head. PBT can win here for two reasons: it moves steps from hopeless points to good ones, and its trials change their rate on
the way, so they can find a falling schedule, which no single point of this space has. `random-decay` is random search over the same
points with the schedule given by hand that people use (linear, down to 0): what PBT has to find. All train every step of
every trial, so the steps are equal. Both judge by the validation loss, which is less coarse than the accuracy of few samples.
PBT's settings are tlcore's defaults but for `synchronous`, since its trials take turns in fewer slots than there are trials, and
the interval.

`sweep`: the recipe's own space without `scratch` and without the batch size (so that a step is a step), under random search,
Optuna's TPE and ASHA, and one run at the recipe's own settings. The metric is the recipe's. TPE runs as many trials as random
search; ASHA so many that their steps are about as many in expectation; what was trained is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from tlcore.recipe import Recipe, load_recipe, recipe_from_dict

RECIPE: Final = Path(__file__).resolve().parents[2] / "recipes" / "sentiment_minilm.yaml"
BATCH: Final = 16
INTERVAL: Final = 1 / 6
"""Of a trial between two looks at the population: ten steps, so five looks, at each of which two trials of eight take over."""
Part = Literal["population", "sweep"]


@dataclass(frozen=True)
class Size:
    """Rows to train on and to judge by, trials of each kind of arm, epochs of a trial in each part, and seeds."""

    train_rows: int
    validation_rows: int
    population: int
    population_epochs: int
    trials: int
    asha_trials: int
    tpe_startup: int
    sweep_epochs: int
    seeds: int


# 22 trials under ASHA (rungs at 1/4 and 1/2, halved) took 0.99 of the steps of 12 whole trials in the mean of 3,000 simulated
# sweeps with a metric of some noise, 0.77 to 1.21 of them in nine of ten.
FULL: Final = Size(480, 240, 8, 2, 12, 22, 4, 1, 5)
QUICK: Final = Size(64, 32, 2, 2, 2, 3, 1, 1, 1)


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: what its recipe has otherwise than the part's."""

    part: Part
    name: str
    changes: Mapping[str, Any]


def arms(size: Size) -> tuple[Arm, ...]:
    """Every arm, in the order in which a seed runs them."""
    random: dict[str, Any] = {"algorithm": "random", "scheduler": "none", "trials": size.trials}
    return (
        Arm("population", "pbt", {"search": {"scheduler": {"pbt": {"interval": INTERVAL, "synchronous": True}}}}),
        Arm("population", "random", {}),
        Arm("sweep", "default", {"search": {"space": {}, "trials": 1}}),
        Arm("sweep", "random", {"search": random}),
        Arm("sweep", "tpe", {"search": {**random, "algorithm": {"optuna": {"startup": size.tpe_startup}}}}),
        Arm(
            "sweep",
            "asha",
            {"search": {**random, "trials": size.asha_trials, "scheduler": {"asha": {"grace": 0.25, "reduction": 2}}}},
        ),
        Arm("population", "random-decay", {"train": {"lr_schedule": "linear"}}),
    )


def arm_recipe(arm: Arm, size: Size, seed: int, data: Path, storage: Path) -> Recipe:
    """The sweep of an arm under a seed. `data` has train.parquet (both kinds of row) and test.parquet."""
    recipe = load_recipe(RECIPE).to_dict()
    rows = size.train_rows + size.validation_rows
    common = {
        "name": f"{arm.part}-{arm.name}-{seed}",
        "data": {
            "train": str(data / "train.parquet"),
            "test": str(data / "test.parquet"),
            "validation": size.validation_rows / rows,
        },
        "train": {"seed": seed, "global_batch_size": BATCH},
        "resources": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 1},
        "storage": str(storage),
    }
    for changes in (common, _part(arm.part, size), arm.changes):
        for section, values in changes.items():
            recipe[section] = {**recipe[section], **values} if isinstance(values, Mapping) else values
    return recipe_from_dict(recipe, f"arm {arm.part}/{arm.name}")


def _part(part: Part, size: Size) -> dict[str, Any]:
    if part == "population":
        return {
            "train": {"epochs": size.population_epochs, "lr_schedule": "constant"},
            "transfer": {"strategy": "last_n", "n": 2},
            "search": {
                "space": {
                    "train.learning_rate": {"loguniform": [1e-5, 1e-2]},
                    "train.weight_decay": {"uniform": [0.0, 0.3]},
                },
                "first": [],
                "trials": size.population,
                "scheduler": "none",
                "metric": "eval_loss",
                "mode": "min",
            },
        }
    space = dict(load_recipe(RECIPE).to_dict()["search"]["space"])
    del space["train.global_batch_size"]
    space["transfer.strategy"] = {"choice": ["full", "last_n", "head"]}
    return {
        "train": {"epochs": size.sweep_epochs},
        "search": {"space": space, "first": [], "scheduler": "none"},
    }


def design_digest(size: Size) -> str:
    """Names the design: figures of two designs are never put together. Settings that no arm names may come and go."""
    parts = {part: _part(part, size) for part in get_args(Part)}
    design = [asdict(size), BATCH, parts, [asdict(arm) for arm in arms(size)], RECIPE.read_text()]
    return hashlib.sha256(json.dumps(design, sort_keys=True).encode()).hexdigest()[:12]
