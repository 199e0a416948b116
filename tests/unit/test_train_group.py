"""Which device a rank is on before it first talks to the others."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tlcore.train import group

pytestmark = pytest.mark.unit


class Reached(Exception):
    """The process group was asked for."""


def test_a_rank_takes_its_own_gpu_before_the_first_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    def init(backend: str, **_: object) -> None:
        told.append(backend)
        raise Reached

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(Reached), group.process_group():
        pass
    assert told == [1, "nccl"]


@pytest.mark.parametrize(("share", "fraction"), [("0.5", 0.5 - 600 / 16384), ("0.01", 0.0), (None, None)])
def test_a_share_of_a_gpu_is_all_that_a_worker_takes(
    share: str | None, fraction: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    total = type("Properties", (), {"total_memory": 16 << 30})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: total)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: told.append(part))
    monkeypatch.delenv("TLCORE_GPU_SHARE", raising=False)
    if share is not None:
        monkeypatch.setenv("TLCORE_GPU_SHARE", share)
    assert group.rank_device() == torch.device("cuda", 0)
    assert told == ([] if fraction is None else [pytest.approx(fraction)])
