"""Sources for the photos of Tux Paint: EfficientNet-lite0 from ImageNet, and what is less or other than it.

    lite0           as it comes
    lite0-others    tuned on pictures of other things: letters, money, signs, insects, tools
    lite0-5, -3     its first stages alone, the later ones drawn anew
    lite0-grey      its first convolution's colours averaged: edges are there, colours are not
    random          a network of its shape that learned nothing

Owns how each is made. The photos come as `jobs.prepare_photos` cuts them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final

from jobs import prepare_photos
from jobs.bench.select.candidates import Candidates, Size, one_process, tuned
from jobs.prepared import to_parquet
from tlcore.recipe import Recipe

NAMES: Final = ("lite0", "lite0-others", "lite0-5", "lite0-3", "lite0-grey", "random")
OTHERS: Final = {
    "letter": "symbols/alphabets",
    "money": "symbols/money",
    "sign": "town/roadsigns",
    "insect": "animals/insects",
    "tool": "household/tools",
}
"""As `prepare_photos.KINDS`, none of them among those."""
_MOST_OF_A_KIND: Final = 40
_HELD_OUT: Final = 0.1
_IMAGE_SIZE: Final = 160
"""Pixels, of 224: half the work, and the stamps are small themselves."""
_TUNING_EPOCHS: Final = 4


def prepare(home: Path, size: Size) -> None:
    """Both kinds of pictures and the model below a directory, of each kind as many as the size has. Raises RuntimeError."""
    with redirect_stdout(sys.stderr):
        status = prepare_photos.main(["--destination", str(home / "photos")])
    if status != 0:
        raise RuntimeError(f"the photos could not be prepared: exit status {status}, and standard error says why")
    import pyarrow.parquet as pq

    for name, rows in (("train", size.train_rows), ("test", size.test_rows)):
        path = home / "photos" / f"{name}.parquet"
        table = pq.read_table(path)
        kept = sorted(range(len(table)), key=lambda row: prepare_photos.order_of(table["id"][row].as_py()))[:rows]
        pq.write_table(table.take(kept), path)
    (home / "others").mkdir()
    (home / "others" / "train.parquet").write_bytes(to_parquet(_others(), prepare_photos.COLUMNS))


def _others() -> Sequence[prepare_photos.Photo]:
    from jobs.fetch import ASSETS

    found = prepare_photos.fetch_photos(ASSETS.expanduser(), OTHERS)
    return [photo for kind in OTHERS for photo in [each for each in found if each.label == kind][:_MOST_OF_A_KIND]]


def recipe_of(home: Path, source: str, epochs: int, folder: str = "photos") -> Recipe:
    """The photos' recipe from a source."""
    own = home / folder
    data: dict[str, Any] = {"train": f"{own}/train.parquet", "validation": _HELD_OUT, "image_size": _IMAGE_SIZE}
    data["test"] = f"{own}/test.parquet" if folder == "photos" else None
    training = {"epochs": epochs, "global_batch_size": 16}
    return one_process("photos_lite0.yaml", {"model": {"source": source}, "data": data, "train": training}, home)


def make(home: Path, without: frozenset[str]) -> dict[str, str]:
    """Name -> source, below `home / "sources"`."""
    whole = str(home / "photos" / prepare_photos.MODEL_FOLDER)
    kinds: dict[str, Callable[[], Any]] = {
        "lite0-5": lambda: _first(whole, 5),
        "lite0-3": lambda: _first(whole, 3),
        "lite0-grey": lambda: _grey(whole),
        "random": lambda: _first(whole, 0),
    }
    made = {"lite0": whole} if "lite0" not in without else {}
    for name, model in kinds.items():
        if name not in without:
            made[name] = _saved(home / "sources" / name, whole, model())
    if "lite0-others" not in without:
        made["lite0-others"] = tuned(
            home / "sources" / "lite0-others", recipe_of(home, whole, _TUNING_EPOCHS, "others")
        )
    return made


def _lite0(whole: str) -> Any:
    from transformers import AutoModelForImageClassification

    from tlcore.models import quiet
    from tlcore.models.families import register_families

    register_families()
    with quiet():
        return AutoModelForImageClassification.from_pretrained(whole)


def _first(whole: str, stages: int) -> Any:
    """The stem and the first stages of lite0, all else drawn; no stage: nothing of it."""
    import torch
    from transformers import AutoModelForImageClassification

    learned = _lite0(whole)
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(learned.config)
    if stages:
        own, other = model.efficientnet_lite, learned.efficientnet_lite
        own.stem.load_state_dict(other.stem.state_dict())
        for at in range(own.stage_ends[stages - 1] + 1):
            own.blocks[at].load_state_dict(other.blocks[at].state_dict())
    return model


def _grey(whole: str) -> Any:
    model = _lite0(whole)
    colours = model.efficientnet_lite.stem.convolution.weight.data
    colours[:] = colours.mean(dim=1, keepdim=True)
    return model


def _saved(home: Path, whole: str, model: Any) -> str:
    from transformers import AutoImageProcessor

    from tlcore.models import quiet

    with quiet():
        model.save_pretrained(home)
        AutoImageProcessor.from_pretrained(whole).save_pretrained(home)
    return str(home)


PHOTOS: Final = Candidates(prepare, make, recipe_of, NAMES, full=Size(125, 8, 62, 3), quick=Size(32, 1, 16, 1))
