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
