"""A checkpoint's weights on this node: read from the store once, then from a file that all ranks and trials map.

Owns the form of that file: the parameters' own values and buffers by their stored names, in safetensors, without moments. Called by
`build.py` where a checkpoint is a model's source. Exports and evaluations, which read a checkpoint once, go to the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tlcore.checkpoint import CheckpointReader, Manifest, Piece, Row
from tlcore.errors import ModelError
from tlcore.storage.base import ObjectStore
from tlcore.storage.shelf import node_shelf, shelved

if TYPE_CHECKING:
    from collections.abc import Mapping

WEIGHTS = ("fp32", "frozen", "buffer")
PART_BYTES = 1 << 30
"""Bytes of one file, and so of memory while it is made; a single tensor may need more."""
_FORMAT = 1


class NodeWeights:
    """What `StoredWeights` reads from, over the files of this node."""

    def __init__(self, files: Sequence[Path]) -> None:
        from safetensors import safe_open

        self._open: list[Any] = [safe_open(str(file), framework="pt") for file in files]
        self._where = {key: file for file in self._open for key in file.keys()}  # noqa: SIM118 (no mapping)

    def states(self, parameter: str) -> tuple[str, ...]:
        """The state of a parameter that is its value; empty where there is none."""
        return tuple(state for state in WEIGHTS if f"{state}:{parameter}" in self._where)

    def read_into(self, pieces: Sequence[Piece]) -> None:
        """Fill whole parameters."""
        for piece in pieces:
            key = f"{piece.row.state}:{piece.row.parameter}"
            piece.data[:] = self._where[key].get_tensor(key).reshape(-1).view(torch.uint8).numpy()


def node_weights(store: ObjectStore, manifest: Manifest, shelf: Path | None = None) -> NodeWeights:
    """The weights of a checkpoint, brought onto this node by the first process that asks.

    Raises ModelError where they cannot be kept; CheckpointCorrupt, StorageError.
    """
    shelf = shelf or node_shelf("models")
    listing = "\n".join([str(_FORMAT), *(index.sha256 for index in manifest.indexes)])
    name = f"checkpoint-{hashlib.sha256(listing.encode()).hexdigest()[:24]}"
    try:
        folder = shelved(shelf, name, lambda building: _write(store, manifest, building))
    except OSError as error:
        raise ModelError(
            f"the weights of {store.url}/{manifest.key} cannot be kept in {shelf}: {error}",
            hint="free space there, or make it writable",
        ) from error
    return NodeWeights(sorted(folder.glob("*.safetensors")))


def _write(store: ObjectStore, manifest: Manifest, folder: Path) -> None:
    from safetensors.torch import save_file

    reader = CheckpointReader(store, manifest, 4)
    for number, part in enumerate(_parts(reader, manifest)):
        reader.read_into(
            [
                Piece(
                    Row(
                        key.partition(":")[2],
                        key.partition(":")[0],
                        0,
                        flat.numel(),
                        str(flat.dtype).removeprefix("torch."),
                    ),
                    flat.view(torch.uint8).numpy(),
                )
                for key, flat in part.items()
            ]
        )
        save_file(part, folder / f"weights-{number:05d}.safetensors")


def _parts(reader: CheckpointReader, manifest: Manifest) -> Iterator[Mapping[str, Any]]:
    """Empty flat tensors, by state and name, as many at a time as one file takes."""
    part: dict[str, torch.Tensor] = {}
    for name, facts in manifest.parameters.items():
        if facts.tied_to is not None or not facts.elements:
            continue
        states = reader.states(name)
        state = next((each for each in WEIGHTS if each in states), None)
        if state is None:
            continue
        part[f"{state}:{name}"] = torch.empty(facts.elements, dtype=getattr(torch, facts.dtype))
        if sum(each.nbytes for each in part.values()) >= PART_BYTES:
            yield part
            part = {}
    if part:
        yield part
