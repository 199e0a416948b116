"""A checkpoint as a DeepSpeed universal checkpoint, which `engine.load_checkpoint` takes at any ZeRO stage and world size.

Owns the directory's structure, as DeepSpeed 0.19's `ds_to_universal` writes it and its loaders read it; needs no GPU, and in memory
no more than `_BATCH_BYTES` or the largest tensor. DeepSpeed wants all frozen weights in one file, which `torch.save` writes from
tensors that are all there: they lie in a file that is mapped, and go with it. Called by the command.

To go on there: build the engine with `"checkpoint": {"load_universal": true}` and the same model, then
`engine.load_checkpoint(directory)`. What DeepSpeed's loaders leave to their caller stays so: frozen weights and buffers (they are
in the model file's `module`), the learning rate and the other settings of each parameter group, a dynamic loss scaler. Its stage 3
loader knows the states of the Adam family alone, and gives all groups one step tensor: with torch's optimizers and several groups,
`for state in engine.optimizer.optimizer.state.values(): state["step"] = state["step"].clone()` afterwards, or the bias correction
runs ahead (3e-6 of the loss after two steps, in the test's model). Parameters that joined late have a step of their own: the loader
of stages 1 and 2 takes it, and asks for groups whose parameters all have the same; for stage 3 it is set by hand likewise.

    <directory>/latest_universal                        the tag
    <directory>/<tag>/zero/<parameter>/<state>.pt       {"param": whole tensor}; step.pt, its optimizer's step, if that counts
    <directory>/<tag>/zero/optimizer_state.pt           what is of no parameter
    <directory>/<tag>/mp_rank_00_model_states.pt        counters, frozen weights, buffers; for stages 1 and 2
    <directory>/<tag>/zero_pp_rank_0_mp_rank_00_...     the same for stage 3
"""

from __future__ import annotations

import mmap
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import torch

from tlcore.checkpoint import CheckpointReader, CheckpointRef, Piece, Row
from tlcore.errors import RequestError

_BATCH_BYTES: Final = 64 << 20
_ALIGNED: Final = 64
_UNIVERSAL_VERSION: Final = 0.4
_CONNECTIONS: Final = 4
_KEPT: Final = ("frozen", "buffer")
_COUNTED: Final = frozenset({"exp_avg_sq", "sum"})
"""States of the optimizers that count steps, Adam's and Adagrad's; SGD, Lion and Muon do not."""


