"""What each rank does in test_train_restore.py: whole trials, trained, saved and restored by `TrialSession`.

Run by `rank_server.py`; a case names its `kind`, a function of this module. The GPU tests run it by torchrun, with cases of
`repeat`: the arguments are then a JSON file of cases, the model's directory, a store's URL, the output file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tlcore.engine.process import prepare_process

prepare_process()

import torch.distributed as dist  # noqa: E402 (the process must be settled first)

from tlcore.checkpoint import CheckpointReader, list_manifests, read_manifest  # noqa: E402
from tlcore.checkpoint.manifest import read_index  # noqa: E402
from tlcore.errors import CheckpointCorrupt  # noqa: E402
from tlcore.recipe import Recipe, recipe_from_dict  # noqa: E402
from tlcore.storage import ObjectStore, create_run, get_json, open_store  # noqa: E402
from tlcore.train.group import agree, process_group, sum_over_ranks  # noqa: E402
from tlcore.train.session import TrialSession  # noqa: E402
from tlcore.train.stepper import Stepper  # noqa: E402

DATA = Path(__file__).parents[1] / "data" / "tiny_reviews.csv"


def recipe_for(changes: dict[str, Any], model: str, storage: str, workers: int) -> Recipe:
    """A small recipe with `changes` laid over its sections. 160 training rows in batches of 24 leave an uneven last batch."""
    base: dict[str, Any] = {
        "name": "restore",
        "task": "text-classification",
        "model": {"source": model},
        "data": {"train": str(DATA), "validation": 0.2, "labels": ["negative", "positive"], "max_length": 16},
        "train": {"epochs": 2, "global_batch_size": 24, "learning_rate": 2e-3},
        "resources": {"workers": workers},
        "storage": storage,
    }
    for section, values in changes.items():
        base[section] = {**base.get(section, {}), **values}
    return recipe_from_dict(base)


def losses(recipe: Recipe, run_url: str, *, until: float, resume: int) -> tuple[list[str], dict[str, float], int]:
    """Global loss of every step, as exact hexadecimal; the last evaluation; the step reached. Saves at the end."""
    session = TrialSession(recipe, run_url, "t000", resume_step=resume)
    with told_losses() as seen:
        report = session.advance(until)
    if resume == 0:
        session.save(wait=True)
    session.close()
    return [loss.hex() for loss in seen], report.metrics, report.step


@contextmanager
def told_losses() -> Iterator[list[float]]:
    """The global loss of every step inside, also where a trial's engine is made anew on the way."""
    seen: list[float] = []
    run = Stepper.run

    def recorded(self: Stepper, step: int) -> Any:
        loss, samples = run(self, step)
        seen.append((sum_over_ranks(loss.clone()) / dist.get_world_size()).item())
        return loss, samples

    Stepper.run = recorded  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Stepper.run = run  # type: ignore[method-assign]


def new_run(case: dict[str, Any], name: str) -> str:
    now = datetime.now(UTC)
    return agree(create_run(case["storage"], "restore", {}, now, name).url if dist.get_rank() == 0 else "")


