"""What a recipe keeps of a whole sweep, and retention over a sweep that nobody drives any more.

Owns the way from recipe to policy. The decision and the deletion are `checkpoint/`'s. Called by `sweep/janitor.py` and by
`tlcore checkpoints gc`.
"""

from __future__ import annotations

from tlcore.checkpoint.keeping import KeepPolicy
from tlcore.checkpoint.prune import Inventory, OtherRuns, Pruned, prune
from tlcore.errors import RecipeError
from tlcore.recipe import Recipe, recipe_from_dict
from tlcore.storage import RunRef
from tlcore.storage.journal import SweepState, read_journal


def keep_policy(recipe: Recipe) -> KeepPolicy:
    """What a recipe keeps over all trials."""
    keep, search = recipe.checkpoint, recipe.search
    return KeepPolicy(
        search.metrics,
        search.modes,
        best_overall=keep.keep_best_overall,
        stopped=keep.keep_stopped,
        budget_bytes=recipe.budget.bytes,
        own_last=keep.keep_last,
        own_best=keep.keep_best,
    )


def prune_ended(run: RunRef, dry_run: bool) -> Pruned | None:
    """One pass of retention over a run whose sweep has ended, as the recipe in its `run.json` says; manifests only.

    None where the recipe asks for nothing, or cannot be read by this version, and where trials may still go on: the sweep's driver,
    or the next one to resume it, keeps house there, since it alone knows which checkpoints are being taken over.

    Raises ObjectMissing for a run that was never started, StorageError.
    """
    store = run.open()
    state = SweepState.from_entries(read_journal(store))
    stored = run.identity().get("recipe")
    if not state.finished or stored is None:
        return None
    try:
        policy = keep_policy(recipe_from_dict(stored, source=f"{run.url}/run.json"))
    except RecipeError:
        return None
    if not policy.deletes:
        return None
    pinned = OtherRuns(run).named()
    inventory = Inventory(store, sizes=policy.budget_bytes is not None)
    return prune(inventory, lambda: state, policy, pinned=lambda: pinned, dry_run=dry_run)