def export_universal(ref: str, destination: Path) -> Path:
    """Write a checkpoint of any stage and world size as a DeepSpeed universal one; it appears whole or not at all.

    Args:
        destination: a directory that does not exist.

    Raises:
        RequestError: no such URL, or the directory exists. CheckpointError: no such checkpoint, or damaged.
    """
    if destination.exists():
        raise RequestError(f"{destination} exists", hint="name a directory that does not exist")
    store, manifest = CheckpointRef.parse(ref).open()
    reader = CheckpointReader(store, manifest, _CONNECTIONS)
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tag = f"global_step{manifest.step}_universal"
    folder = partial / tag
    (folder / "zero").mkdir(parents=True)
    try:
        _write_states(folder / "zero", reader)
        torch.save(_optimizer_state(reader), folder / "zero" / "optimizer_state.pt")
        model_file = folder / "mp_rank_00_model_states.pt"
        with _frozen_and_buffers(reader, partial) as kept:
            torch.save(_model_state(reader, kept), model_file)
        # Stages 1 and 2 look for one name, stage 3 for the other; a second name of one file costs nothing.
        _name_again(model_file, folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
        (partial / "latest_universal").write_text(tag)
        partial.rename(destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return destination


def _name_again(path: Path, name: Path) -> None:
    try:
        name.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, name)


def _write_states(folder: Path, reader: CheckpointReader) -> None:
    most, late = reader.manifest.scalars["optimizer_steps"], reader.manifest.scalars.get("late_steps", {})
    batch: dict[Path, tuple[Row, torch.Tensor]] = {}
    held = 0
    for name, facts in reader.manifest.parameters.items():
        if not facts.trained or facts.tied_to is not None:
            continue
        (folder / name).mkdir()
        states = reader.states(name)
        if _COUNTED.intersection(states):
            torch.save(torch.tensor(float(late.get(name, most))), folder / name / "step.pt")
        for state in states:
            tensor = torch.empty(facts.shape, dtype=torch.float32)
            batch[folder / name / f"{state}.pt"] = Row(name, state, 0, facts.elements, "float32"), tensor
            held += tensor.nbytes
            if held >= _BATCH_BYTES:
                _save(reader, batch)
                batch, held = {}, 0
    _save(reader, batch)


def _save(reader: CheckpointReader, batch: Mapping[Path, tuple[Row, torch.Tensor]]) -> None:
    _read(reader, batch.values())
    for path, (_, tensor) in batch.items():
        torch.save({"param": tensor}, path)


def _read(reader: CheckpointReader, wanted: Iterable[tuple[Row, torch.Tensor]]) -> None:
    reader.read_into([Piece(row, tensor.view(-1).view(torch.uint8).numpy()) for row, tensor in wanted])


def _optimizer_steps(reader: CheckpointReader) -> int | None:
    """Steps that the optimizer took; None where it counts none."""
    counts = not _COUNTED.isdisjoint(row.state for row in reader.rows())
    return int(reader.manifest.scalars["optimizer_steps"]) if counts else None


def _optimizer_state(reader: CheckpointReader) -> dict[str, Any]:
    """The optimizer's global part. Entries of `param_groups` are empty, so that every group keeps the engine's own settings; there
    is one per parameter, since DeepSpeed loads as many groups as it finds entries."""
    groups: list[dict[str, Any]] = [{"params": []} for facts in reader.manifest.parameters.values() if facts.trained]
    steps = _optimizer_steps(reader)
    state = {} if steps is None else {"step": torch.tensor(float(steps))}
    return {
        "ds_version": version("deepspeed"),
        "overflow": False,
        "param_groups": groups,
        "optimizer_state_dict": {"state": {0: state}, "param_groups": groups},
    }


def _model_state(reader: CheckpointReader, kept: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    manifest = reader.manifest
    scalars = manifest.scalars
    precision = manifest.common.get("precision")
    steps = _optimizer_steps(reader)
    own = {name: facts for name, facts in manifest.parameters.items() if facts.tied_to is None}
    return {
        "module": kept,
        "param_shapes": [OrderedDict((name, torch.Size(facts.shape)) for name, facts in own.items() if facts.trained)],
        "shared_params": {
            name: facts.tied_to for name, facts in manifest.parameters.items() if facts.tied_to is not None
        },
        "buffer_names": [name for name in own if reader.states(name) == ["buffer"]],
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "optimizer": None,
        "lr_scheduler": {"last_batch_iteration": manifest.step - 1},
        "global_steps": manifest.step,
        "skipped_steps": 0 if steps is None else manifest.step - steps,
        "global_samples": manifest.step * int(scalars["global_batch_size"]),
        "dp_world_size": manifest.world_size,
        "mp_world_size": 1,
        "universal_checkpoint_info": {"universal_checkpoint_version": _UNIVERSAL_VERSION},
        "ds_config": {name: {"enabled": name == precision} for name in ("bf16", "fp16")},
        "ds_version": version("deepspeed"),
    }


@contextmanager
def _frozen_and_buffers(reader: CheckpointReader, folder: Path) -> Iterator[OrderedDict[str, torch.Tensor]]:
    """Frozen weights and buffers, whole, in a mapped file below `folder` that nobody else sees."""
    rows: list[tuple[Row, torch.Size]] = []
    for name, facts in reader.manifest.parameters.items():
        state = next((each for each in reader.states(name) if each in _KEPT), None)
        if state is not None and facts.tied_to is None:
            rows.append((Row(name, state, 0, facts.elements, facts.dtype), torch.Size(facts.shape)))
    places = [*accumulate((-(-row.size_bytes // _ALIGNED) * _ALIGNED for row, _ in rows), initial=0)]
    with TemporaryFile(dir=folder) as file:
        file.truncate(max(places[-1], 1))
        with mmap.mmap(file.fileno(), max(places[-1], 1)) as mapped:
            found: OrderedDict[str, torch.Tensor] = OrderedDict()
            for (row, shape), offset in zip(rows, places, strict=False):
                kind = {"dtype": getattr(torch, row.dtype), "count": row.end, "offset": offset}
                found[row.parameter] = torch.frombuffer(mapped, **kind).view(shape)
            for some in _batches(rows):
                _read(reader, [(row, found[row.parameter]) for row in some])
                mapped.flush()
                mapped.madvise(mmap.MADV_DONTNEED)  # they are in the file, and read again when they are written
            yield found
            found.clear()


def _batches(rows: Iterable[tuple[Row, torch.Size]]) -> Iterator[list[Row]]:
    some: list[Row] = []
    for row, _ in rows:
        some.append(row)
        if sum(each.size_bytes for each in some) >= _BATCH_BYTES:
            yield some
            some = []
    if some:
        yield some
