"""DeepSpeed's files read by structure alone: what is refused, and that nothing in them runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from tlcore.errors import CheckpointError, CheckpointIncompatible, RequestError
from tlcore.train.deepspeed_files import read_directory

pytestmark = pytest.mark.unit

SHAPES = OrderedDict(a=torch.Size([3, 5]), b=torch.Size([7]))
RANKS = 2


def scaler() -> DynamicLossScaler:
    """As fp16 training leaves it."""
    return DynamicLossScaler(2.0**16, 1000, 1, 1, False)


def value(state: int, element: torch.Tensor) -> torch.Tensor:
    return element.float() + 1000 * state


def stage1(directory: Path) -> Path:
    """Two ranks; 22 elements in one group, cut at 11; `frozen` and a buffer besides."""
    folder = directory / "global_step4"
    folder.mkdir(parents=True)
    (directory / "latest").write_text("global_step4")
    module = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    module |= {"frozen": torch.arange(4.0), "seen": torch.tensor(9)}
    torch.save(model_state(module, [SHAPES]), folder / "mp_rank_00_model_states.pt")
    slices = [
        OrderedDict(a=fragment_address(11, 0)),
        OrderedDict(a=fragment_address(4, 0), b=fragment_address(7, 4)),
    ]
    for rank in range(RANKS):
        flat = torch.arange(11) + 11 * rank
        states = {"step": torch.tensor(3.0), "exp_avg": value(1, flat), "exp_avg_sq": value(2, flat)}
        part = {
            "zero_stage": ZeroStageEnum.optimizer_states,
            "partition_count": [RANKS],
            "loss_scaler": scaler(),
            "single_partition_of_fp32_groups": [value(0, flat)],
            "base_optimizer_state": {"state": {0: states}, "param_groups": [{"params": [0], "lr": 1.0}]},
            "param_slice_mappings": [slices[rank]],
        }
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": part, "ds_version": "0.19.8"}, folder / name)
    return folder


def stage3_in_sub_groups(directory: Path) -> Path:
    """As DeepSpeed saves it where the one group of parameters is larger than `sub_group_size`."""
    return stage3(directory, [["a"], ["b"]])


def stage3(directory: Path, sub_groups: Sequence[Sequence[str]] = (("a", "b"),)) -> Path:
    """Two ranks; `a` has 15 elements, so 8 and 7 and one of padding; `b` 7, so 4 and 3; `frozen` 5, so 3 and 2."""
    folder = directory / "global_step4"
    folder.mkdir(parents=True)
    (directory / "latest").write_text("global_step4")
    first = {"a": 0, "b": 15}
    for rank in range(RANKS):
        module = {name: torch.zeros(0) for name in (*SHAPES, "frozen")} | {"seen": torch.tensor(9)}
        state = model_state(module, [OrderedDict((name, SHAPES[name]) for name in group) for group in sub_groups])
        state["frozen_param_shapes"] = OrderedDict(frozen=torch.Size([5]))
        padded = torch.tensor([0.0, 1, 2, 3, 4, -1])
        state["frozen_param_fragments"] = OrderedDict(frozen=padded[3 * rank : 3 * rank + 3])
        torch.save(state, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        flats = [
            torch.cat([slice_of(first[name], SHAPES[name].numel(), rank) for name in group]) for group in sub_groups
        ]
        states = {
            number: {"step": torch.tensor(3.0), "exp_avg": value(1, flat), "exp_avg_sq": value(2, flat)}
            for number, flat in enumerate(flats)
        }
        part = {
            "zero_stage": ZeroStageEnum.weights,
            "partition_count": RANKS,
            "loss_scaler": scaler(),
            "fp32_flat_groups": [value(0, flat) for flat in flats],
            "optimizer_state_dict": {"state": states, "param_groups": [{"params": [*states]}]},
        }
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": part}, folder / name)
    return folder


def slice_of(first: int, elements: int, rank: int) -> torch.Tensor:
    share = -(-elements // RANKS)
    padded = torch.cat([torch.arange(elements) + first, torch.full((share * RANKS - elements,), -7)])
    return padded[rank * share : (rank + 1) * share]


def model_state(module: dict[str, Any], groups: list[Any]) -> dict[str, Any]:
    return {
        "module": OrderedDict(module),
        "param_shapes": groups,
        "shared_params": {},
        "buffer_names": ["seen"],
        "global_steps": 4,
        "skipped_steps": 1,
        "dp_world_size": RANKS,
        "mp_world_size": 1,
        "ds_config": {"fp16": {"enabled": True}},
    }


@pytest.mark.parametrize("make", [stage1, stage3, stage3_in_sub_groups])
def test_fragments_are_each_parameters_elements_in_order(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    found = read_directory(tmp_path)
    whole: dict[tuple[str, str], Any] = {}
    for each in found.fragments:
        target = whole.setdefault((each.parameter, each.state), np.full(SHAPES[each.parameter].numel(), np.nan))
        assert np.isnan(target[each.start : each.start + each.values.numel()]).all(), "an element is there twice"
        target[each.start : each.start + each.values.numel()] = each.values.numpy()
    for name, first in (("a", 0), ("b", 15)):
        for number, state in enumerate(("fp32", "exp_avg", "exp_avg_sq")):
            expected = np.arange(SHAPES[name].numel()) + first + 1000 * number
            np.testing.assert_array_equal(whole[name, state], expected)
    assert found.states == {"exp_avg", "exp_avg_sq"}
    assert (found.global_steps, found.optimizer_steps, found.world_size, found.precision) == (4, 3, 2, "fp16")
    assert found.late_steps == {}
    assert found.loss_scaler is not None and found.loss_scaler["cur_scale"] == 2.0**16
    frozen = torch.cat([part.reshape(-1) for part in found.kept["frozen"]])
    assert frozen.tolist() == list(range(len(frozen))) and len(frozen) == (4 if make is stage1 else 5)
    assert [part.item() for part in found.kept["seen"]] == [9]


def test_a_group_that_joined_late_has_fewer_steps(tmp_path: Path) -> None:
    folder = stage3_in_sub_groups(tmp_path)
    for path in folder.glob("*optim_states.pt"):
        held = torch.load(path, weights_only=False)
        held["optimizer_state_dict"]["optimizer_state_dict"]["state"][1]["step"] = torch.tensor(1.0)
        torch.save(held, path)
    found = read_directory(tmp_path)
    assert (found.optimizer_steps, found.late_steps) == (3, {"b": 1})


def test_the_tags_own_directory_and_a_tag_do_as_well(tmp_path: Path) -> None:
    folder = stage1(tmp_path)
    assert read_directory(folder).directory == folder
    (tmp_path / "latest").write_text("global_step9")
    assert read_directory(tmp_path, "global_step4").directory == folder
    with pytest.raises(RequestError, match=r"global_step9 is no directory\n.* has global_step4"):
        read_directory(tmp_path)


ran: list[str] = []


def note(word: str) -> None:
    ran.append(word)


class Trap:
    """Says so when somebody unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return note, ("ran",)


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_what_would_run_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = stage1(tmp_path)
    held = torch.load(folder / name, weights_only=False)
    torch.save(held | {"client_state": Trap()}, folder / name)
    with pytest.raises(CheckpointError, match=rf"{name} holds [a-z_.]*note, which reading would run"):
        read_directory(tmp_path)
    torch.save(held | {"client_state": Path("x")}, folder / name)
    with pytest.raises(CheckpointError, match=r"holds pathlib.*, which reading would run"):
        read_directory(tmp_path)
    assert ran == []


