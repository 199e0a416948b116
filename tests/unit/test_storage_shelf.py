"""What a node keeps: once, whole or not at all, proved; and a checkpoint's weights there."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text_model import tiny_recipe

from tests.stored_model import store_model
from tlcore.checkpoint import CheckpointReader, read_manifest
from tlcore.models.stored import StoredWeights
from tlcore.models.weights import node_weights
from tlcore.storage import open_store
from tlcore.storage import shelf as shelf_module
from tlcore.storage.shelf import SEAL, UNUSED_S, shelved
from tlcore.tasks import build_task

pytestmark = pytest.mark.unit


class Source:
    def __init__(self) -> None:
        self.fetches = 0

    def __call__(self, folder: Path) -> None:
        self.fetches += 1
        (folder / "a").write_bytes(b"weights" * 100)
        (folder / "b").write_bytes(b"more")


def whole(folder: Path) -> bool:
    return (folder / "a").read_bytes() == b"weights" * 100 and (folder / "b").read_bytes() == b"more"


def test_who_comes_while_it_is_fetched_waits_and_nobody_fetches_again(tmp_path: Path) -> None:
    source, gate = Source(), threading.Event()

    def slow(folder: Path) -> None:
        assert gate.wait(30)
        source(folder)

    with ThreadPoolExecutor(4) as threads:
        folders = [threads.submit(shelved, tmp_path, "x", slow) for _ in range(4)]
        gate.set()
        assert all(whole(each.result(30)) for each in folders)
    assert source.fetches == 1


def test_what_fails_leaves_nothing_that_is_taken_for_whole_and_what_was_killed_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".x-killed"
    left.mkdir()
    (left / "a").write_bytes(b"wei")

    def fails(folder: Path) -> None:
        (folder / "a").write_bytes(b"wei")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        shelved(tmp_path, "x", fails)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert whole(shelved(tmp_path, "x", Source()))


@pytest.mark.parametrize("keep_time", [False, True])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "seal"])
def test_damage_is_found_and_fetched_anew(tmp_path: Path, damage: str, keep_time: bool) -> None:
    source = Source()
    folder = shelved(tmp_path, "x", source, boot="one")
    victim = folder / (SEAL if damage == "seal" else "a")
    times = victim.stat().st_atime_ns, victim.stat().st_mtime_ns
    if damage == "flip":
        victim.write_bytes(b"W" + victim.read_bytes()[1:])
    elif damage == "remove":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1])
    if keep_time and victim.exists():
        os.utime(victim, ns=times)
    # what a flipped bit leaves as it was is found after the next boot
    assert whole(shelved(tmp_path, "x", source, boot="two" if keep_time else "one"))
    assert source.fetches == 2


def test_digests_are_read_once_per_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source()
    shelved(tmp_path, "x", source, boot="one")
    shelved(tmp_path, "x", source, boot="two")

    def never(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(shelf_module, "_digest", never)
    assert whole(shelved(tmp_path, "x", source, boot="two"))
    assert source.fetches == 1


def test_what_nobody_asked_for_in_a_month_goes_with_the_next_fetch(tmp_path: Path) -> None:
    for name in ("old", "used"):
        shelved(tmp_path, name, Source())
    long_ago = (tmp_path / "old.proof").stat().st_mtime - UNUSED_S - 60
    for name in ("old", "used"):
        os.utime(tmp_path / f"{name}.proof", (long_ago, long_ago))
    for half, age_s in (
        (".lost-x", UNUSED_S + 60),
        (".fetched-x", 60),
    ):  # of a process that was killed, of one that runs
        (tmp_path / half).mkdir()
        os.utime(tmp_path / half, (long_ago + UNUSED_S - age_s,) * 2)
    shelved(tmp_path, "used", Source())
    shelved(tmp_path, "new", Source())
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [".fetched-x", "new", "used"]


@pytest.mark.parametrize("strategy", ["full", "lora"])
@pytest.mark.parametrize("part_bytes", [1 << 30, 1000])
def test_a_checkpoints_weights_on_the_node_are_those_in_the_store_and_are_read_once(
    tmp_path: Path, strategy: str, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tlcore.models import weights as weights_module
    from tlcore.transfer import apply_strategy

    monkeypatch.setattr(weights_module, "PART_BYTES", part_bytes)
    recipe = tiny_recipe(tmp_path, transfer__strategy=strategy)
    model: Any = build_task(recipe, facts={"labels": ["neg", "pos"]}).build_model(from_scratch=False)
    apply_strategy(model, recipe)
    store_model(open_store(f"file://{tmp_path}/run"), model, recipe)
    store = open_store(f"file://{tmp_path}/run")
    manifest = read_manifest(store, "t000", 5)
    reads: list[int] = []
    read_into = CheckpointReader.read_into

    def counted(self: CheckpointReader, pieces: Any) -> Any:
        reads.append(len(pieces))
        return read_into(self, pieces)

    monkeypatch.setattr(CheckpointReader, "read_into", counted)
    found: list[dict[str, torch.Tensor]] = []
    once = 0
    for _ in range(2):
        stored = StoredWeights(store, manifest, reader=node_weights(store, manifest, tmp_path / "shelf"))
        tensors = {name: torch.empty(stored.shape(name) or ()) for name in stored.names if "position_ids" not in name}
        stored.read_into(tensors)
        found.append(tensors)
        once = once or len(reads)
    assert len(reads) == once
    direct = StoredWeights(store, manifest)
    wanted = {name: torch.empty_like(tensor) for name, tensor in found[0].items()}
    direct.read_into(wanted)
    for tensors in found:
        assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
