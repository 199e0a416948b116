"""What the checkpoint bench measures, section by section: which operations, in what order, on which ranks.

Owns the order: operations that are compared are done in one round, every other round backwards, so that a drift of the machine
falls on both sides. Called by `__main__.py`; the operations are those of `rank.py`.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs.bench.checkpoint.account import CountingStore
from jobs.bench.checkpoint.figures import Samples
from jobs.bench.checkpoint.group import Group
from jobs.bench.ranks import BenchFailed
from tlcore.checkpoint import read_manifest
from tlcore.checkpoint.clone import clone_checkpoint
from tlcore.storage import EmbeddedStore, open_store

MODEL = "m"
GROUPS = {"pair": 2, "one": 1, "three": 3, "ray": 2, "gpu": 1}
RESHARDS: Mapping[str, tuple[str, int]] = {
    "zero3_x2": ("pair", 3),
    "zero2_x1": ("one", 2),
    "zero3_x3": ("three", 3),
}
"""Topologies that a checkpoint of ZeRO-2 on two ranks is restored to: name -> ranks, stage."""
QUICK_RESHARDS = ("zero3_x2", "zero2_x1")
WIPE_BYTES = 6e9
"""What the store may hold before it is emptied between rounds."""
LORA_WIDTH, LORA_LAYERS, LORA_RANK = 1024, 13, 512

Answers = list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """How much is measured. `interval_s`: between two saves in the section that trains beside them."""

    rounds: int
    peer_rounds: int
    interval_s: float
    width: int
    reshards: tuple[str, ...]
    peers: tuple[str, ...]
    device: str


def most(answers: Sequence[Mapping[str, Any]], key: str) -> float:
    """The slowest rank's: the others wait for it."""
    return max(float(each[key]) for each in answers if each[key] is not None)