def test_a_cut_off_file_and_a_missing_rank_are_said(tmp_path: Path) -> None:
    folder = stage1(tmp_path)
    last = folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"zero_pp_rank_1_mp_rank_00_optim_states.pt: cannot be read"):
        read_directory(tmp_path)
    last.unlink()
    with pytest.raises(CheckpointError, match=r"2 ranks saved it, and 1 \*_optim_states.pt are there"):
        read_directory(tmp_path)


def test_a_rank_of_another_save_is_found(tmp_path: Path) -> None:
    folder = stage1(tmp_path)
    name = folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    held = torch.load(name, weights_only=False)
    held["optimizer_state_dict"]["param_slice_mappings"][0]["a"].numel = 10
    torch.save(held, name)
    with pytest.raises(CheckpointError, match=r"14 elements of fp32 of a, whose shape is \[3, 5\]"):
        read_directory(tmp_path)
    del held["optimizer_state_dict"]["param_slice_mappings"]
    torch.save(held, name)
    with pytest.raises(CheckpointError, match=r"not laid out as expected: KeyError: 'param_slice_mappings'"):
        read_directory(tmp_path)


@pytest.mark.parametrize("make", [stage1, stage3])
def test_a_group_that_ends_too_soon_is_said_with_its_file(tmp_path: Path, make: Any) -> None:
    [path] = make(tmp_path).glob("*zero_pp_rank_1_mp_rank_00_optim_states.pt")
    held = torch.load(path, weights_only=False)
    part = held["optimizer_state_dict"]
    groups = part["fp32_flat_groups" if make is stage3 else "single_partition_of_fp32_groups"]
    groups[0] = groups[0][:9].clone()
    torch.save(held, path)
    with pytest.raises(CheckpointError, match=rf"{path.name}: b is elements \d+ to 1[12] of a group that has 9"):
        read_directory(tmp_path)


KINDS = {
    "mp_rank_01_model_states.pt": "holds mp_rank_01_model_states.pt: tensor, pipeline or expert parallel",
    "layer_00-model_00-model_states.pt": "holds layer_00-model_00-model_states.pt: tensor, pipeline or expert parallel",
    "offloaded_tensors": "holds offloaded_tensors: .* offloaded to NVMe",
}


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds_of_parallelism_are_refused(tmp_path: Path, name: str) -> None:
    (stage1(tmp_path) / name).mkdir()
    with pytest.raises(RequestError, match=KINDS[name]):
        read_directory(tmp_path)


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nowhere is no directory"):
        read_directory(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="has neither a file `latest` nor"):
        read_directory(tmp_path)
    folder = stage1(tmp_path)
    for path in folder.glob("*optim*"):
        path.unlink()
    with pytest.raises(RequestError, match="it was saved without ZeRO"):
        read_directory(tmp_path)


class TestFit:
    """A recipe that is not what trained the checkpoint, told before anything is written."""

    def imported(self, tmp_path: Path, **changes: Any) -> Any:
        from tiny_text_model import tiny_recipe

        from tlcore.train.deepspeed_import import import_deepspeed

        stage1(tmp_path / "ds")
        return import_deepspeed(tmp_path / "ds", tiny_recipe(tmp_path, **changes))

    def test_another_model(self, tmp_path: Path) -> None:
        with pytest.raises(
            CheckpointIncompatible, match=r"parameter bert\.embeddings\.word_embeddings\.weight is not there"
        ):
            self.imported(tmp_path)
        assert not list((tmp_path / "store").rglob("*")), "nothing must be written before it fits"

    def test_too_few_steps(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="stands at step 4, and the recipe trains 1 in all"):
            self.imported(tmp_path, train__global_batch_size=32)

    def test_another_precision(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match=r"was trained in fp16, and train\.precision is bf16"):
            self.imported(tmp_path, train__precision="bf16")
