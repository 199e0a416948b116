"""The checkpoint bench's arithmetic: figures from samples, their targets, and what is counted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.bench.checkpoint import raw
from jobs.bench.checkpoint.__main__ import _options, summarize
from jobs.bench.checkpoint.account import CountingStore, Usage, grown, in_memory
from jobs.bench.checkpoint.figures import TARGETS, Figure, figures, gpu_figures, peer_figures, table

sys.path.insert(0, str(Path(__file__).parent))
from memory_store import MemoryStore

SAMPLES = {
    "memcpy_s": [0.1, 0.2],
    "stall_eager_s": [0.11, 0.22],
    "raw_put_s": [1.0, 4.0],
    "save_s": [2.0, 8.0],
    "stall_lazy_s": [0.001, 0.005, 0.002],
    "disk_bytes_written": [0.0, 4096.0, 0.0],
    "reshard.a.raw_get_sha_s": [1.0],
    "reshard.a.restore_s": [2.0],
    "reshard.a.bytes_over_state": [1.0],
    "reshard.b.raw_get_sha_s": [1.0],
    "reshard.b.restore_s": [1.25],
    "reshard.b.bytes_over_state": [1.2],
    "peers.tlcore.stall_s": [0.1, 0.1],
    "peers.ray_sync.stall_s": [10.0, 10.0],
    "peers.ray_sync.save_s": [10.0, 10.0],
    "peers.raw.put_s": [1.0, 1.0],
}


def test_ratios_are_of_pairs() -> None:
    found = figures(SAMPLES)
    assert found["stall_eager_over_memcpy"].value == pytest.approx(1.1)
    assert found["save_over_raw_put"].value == pytest.approx(0.5)
    assert found["stall_over_ray_sync"].value == pytest.approx(0.01)
    assert found["stall_lazy_s"] == Figure(0.002, 0.001, 0.005, 3)


def test_bytes_of_all_saves_are_added_up() -> None:
    assert figures(SAMPLES)["disk_bytes_written"].value == 4096


def test_the_worst_topology_counts() -> None:
    found = figures(SAMPLES)
    assert found["reshard_over_raw_get"].value == pytest.approx(0.5)
    assert found["reshard_bytes_over_state"].value == pytest.approx(1.2)


def test_what_was_not_sampled_is_absent() -> None:
    assert not figures({"memcpy_s": [0.1]})


def test_one_round_has_no_spread() -> None:
    figure = Figure.ratio([1.0], [2.0])
    assert figure == Figure(0.5, None, None, 1)
    assert str(figure) == "0.5"


def test_unequal_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        Figure.ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("key", "value", "met"),
    [
        ("stall_eager_over_memcpy", 1.1, True),
        ("stall_eager_over_memcpy", 1.11, False),
        ("save_over_raw_put", 0.9, True),
        ("save_over_raw_put", 0.89, False),
        ("restore_over_bare_get", 0.1, None),
    ],
)
def test_targets(key: str, value: float, met: bool | None) -> None:
    assert TARGETS[key].met(value) is met


def test_each_peer_has_its_figures() -> None:
    peers = peer_figures(SAMPLES)
    assert set(peers) == {"tlcore", "ray_sync"}
    assert peers["ray_sync"]["save_over_raw_put"]["value"] == pytest.approx(0.1)
    assert "restore_over_raw_get" not in peers["ray_sync"]


def test_a_gpus_rows_have_names_of_their_own() -> None:
    found = gpu_figures({**SAMPLES, "d2h_gb_per_s": [50.0]})
    assert "stall_eager_over_memcpy" not in found
    assert found["gpu_stall_over_pinned_copy"].value == pytest.approx(1.1)
    assert found["gpu_d2h_gb_per_s"].value == 50


def test_the_table_says_what_is_met() -> None:
    text = table(figures(SAMPLES), TARGETS, {"clone_s": "not measured: why"})
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert " met " in lines["stall_eager_over_memcpy"]
    assert "NOT MET" in lines["save_over_raw_put"]
    assert "not measured: why" in lines["clone_s"]


def test_the_largest_size_stands_at_top_level() -> None:
    small = {**SAMPLES, "save_s": [1.0, 4.0]}
    report = summarize({"0.25": (small, {}), "0.9": (SAMPLES, {})}, {"x": "not measured: y"}, "cpu")
    assert report["save_over_raw_put"] == pytest.approx(0.5)
    assert report["sizes"]["0.25"]["figures"]["save_over_raw_put"]["value"] == pytest.approx(1.0)
    assert report["targets"]["save_over_raw_put"]["met"] is False
    assert report["not_measured"] == {"x": "not measured: y"}


def test_unknown_sections_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _options(["--only", "save,nothing"])
    assert "'nothing' is neither a section" in capsys.readouterr().err


def test_quick_is_small_unless_told_otherwise() -> None:
    assert (_options(["--quick"]).sizes, _options(["--quick"]).rounds) == ((0.25,), 2)
    assert (_options([]).sizes, _options(["--rounds", "3"]).rounds) == ((0.25, 0.9), 3)


def test_the_store_is_counted_through() -> None:
    store = CountingStore(MemoryStore())
    store.put("cas/aa/bb", np.zeros(10, np.float32))
    store.put("trials/t/x.json", b"12345")
    assert store.put_if_absent("trials/t/step-00000001/MANIFEST.json", b"123")
    store.get_into("cas/aa/bb", 4, [memoryview(bytearray(8))])
    store.get("trials/t/x.json")
    assert store.counts == {
        "put_requests": 3,
        "chunk_bytes": 40,
        "document_bytes": 8,
        "get_requests": 2,
        "read_bytes": 13,
    }
    assert list(store.committed_at) == ["trials/t/step-00000001/MANIFEST.json"]


def test_files_written_are_counted_by_the_kernel(tmp_path: Path) -> None:
    before = Usage.now()
    (tmp_path / "state").write_bytes(b"x" * 100_000)
    (tmp_path / "state").unlink()
    written = Usage.now().since(before).file_bytes
    assert (written < 100_000) is in_memory(tmp_path)


def test_files_that_grew() -> None:
    assert grown({"a": 10, "b": 5}, {"a": 25, "b": 3, "c": 7}) == 22


class Connections:
    """In the place of tlcore's own connections to a store: fills with sevens, and refuses the first `refused` requests."""

    def __init__(self, refused: int = 0) -> None:
        self.asked: list[tuple[str, int, int]] = []
        self._refused = refused

    def fill(self, client: object, path: str, start: int, parts: list[memoryview]) -> bool:
        (into,) = parts
        self.asked.append((path, start, len(into)))
        into[:] = b"\7" * len(into)
        return len(self.asked) > self._refused


@pytest.mark.parametrize("hashed", [False, True])
def test_raw_get_reads_every_object_through_the_connections_that_restores_use(hashed: bool) -> None:
    objects = [(f"cas/{number}", 100 + number) for number in range(40)]
    connections = Connections()
    assert raw.raw_get(connections, None, objects, hashed) > 0
    assert sorted(connections.asked) == sorted((key, 0, size) for key, size in objects)
    assert raw.raw_get(connections, None, [], hashed) >= 0


def test_raw_get_is_no_limit_where_objects_do_not_come() -> None:
    assert raw.raw_get(Connections(refused=2), None, [("a", 10)], True) > 0
    with pytest.raises(RuntimeError, match=r"a \(10 bytes\) did not come in 3 requests"):
        raw.raw_get(Connections(refused=40), None, [("a", 10)], True)