class Bench:
    """The ranks and the store of one run of the bench, and the samples taken of one state size at a time."""

    def __init__(self, directory: Path, url: str, plan: Plan) -> None:
        self._directory, self._url, self.plan = directory, url, plan
        self._groups: dict[str, Group] = {}
        self._main = "gpu" if plan.device == "cuda" else "pair"
        self.samples: Samples = defaultdict(list)
        self.counts: dict[str, Any] = {}
        self._state_bytes = 0.0
        self._saved: dict[str, Any] = {}

    def close(self) -> None:
        """End the ranks."""
        for name in list(self._groups):
            self._end(name)

    # -- ranks, rounds and the store --

    def group(self, name: str) -> Group:
        """The ranks of this name, started at first need, with the present model built."""
        if name not in self._groups:
            settings = {"url": self._url, "width": self.plan.width, "scratch": str(self._directory / name)}
            (self._directory / name).mkdir(exist_ok=True)
            launcher = "jobs.bench.checkpoint.ray_train" if name == "ray" else None
            log = self._directory / f"{name}.log"
            self._groups[name] = Group(name, settings, GROUPS[name], log, launcher)
            say(f"starting {GROUPS[name]} rank(s): {name}")
            self._groups[name].connect()
        return self._groups[name]

    def _end(self, name: str) -> None:
        """Give the ranks' memory back: a small machine has no room for several groups beside the store."""
        self._groups.pop(name).close()

    def begin(self, state_bytes: float) -> None:
        """Take up a state size: build its model on the main ranks, and warm up what is measured there."""
        self.samples, self.counts, self._saved, self._state_bytes = defaultdict(list), {}, {}, state_bytes
        self._build(self._main, MODEL, 2)
        step_s = min(most(self._train(), "seconds") for _ in range(3))
        self.counts["step_s"] = round(step_s, 4)
        self._save("eager")

    def end(self) -> None:
        """Give the models of this size back, and end all ranks but those that the next size begins with."""
        for name in [name for name in self._groups if name != self._main]:
            self._end(name)
        self.group(self._main).ask("drop_all")
        self.wipe()

    def _build(self, group: str, model: str, stage: int, **more: Any) -> Answers:
        return self.group(group).ask("build", model=model, state_bytes=self._state_bytes, stage=stage, **more)

    def rounds(self, *operations: Callable[[], None], count: int | None = None) -> None:
        """Do every operation once a round, every other round backwards."""
        count = count or self.plan.rounds
        for turn in range(count):
            for operation in operations[:: 1 if turn % 2 == 0 else -1]:
                operation()
            say(f"  round {turn + 1} of {count}")
            self.wipe(WIPE_BYTES)

    def wipe(self, above_bytes: float = 0.0) -> None:
        """Empty the store when it holds more than that. The embedded one's address and keys stay."""
        embedded = self._url.startswith("s3://")
        data = EmbeddedStore().directory / "data" if embedded else Path(self._url.removeprefix("file://"))
        if sum(path.stat().st_size for path in data.rglob("*") if path.is_file()) <= above_bytes:
            return
        self._saved = {}
        if not embedded:
            shutil.rmtree(data)
            return
        EmbeddedStore().down()
        shutil.rmtree(data)
        EmbeddedStore().up()
        for group in self._groups.values():
            group.ask("touch")

    def _train(self, steps: int = 1) -> Answers:
        return self.group(self._main).ask("train", model=MODEL, steps=steps)

    def _save(self, snapshot: str) -> Answers:
        """One save of fresh state, training standing still."""
        self._train()
        answers = self.group(self._main).ask("save", model=MODEL, snapshot=snapshot)
        self._saved = {"trial": answers[0]["trial"], "step": answers[0]["step"]}
        return answers

    def _checkpoint(self) -> dict[str, Any]:
        """A committed checkpoint of the present model to read back."""
        if not self._saved:
            self._save("eager")
        return self._saved

    # -- sections --

    def save(self) -> None:
        """Eager saves beside the memory copy, raw PUT, and PUT through the storage layer alone."""
        main = self.group(self._main)
        self._note_totals(self._save("eager"))

        def eager() -> None:
            self._train()
            copied = most(main.ask("memcpy", model=MODEL), "seconds")
            answers = self._save("eager")
            self.samples["memcpy_s"].append(copied)
            self.samples["stall_eager_s"].append(most(answers, "stall_s"))
            self.samples["save_s"].append(most(answers, "save_s"))
            state = sum(each["state_bytes"] for each in answers)
            self.samples["d2h_gb_per_s"].append(state / most(answers, "stall_s") / 1e9)
            self.samples["client_cpu_s_per_gb"].append(sum(each["cpu_s"] for each in answers) / state * 1e9)
            self.samples["snapshot_cpu_s_per_gb"].append(sum(each["snapshot_cpu_s"] for each in answers) / state * 1e9)
            self.samples["disk_bytes_written"].append(sum(each["file_bytes"] for each in answers))

        def raw() -> None:
            self.samples["raw_put_s"].append(most(main.ask("raw_put", model=MODEL, through="client"), "seconds"))

        def path() -> None:
            self.samples["put_path_s"].append(most(main.ask("raw_put", model=MODEL, through="store"), "seconds"))

        if self.plan.device == "cuda":
            self.rounds(eager)
        else:
            main.ask("raw_put", model=MODEL, through="client")
            self.rounds(raw, eager, path)

    def _note_totals(self, answers: Answers) -> None:
        keys = (
            "put_requests",
            "get_requests",
            "list_requests",
            "delete_requests",
            "chunk_bytes",
            "document_bytes",
            "state_bytes",
        )
        self.counts["per_save"] = {key: sum(int(each.get(key, 0)) for each in answers) for key in keys}

    def lazy(self) -> None:
        """Lazy saves while training goes on."""
        main = self.group(self._main)
        main.ask("release", model=MODEL)
        main.ask("save", model=MODEL, snapshot="lazy")

        def one() -> None:
            answers = main.ask("train_beside", model=MODEL, snapshot="lazy", steps=self._steps())
            step_s = most(answers, "step_s")
            self.samples["stall_lazy_s"].append(most(answers, "blocked_s"))
            self.samples["stall_lazy_over_step"].append(most(answers, "blocked_s") / step_s)

        self.rounds(one)

    def blocked(self) -> None:
        """Training with a save at the start of every interval, beside training without."""
        main, steps = self.group(self._main), self._steps()
        main.ask("release", model=MODEL)
        self._save("eager")
        self.counts["interval_s"] = self.plan.interval_s

        def plain() -> None:
            answers = main.ask("train_beside", model=MODEL, snapshot=None, steps=steps)
            self.samples["steps_per_s_plain"].append(steps / most(answers, "seconds"))

        def saving() -> None:
            answers = main.ask("train_beside", model=MODEL, snapshot="eager", steps=steps)
            self.samples["steps_per_s_saving"].append(steps / most(answers, "seconds"))
            self.samples["blocked_over_wall"].append(most(answers, "blocked_s") / most(answers, "seconds"))

        self.rounds(plain, saving)
        self._saved = {}  # retention has deleted it by now

    def _steps(self) -> int:
        step_s: float = self.counts["step_s"]
        return max(2, round(self.plan.interval_s / step_s))

    def restore(self) -> None:
        """Restore on the ranks that saved, beside raw ranged GET with and without SHA-256."""
        self._restores("pair", MODEL, "", ("raw_get_sha_s", "raw_get_s", "restore_s"))

    def _restores(self, group: str, model: str, prefix: str, names: Sequence[str]) -> None:
        ranks = self.group(group)

        def one(name: str) -> None:
            at = self._checkpoint()
            if name == "restore_s":
                answers = ranks.ask("restore", model=model, **at)
                self.samples[prefix + name].append(most(answers, "restore_s"))
                state = sum(int(each["state_bytes"]) for each in answers)
                read = sum(int(each.get("read_bytes", 0)) for each in answers)
                self.samples[prefix + "bytes_over_state"].append(read / state)
                self.counts[f"{prefix}per_restore"] = {
                    "get_requests": sum(int(each.get("get_requests", 0)) for each in answers),
                    "read_bytes": read,
                    "cpu_s": round(sum(each["cpu_s"] for each in answers), 3),
                }
            else:
                answers = ranks.ask("raw_get", model=model, hashed=name == "raw_get_sha_s", **at)
                self.samples[prefix + name].append(most(answers, "seconds"))

        at = self._checkpoint()
        ranks.ask("restore", model=model, **at)
        self._same_state(group, model)
        ranks.ask("raw_get", model=model, hashed=True, **at)
        self.rounds(*(partial(one, name) for name in names))

    def _same_state(self, group: str, model: str) -> None:
        """Restored state has the sum of the saved one, or the bench measures nothing. Raises BenchFailed."""
        if model != MODEL:
            restored = sum(each["sum"] for each in self.group(group).ask("fingerprint", model=model))
            self.group(self._main).ask("restore", model=MODEL, **self._checkpoint())
            saved = sum(each["sum"] for each in self.group(self._main).ask("fingerprint", model=MODEL))
            if restored != saved:
                raise BenchFailed(
                    f"{group}: what was restored differs from what was saved ({restored} against {saved})"
                )

    def reshard(self) -> None:
        """Restore at other stages and world sizes, beside raw GET of the same bytes on the same ranks."""
        for case in self.plan.reshards:
            group, stage = RESHARDS[case]
            model = f"{MODEL}{stage}-{group}"
            self._build(group, model, stage)
            self._restores(group, model, f"reshard.{case}.", ("raw_get_sha_s", "restore_s"))
            if group == self._main:
                self.group(group).ask("drop", model=model)
            else:
                self._end(group)

    def lora(self) -> None:
        """The second save of a model with 50 MB of adapters on a frozen base; bytes, no time."""
        sizes = {"layers": LORA_LAYERS, "width": LORA_WIDTH, "adapter_rank": LORA_RANK}
        pair = self.group("pair")
        built = pair.ask("build", model="lora", state_bytes=0, stage=2, **sizes)
        first = pair.ask("save", model="lora", snapshot="eager")
        pair.ask("train", model="lora", steps=1)
        second = pair.ask("save", model="lora", snapshot="eager")
        pair.ask("drop", model="lora")
        trained = 12 * int(built[0]["trained_elements"])
        again = sum(int(each["chunk_bytes"]) for each in second)
        self.samples["lora_repeat_over_trainable"].append(again / trained)
        self.counts["lora"] = {
            "adapter_bytes": trained // 3,
            "first_save_bytes": sum(int(each["chunk_bytes"]) for each in first),
            "second_save_bytes": again,
            "second_save_document_bytes": sum(int(each["document_bytes"]) for each in second),
        }

    def clone(self) -> None:
        """A clone of the newest checkpoint, made by this process."""
        at = self._checkpoint()
        store = CountingStore(open_store(self._url))
        manifest = read_manifest(store, at["trial"], at["step"])
        for number in range(max(3, self.plan.rounds)):
            counts = store.counts.copy()
            began = time.monotonic()
            clone_checkpoint(store, manifest, f"clone{number}")
            self.samples["clone_s"].append(time.monotonic() - began)
            counted = store.counts - counts
            self.samples["clone_bytes"].append(sum(value for key, value in counted.items() if key.endswith("_bytes")))

    def peers(self) -> None:
        """Every peer's save and restore, beside tlcore's and raw PUT and GET."""
        main = self.group(self._main)

        def ours() -> None:
            answers = self._save("eager")
            self.samples["peers.tlcore.save_s"].append(most(answers, "save_s"))
            self.samples["peers.tlcore.stall_s"].append(most(answers, "stall_s"))
            restored = main.ask("restore", model=MODEL, **self._checkpoint())
            self.samples["peers.tlcore.restore_s"].append(most(restored, "restore_s"))

        def raw() -> None:
            self._train()
            self.samples["peers.raw.put_s"].append(most(main.ask("raw_put", model=MODEL, through="client"), "seconds"))
            answers = main.ask("raw_get", model=MODEL, hashed=True, **self._checkpoint())
            self.samples["peers.raw.get_s"].append(most(answers, "seconds"))

        for name in {"ray" if peer.startswith("ray_") else "pair" for peer in self.plan.peers} - {"pair"}:
            self._build(name, MODEL, 2)
        peers = [partial(self._peer, peer) for peer in self.plan.peers]
        self.rounds(raw, ours, *peers, count=self.plan.peer_rounds)

    def _peer(self, peer: str) -> None:
        group = self.group("ray" if peer.startswith("ray_") else "pair")
        group.ask("train", model=MODEL, steps=1)
        answers = group.ask("peer", model=MODEL, peer=peer)
        for key in ("save_s", "stall_s", "restore_s"):
            self.samples[f"peers.{peer}.{key}"].append(most(answers, key))
        self.samples[f"peers.{peer}.disk_bytes_written"].append(sum(each["file_bytes"] for each in answers))
        state = sum(each["state_bytes"] for each in answers)
        self.samples[f"peers.{peer}.cpu_s_per_gb"].append(sum(each["cpu_s"] for each in answers) / state * 1e9)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
