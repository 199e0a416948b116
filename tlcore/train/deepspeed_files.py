"""A directory that DeepSpeed's `save_checkpoint` wrote (ZeRO stages 1 to 3), or its universal form, read as intervals.

Owns the files' structure, as of DeepSpeed 0.19, and reading them without running anything that stands in them: `torch.load` with
`weights_only`, where the four DeepSpeed classes that such files hold are replaced by plain ones of this module, and any other class
is refused by name. Files are mapped, not read, so a checkpoint needs little memory whatever its size. Does not import DeepSpeed.
Called by `deepspeed_import.py`.

Stages 1 and 2: `mp_rank_00_model_states.pt` holds the 16-bit or fp32 module, `*zero_pp_rank_<r>_mp_rank_00_optim_states.pt` rank
r's partition of each flat group, and `param_slice_mappings` says which elements of it are which parameter's; a parameter's
fragments follow each other in rank order. Stage 3: rank r's flat groups hold, parameter after parameter, elements [r*s, (r+1)*s)
of each, padded to s; a group is one of DeepSpeed's sub-groups (of `sub_group_size` elements), which `param_shapes`, the masters and
the optimizer's parameters count alike. Universal: `zero/<parameter>/<state>.pt`, whole, and the model files as they were.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from tlcore.errors import CheckpointError, RequestError

MASTER: Final = "fp32"
_OPTIM_FILE: Final = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_00_?optim_states\.pt")
_MODEL_FILE: Final = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_00_model_states\.pt")
_UNPICKLING_ERROR: Final[type[Exception]] = vars(torch._weights_only_unpickler)["UnpicklingError"]
"""What torch raises for a file that it will not unpickle, reached without importing an unpickler, which no room may."""
_FOREIGN: Final = re.compile(r".*mp_rank_(?!00)\d\d.*|layer_\d+.*|expp_rank_.*|offloaded_tensors")


class Scaler:
    """Stands for DeepSpeed's loss scalers: their numbers as attributes."""


class Slice:
    """Stands for `fragment_address`: `numel` elements from `start`."""

    def __init__(self, numel: int = 0, start: int = 0) -> None:
        self.numel, self.start = numel, start


class Stage(int):
    """Stands for `ZeroStageEnum`."""


class DynamicScaler(Scaler):
    """Stands for `DynamicLossScaler`."""


