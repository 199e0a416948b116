"""From what was measured to the figures of the checkpoint bench, each with its spread, its target, and whether that is met.

Owns the arithmetic, the targets and the table for people; measures nothing. Called by `__main__.py`.

`Samples` are lists by name, in the order of rounds; those that are compared were taken in the same round. A ratio is the geometric
mean of its pairs with a 95 % interval, anything else the median with least and most. One round has no spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.bench.intervals import paired_ratio

Samples = dict[str, list[float]]

NO_GPU = "not measured: no GPU"


@dataclass(frozen=True)
class Target:
    """`most` or `least` is the bound; `says` what the figure is."""

    says: str
    most: float | None = None
    least: float | None = None

    def met(self, value: float) -> bool | None:
        if self.most is not None:
            return value <= self.most
        return value >= self.least if self.least is not None else None

    def __str__(self) -> str:
        if self.most is not None:
            return f"<= {self.most:g}"
        return f">= {self.least:g}" if self.least is not None else "-"


TARGETS: Mapping[str, Target] = {
    "stall_eager_over_memcpy": Target("eager stall over the copy of the same bytes in memory", most=1.10),
    "stall_over_ray_sync": Target("eager stall over DeepSpeed local save + Ray Train SYNC", most=0.05),
    "stall_lazy_s": Target("lazy stall, seconds", most=0.010),
    "stall_lazy_over_step": Target("lazy stall over a step while saving", most=0.01),
    "save_over_raw_put": Target("raw concurrent PUT's time over the save's, hashing and commit included", least=0.90),
    "put_path_over_raw_put": Target("the same without hashing and commit: the storage layer alone", least=0.95),
    "client_cpu_s_per_gb": Target("processor seconds of the saving ranks' background work per GB", most=1.2),
    "disk_bytes_written": Target("bytes written to files by the ranks during all saves", most=0),
    "restore_over_raw_get": Target("time of raw ranged GET + SHA-256 over the restore's, same topology", least=0.90),
    "restore_over_bare_get": Target("the same over raw ranged GET without SHA-256"),
    "reshard_over_raw_get": Target("as restore_over_raw_get, other stage or world size; the worst case", least=0.85),
    "reshard_bytes_over_state": Target("bytes read by all ranks over bytes of state; the worst case", most=1.05),
    "blocked_over_wall": Target("training blocked by saves over wall time, default snapshots", most=0.01),
    "steps_ratio_while_saving": Target("steps/s with saves over steps/s without"),
    "lora_repeat_over_trainable": Target("second save's new bytes over 12 bytes per trained parameter", most=1.02),
    "clone_s": Target("clone of a checkpoint, seconds", most=0.100),
    "clone_bytes": Target("bytes that a clone writes and reads", most=float(1 << 20)),
}
GPU_TARGETS: Mapping[str, Target] = {
    "gpu_stall_over_pinned_copy": Target("eager stall over the copy of the same bytes into pinned memory", most=1.10),
    "gpu_d2h_gb_per_s": Target("state over eager stall, GB/s"),
    "gpu_steps_ratio_while_saving": Target("steps/s with eager saves over steps/s without", least=0.98),
}
"""What the rows are called that only a GPU gives."""


@dataclass(frozen=True)
class Figure:
    """One measured quantity. `low` and `high` are the 95 % interval of a ratio, else least and most; None with one sample."""

    value: float
    low: float | None
    high: float | None
    samples: int

    @classmethod
    def ratio(cls, over: Sequence[float], under: Sequence[float]) -> Figure:
        """Of pairs. Raises ValueError on unequal lengths or none."""
        if len(over) == len(under) == 1:
            return cls(over[0] / under[0], None, None, 1)
        found = paired_ratio(over, under)
        return cls(found.value, found.low, found.high, found.pairs)

    @classmethod
    def median(cls, values: Sequence[float]) -> Figure:
        """Raises StatisticsError when there are none."""
        one = len(values) < 2
        return cls(statistics.median(values), None if one else min(values), None if one else max(values), len(values))

    def to_dict(self) -> dict[str, Any]:
        return {name: _rounded(value) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        spread = "" if self.low is None or self.high is None else f" [{_shown(self.low)}, {_shown(self.high)}]"
        return _shown(self.value) + spread


RATIOS = {
    "stall_eager_over_memcpy": ("stall_eager_s", "memcpy_s"),
    "save_over_raw_put": ("raw_put_s", "save_s"),
    "put_path_over_raw_put": ("raw_put_s", "put_path_s"),
    "stall_over_ray_sync": ("peers.tlcore.stall_s", "peers.ray_sync.stall_s"),
    "restore_over_raw_get": ("raw_get_sha_s", "restore_s"),
    "restore_over_bare_get": ("raw_get_s", "restore_s"),
    "steps_ratio_while_saving": ("steps_per_s_saving", "steps_per_s_plain"),
}
MEDIANS = (
    *("stall_lazy_s", "stall_lazy_over_step", "client_cpu_s_per_gb", "blocked_over_wall"),
    *("lora_repeat_over_trainable", "clone_s", "clone_bytes"),
)


def figures(samples: Mapping[str, Sequence[float]]) -> dict[str, Figure]:
    """Every figure that these samples give, by its key."""
    found = {
        key: Figure.ratio(samples[over], samples[under])
        for key, (over, under) in RATIOS.items()
        if samples.get(over) and samples.get(under)
    }
    found |= {key: Figure.median(samples[key]) for key in MEDIANS if samples.get(key)}
    if samples.get("disk_bytes_written"):
        total = sum(samples["disk_bytes_written"])
        found["disk_bytes_written"] = Figure(total, None, None, len(samples["disk_bytes_written"]))
    found |= _resharded(samples)
    return {key: found[key] for key in TARGETS if key in found}


def gpu_figures(samples: Mapping[str, Sequence[float]]) -> dict[str, Figure]:
    """The same of samples that were taken on a GPU; rows that mean something else there have names of their own."""
    found = figures(samples)
    renamed = {
        "stall_eager_over_memcpy": "gpu_stall_over_pinned_copy",
        "steps_ratio_while_saving": "gpu_steps_ratio_while_saving",
    }
    # The store is a directory there, and the writing ranks write it.
    found = {renamed.get(key, key): figure for key, figure in found.items() if key != "disk_bytes_written"}
    if samples.get("d2h_gb_per_s"):
        found["gpu_d2h_gb_per_s"] = Figure.median(samples["d2h_gb_per_s"])
    return found


def _resharded(samples: Mapping[str, Sequence[float]]) -> dict[str, Figure]:
    """The worst case of the topologies restored to."""
    cases = [
        name.removesuffix(".restore_s")
        for name in samples
        if name.startswith("reshard.") and name.endswith(".restore_s")
    ]
    if not cases:
        return {}
    times = [Figure.ratio(samples[f"{case}.raw_get_sha_s"], samples[f"{case}.restore_s"]) for case in cases]
    read = [Figure.median(samples[f"{case}.bytes_over_state"]) for case in cases]
    return {
        "reshard_over_raw_get": min(times, key=lambda each: each.value),
        "reshard_bytes_over_state": max(read, key=lambda each: each.value),
    }


def peer_figures(samples: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Each peer's own figures: name -> save_s, stall_s, restore_s, and the ratios to raw PUT and GET of tlcore's bytes."""
    found: dict[str, dict[str, Any]] = {}
    for name in samples:
        kind, _, rest = name.partition(".")
        peer, _, quantity = rest.partition(".")
        if kind == "peers" and peer != "raw" and samples[name]:
            found.setdefault(peer, {})[quantity] = Figure.median(samples[name]).to_dict()
    for peer, row in found.items():
        for key, raw, own in (("save_over_raw_put", "put_s", "save_s"), ("restore_over_raw_get", "get_s", "restore_s")):
            over, under = samples.get(f"peers.raw.{raw}", ()), samples.get(f"peers.{peer}.{own}", ())
            if over and under:
                row[key] = Figure.ratio(over, under).to_dict()
    return found


def table(found: Mapping[str, Figure], targets: Mapping[str, Target], not_measured: Mapping[str, str]) -> str:
    """The figures for people."""
    lines = [f"{'figure':30}{'measured':34}{'target':>10}  {'':9}"]
    for key, target in targets.items():
        if key in found:
            met = {True: "met", False: "NOT MET", None: ""}[target.met(found[key].value)]
            lines.append(f"{key:30}{found[key]!s:34}{target!s:>10}  {met:9}{target.says}")
        elif key in not_measured:
            lines.append(f"{key:30}{not_measured[key]}")
    return "\n".join(lines)


def peer_table(peers: Mapping[str, Mapping[str, Any]]) -> str:
    """The peers for people; medians, and ratios to raw PUT and GET."""
    columns = ("save_s", "stall_s", "restore_s", "save_over_raw_put", "restore_over_raw_get")
    lines = [f"{'peer':16}" + "".join(f"{column:>22}" for column in columns)]
    for peer, row in peers.items():
        cells = [_shown(row[column]["value"]) if column in row else "-" for column in columns]
        lines.append(f"{peer:16}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.5g}")


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