def everywhere(value: Any) -> list[Any]:
    """What each rank holds, in rank order."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def repeat(case: dict[str, Any]) -> dict[str, Any]:
    """One trial whole, and one in two pieces."""
    world = dist.get_world_size()
    saving = recipe_for(case["save"], case["model"], case["storage"], world)
    restoring = recipe_for(case.get("restore", case["save"]), case["model"], case["storage"], world)
    urls = [new_run(case, f"{case['name']}-{i}") for i in range(2)]
    whole, whole_metrics, _ = losses(saving, urls[0], until=1.0, resume=0)
    before, _, step = losses(saving, urls[1], until=0.4, resume=0)
    after, after_metrics, _ = losses(restoring, urls[1], until=1.0, resume=step)
    return {
        "name": case["name"],
        "step": step,
        "whole": whole,
        "pieced": before + after,
        "whole_metrics": whole_metrics,
        "pieced_metrics": after_metrics,
        "url": f"{urls[1]}/trials/t000/step-{len(whole):08d}",
    }


def seen(case: dict[str, Any]) -> dict[str, Any]:
    """Train some steps, from a checkpoint if there is one, and save: which training samples each rank took."""
    recipe = recipe_for(case["save"], case["model"], case["storage"], dist.get_world_size())
    session = TrialSession(recipe, case["url"], "t000", resume_step=case["resume"])
    taken = watched(session)
    for _ in range(case["steps"]):
        session.train_step()
    session.save(wait=True)
    samples, steps_per_epoch = session.order.samples, session.order.steps_per_epoch
    session.close()
    return {"taken": everywhere(taken), "samples": samples, "steps_per_epoch": steps_per_epoch}


def watched(session: TrialSession) -> list[int]:
    """Training samples that this rank trains on from now on; those of a batch that is only made ahead are not among them."""
    batches: Any = session._stepper._batches
    take, taken = batches.take, []

    def recorded(place: Any) -> Any:
        taken.extend(int(each) for each in place.samples)
        return take(place)

    batches.take = recorded
    return taken


def twice(case: dict[str, Any]) -> dict[str, Any]:
    """The next step's loss after one restore, and in an engine that was restored from a later checkpoint before."""
    recipe = recipe_for(case["save"], case["model"], case["storage"], dist.get_world_size())
    url = new_run(case, case["name"])
    session = TrialSession(recipe, url, "t000", resume_step=0)
    for _ in range(2):
        session.train_step()
        session.save(wait=True)
    session.close()
    found = []
    for first in (1, 2):
        session = TrialSession(recipe, url, "t000", resume_step=first)
        if first == 2:
            store = open_store(url)
            session.model.restore(CheckpointReader(store, read_manifest(store, "t000", 1)))
            session.step = 1
        with told_losses() as seen:
            session.train_step()
        session.close()
        found += [loss.hex() for loss in seen]
    return {"losses": found}


def damaged(case: dict[str, Any]) -> dict[str, Any]:
    """Save twice, flip one byte of the newer checkpoint, restore: where each rank then stands, and what is told of it. Then
    flip one of the older, too: what each rank says when nothing is intact."""
    recipe = recipe_for(case["save"], case["model"], case["storage"], dist.get_world_size())
    url = new_run(case, case["name"])
    session = TrialSession(recipe, url, "t000", resume_step=0)
    session.train_step()
    session.save(wait=True)
    if dist.get_rank() == 0:
        old = {each.key for each in open_store(url).list("cas/")}
    session.train_step()
    session.save(wait=True)
    session.close()
    store = open_store(url)
    key = agree(next(each.key for each in store.list("cas/") if each.key not in old) if dist.get_rank() == 0 else "")
    flip(store, key)
    session = TrialSession(recipe, url, "t000")
    steps = everywhere(session.step)
    report = session.advance(0.2).fell_back
    next_report = session.advance(0.25).fell_back
    session.close()
    history = [get_json(store, each.key) for each in store.list("trials/t000/history/")]
    for step in list_manifests(store, "t000"):
        manifest = read_manifest(store, "t000", step)
        flip(store, f"cas/{(digest := read_index(store, manifest.indexes[0]).chunks[0].digest)[:2]}/{digest}")
    try:
        TrialSession(recipe, url, "t000")
    except CheckpointCorrupt as error:
        nothing = str(error)
    return {
        "steps": steps,
        "key": key,
        "report": report,
        "next_report": next_report,
        "history": [each for each in history if each["kind"] == "fell_back"],
        "nothing_intact": everywhere(nothing),
    }


def flip(store: ObjectStore, key: str) -> None:
    """Rank 0 flips the first byte of an object; the others wait for it."""
    if dist.get_rank() == 0:
        data = store.get(key)
        store.put(key, bytes([data[0] ^ 1]) + data[1:])
    dist.barrier()


def run(case: dict[str, Any]) -> Any:
    return globals()[case["kind"]](case)


def main() -> None:
    cases_file, model, storage, output = sys.argv[1:]
    with process_group():
        cases = json.loads(Path(cases_file).read_text())
        results = [repeat({**case, "model": model, "storage": storage}) for case in cases]
        if dist.get_rank() == 0:
            Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