_STANDING_FOR: Final[list[Callable[..., Any] | tuple[Callable[..., Any], str]]] = [
    (Scaler, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (DynamicScaler, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (Slice, "deepspeed.utils.tensor_fragment.fragment_address"),
    (Stage, "deepspeed.runtime.zero.config.ZeroStageEnum"),
]


@dataclass(frozen=True)
class Fragment:
    """Elements `[start, start + values.numel())` of one state of one parameter."""

    parameter: str
    state: str
    start: int
    values: torch.Tensor


@dataclass(frozen=True)
class DeepSpeedCheckpoint:
    """What one directory holds. `late_steps` are those of the parameters whose group has taken fewer than `optimizer_steps`; `kept`
    are frozen parameters (maybe in several fragments) and buffers, by name."""

    directory: Path
    kind: str
    world_size: int
    global_steps: int
    optimizer_steps: int
    late_steps: Mapping[str, int]
    precision: str
    loss_scaler: Mapping[str, float] | None
    shapes: Mapping[str, tuple[int, ...]]
    fragments: Sequence[Fragment] = field(repr=False)
    kept: Mapping[str, Sequence[torch.Tensor]] = field(repr=False)

    @property
    def states(self) -> set[str]:
        """Names of the optimizer's states, the master's not among them."""
        return {each.state for each in self.fragments} - {MASTER}


def read_directory(directory: Path, tag: str | None = None) -> DeepSpeedCheckpoint:
    """Read what `save_checkpoint(directory, tag)` wrote, or the universal checkpoint made of it.

    Args:
        directory: the one given to `save_checkpoint`, or the tag's own directory below it.
        tag: which one below it; None takes what `latest` (or `latest_universal`) names.

    Raises:
        RequestError: no such checkpoint, or one of a kind that is not read (stage 0, tensor or expert parallel, NVMe offload).
        CheckpointError: damaged, or it holds something else than tensors and plain data.
    """
    folder = _folder(directory, tag)
    foreign = sorted(path.name for path in folder.iterdir() if _FOREIGN.fullmatch(path.name))
    if foreign:
        raise RequestError(
            f"{folder} holds {foreign[0]}: tensor, pipeline or expert parallel, or offloaded to NVMe",
            hint="what is read: checkpoints of ZeRO stages 1, 2 and 3 with data parallelism alone, and universal ones of these",
        )
    models = _numbered(folder, _MODEL_FILE)
    if not models:
        raise RequestError(
            f"{folder} has no *_model_states.pt, so it is no DeepSpeed checkpoint", hint="name its directory"
        )
    if (folder / "zero").is_dir():
        return _read_universal(folder, [_load(path) for path in models])
    optims = _numbered(folder, _OPTIM_FILE)
    if not optims:
        raise RequestError(
            f"{folder} has no *_optim_states.pt: it was saved without ZeRO",
            hint="save it under ZeRO stage 1, 2 or 3; for its weights alone, give a save_pretrained directory as model.source",
        )
    return _read_zero(folder, [_load(path) for path in models], {path: _load(path) for path in optims})


def _folder(directory: Path, tag: str | None) -> Path:
    if not directory.is_dir():
        raise RequestError(f"{directory} is no directory", hint="give the directory that save_checkpoint was given")
    if tag is None and not _numbered(directory, _MODEL_FILE):
        latest = next((path for name in ("latest", "latest_universal") if (path := directory / name).is_file()), None)
        if latest is None:
            raise RequestError(
                f"{directory} has neither a file `latest` nor *_model_states.pt", hint="name the tag's own directory"
            )
        tag = latest.read_text().strip()
    folder = directory / tag if tag else directory
    if not folder.is_dir():
        raise RequestError(
            f"{folder} is no directory", hint=f"{directory} has {', '.join(_folders(directory)) or 'none'}"
        )
    return folder


def _folders(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def _numbered(folder: Path, form: re.Pattern[str]) -> list[Path]:
    """Files of a form, in rank order."""
    found = [(match, path) for path in folder.iterdir() if (match := form.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda pair: int(pair[0][1] or 0))]


def _load(path: Path) -> dict[str, Any]:
    """One file that holds a dictionary. Raises CheckpointError."""
    loaded = _load_any(path)
    if not isinstance(loaded, dict):
        raise _damaged(path, f"holds {type(loaded).__name__}, not a dictionary")
    return loaded


def _load_any(path: Path) -> Any:
    """One file, without running what it may hold. Raises CheckpointError."""
    try:
        with torch.serialization.safe_globals(_STANDING_FOR):
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if unknown:
                raise CheckpointError(
                    f"{path} holds {', '.join(sorted(unknown)[:3])}, which reading would run",
                    hint="only tensors and plain data are read; save it again without them (client_state, a scheduler's functions)",
                )
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (_UNPICKLING_ERROR, RuntimeError, ValueError, OSError, EOFError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(f"{path}: cannot be read: {reason[:200]}", hint="it is damaged or not whole") from error


def _damaged(path: Path, text: str) -> CheckpointError:
    return CheckpointError(f"{path}: {text}", hint="it is damaged, or of another version of DeepSpeed than 0.19")


def _read_zero(
    folder: Path, models: list[dict[str, Any]], optims: Mapping[Path, dict[str, Any]]
) -> DeepSpeedCheckpoint:
    try:
        parts = {path: each["optimizer_state_dict"] for path, each in optims.items()}
        first = next(iter(parts.values()))
        stage, counts = int(first["zero_stage"]), first["partition_count"]
        world = max(counts) if isinstance(counts, list) else int(counts)
        if world != len(parts):
            raise _damaged(folder, f"{world} ranks saved it, and {len(parts)} *_optim_states.pt are there")
        groups = _groups(models[0])
        shapes = _shapes(groups)
        if stage == 3:
            fragments = [*_stage3(groups, parts)]
            steps = _steps_of_groups(groups, first["optimizer_state_dict"])
        else:
            fragments = [*_stage12(parts)]
            steps = _steps_of_groups(groups, first["base_optimizer_state"])
        _check_whole(folder, shapes, fragments)
        return _assemble(folder, f"ZeRO-{stage}", models, first, shapes, fragments, steps)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise _damaged(folder, f"not laid out as expected: {type(error).__name__}: {error}") from error


def _stage12(parts: Mapping[Path, dict[str, Any]]) -> Iterator[Fragment]:
    reached: dict[str, int] = {}
    for path, part in parts.items():
        for group, flat in enumerate(part["single_partition_of_fp32_groups"]):
            states = {MASTER: flat.detach(), **_flat_states(part["base_optimizer_state"], group)}
            for name, at in part["param_slice_mappings"][group].items():
                start = reached.get(name, 0)
                reached[name] = start + at.numel
                for state, values in states.items():
                    yield Fragment(name, state, start, _cut(path, name, values, at.start, at.numel))


def _stage3(groups: Sequence[Mapping[str, Sequence[int]]], parts: Mapping[Path, dict[str, Any]]) -> Iterator[Fragment]:
    for rank, (path, part) in enumerate(parts.items()):
        for group, shapes in enumerate(groups):
            states = {
                MASTER: part["fp32_flat_groups"][group].detach(),
                **_flat_states(part["optimizer_state_dict"], group),
            }
            offset = 0
            for name, shape in shapes.items():
                elements = torch.Size(shape).numel()
                share = -(-elements // len(parts))
                start = rank * share
                count = min(elements, start + share) - start
                if count > 0:
                    for state, values in states.items():
                        yield Fragment(name, state, start, _cut(path, name, values, offset, count))
                offset += share


def _cut(path: Path, name: str, values: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """A parameter's elements of a flat tensor. Raises CheckpointError."""
    if not 0 <= first <= first + count <= values.numel():
        raise _damaged(path, f"{name} is elements {first} to {first + count} of a group that has {values.numel()}")
    return values.narrow(0, first, count)


def _flat_states(optimizer: Any, group: int) -> dict[str, torch.Tensor]:
    """Flat tensors of one group."""
    held = _group_state(optimizer, group)
    return {state: values for state, values in held.items() if torch.is_tensor(values) and values.ndim == 1}


def _group_state(optimizer: Any, group: int) -> Mapping[str, Any]:
    """What is kept for one group, whose only parameter is its partition; a list is the older elastic form. Some optimizers count
    steps beside the group's settings."""
    if isinstance(optimizer, list):
        held: Mapping[str, Any] = optimizer[group]
        return held
    order = [(number, entry) for entry in optimizer["param_groups"] for number in entry["params"]]
    number, entry = order[group]
    counted = {"step": entry["step"]} if "step" in entry else {}
    return {**counted, **optimizer["state"].get(number, {})}


def _steps_of_groups(groups: Sequence[Mapping[str, Any]], optimizer: Any) -> dict[str, int]:
    """Steps taken by each parameter, those of its group, where the optimizer counts them."""
    states = [_group_state(optimizer, number) for number in range(len(groups))]
    return {
        name: int(held["step"]) for names, held in zip(groups, states, strict=True) if "step" in held for name in names
    }


def _steps(optimizer: Mapping[str, Any]) -> int | None:
    held = [*optimizer["state"].values(), *optimizer["param_groups"]]
    return next((int(each["step"]) for each in held if "step" in each), None)


def _groups(model: Mapping[str, Any]) -> list[Mapping[str, Sequence[int]]]:
    """Shapes of the trained parameters by name, of each group."""
    held = model["param_shapes"]
    return held if isinstance(held, list) else [held]


def _shapes(groups: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(int(extent) for extent in shape) for group in groups for name, shape in group.items()}


def _check_whole(folder: Path, shapes: Mapping[str, tuple[int, ...]], fragments: Sequence[Fragment]) -> None:
    """Every parameter's every state has all its elements: else a rank's file is of another save."""
    held: dict[tuple[str, str], int] = {}
    for each in fragments:
        held[each.parameter, each.state] = held.get((each.parameter, each.state), 0) + each.values.numel()
    for (name, state), elements in held.items():
        if elements != torch.Size(shapes[name]).numel():
            raise _damaged(folder, f"{elements} elements of {state} of {name}, whose shape is {list(shapes[name])}")
    if missing := sorted(set(shapes) - {name for name, _ in held}):
        raise _damaged(folder, f"no rank holds {missing[0]}")


def _read_universal(folder: Path, models: list[dict[str, Any]]) -> DeepSpeedCheckpoint:
    try:
        top = _load(folder / "zero" / "optimizer_state.pt")
        shapes = _shapes(_groups(models[0]))
        fragments: list[Fragment] = []
        steps: dict[str, int] = {}
        for name in shapes:
            for path in sorted((folder / "zero" / name).glob("*.pt")):
                if path.stem == "step":
                    steps[name] = int(_load_any(path))
                    continue
                # DeepSpeed's converter writes a dictionary for stages 1 and 2, and for stage 3 the bare, flat tensor.
                held = _load_any(path)
                values = held["param"] if isinstance(held, dict) else held
                fragments.append(Fragment(name, path.stem, 0, values.detach().reshape(-1)))
        inner = top.get("optimizer_state_dict")
        if not steps and isinstance(inner, dict) and (all_alike := _steps(inner)) is not None:
            steps = dict.fromkeys(shapes, all_alike)
        _check_whole(folder, shapes, fragments)
        return _assemble(folder, "universal", models, top, shapes, fragments, steps)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise _damaged(folder, f"not laid out as expected: {type(error).__name__}: {error}") from error


def _assemble(
    folder: Path,
    kind: str,
    models: list[dict[str, Any]],
    top: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    fragments: Sequence[Fragment],
    steps: Mapping[str, int],
) -> DeepSpeedCheckpoint:
    first = models[0]
    most = max(steps.values(), default=int(first["global_steps"]) - int(first["skipped_steps"]))
    formats = {name for name in ("fp16", "bf16") if (first.get("ds_config") or {}).get(name, {}).get("enabled")}
    scaler = top.get("loss_scaler")
    dynamic = isinstance(scaler, Scaler) and bool(getattr(scaler, "dynamic", False))
    return DeepSpeedCheckpoint(
        directory=folder,
        kind=kind,
        world_size=int(first["dp_world_size"]),
        global_steps=int(first["global_steps"]),
        optimizer_steps=most,
        late_steps={name: taken for name, taken in steps.items() if taken < most},
        precision=next(iter(formats), "fp32"),
        loss_scaler={k: v for k, v in vars(scaler).items() if isinstance(v, int | float)} if dynamic else None,
        shapes=shapes,
        fragments=fragments,
        kept=_kept(models, shapes),
    )


def _kept(models: list[dict[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[torch.Tensor]]:
    """Frozen parameters and buffers. Under stage 3 a frozen one lies in equal parts, the last padded, in the ranks' files."""
    first = models[0]
    kept = {
        name: [values.detach()]
        for name, values in first["module"].items()
        if torch.is_tensor(values) and name not in shapes and values.numel()
    }
    for name, shape in (first.get("frozen_param_shapes") or {}).items():
        parts = [each["frozen_param_fragments"][name].detach().reshape(-1) for each in models]
        if parts[0].numel() < torch.Size(shape).numel():
            kept[name] = _without_padding(parts, torch.Size(shape).numel())
        else:
            kept[name] = [parts[0]]
    return kept


def _without_padding(parts: Sequence[torch.Tensor], elements: int) -> list[torch.Tensor]:
    cut = []
    for part in parts:
        cut.append(part[: max(0, elements)])
        elements -= part.numel()
    return [part for part in cut if part.numel()]
