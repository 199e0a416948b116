"""The peers of the checkpoint bench, each used as its documentation shows, on the same ranks' state.

Owns one save and one restore of each. Called by `rank.py`, the Ray ones inside a worker of a real Ray Train run.

    ray_sync, ray_async   DeepSpeed's save_checkpoint into a local directory per rank, then `ray.train.report` of it; restored by
                          `Checkpoint.as_directory` and load_checkpoint
    dcp_fsspec            torch.distributed.checkpoint with FsspecWriter and FsspecReader, its defaults
    torch_save_s3fs       torch.save of a rank's state into a file that s3fs opened
    s3torchconnector      torch.distributed.checkpoint with S3StorageWriter and S3StorageReader, their defaults

torch's peers save exactly the tensors that tlcore saves, DeepSpeed what it always does. Stall is how long training stands still,
and `save_s` lasts until everything is durable.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver

from jobs.bench.checkpoint.account import Usage
from jobs.bench.checkpoint.model import Trained
from jobs.bench.checkpoint.raw import live_tensors
from tlcore.engine import state
from tlcore.storage import EmbeddedStore
from tlcore.storage.open import fsspec_options

State = dict[str, torch.Tensor]


def state_of(trained: Trained) -> State:
    """This rank's masters and moments, live, under names that no other rank uses."""
    intervals = state.trained_intervals(trained.model.module, trained.model.stage)
    return {f"rank{dist.get_rank()}/{each.parameter}/{each.state}": each.values for each in intervals}


class Peers:
    """Saves and restores by every peer. `url`: below which all of them write; `scratch`: for DeepSpeed's local files."""

    def __init__(self, url: str, scratch: Path) -> None:
        self._url, self._scratch = url, scratch
        self._count = 0

    def measure(self, peer: str, trained: Trained) -> dict[str, Any]:
        """One save and one restore."""
        self._count += 1
        save, restore = getattr(self, peer)(trained, f"{self._url}/peers/{peer}-{self._count}")
        before = Usage.now()
        dist.barrier()
        began = time.monotonic()
        durable = save()
        stall_s = time.monotonic() - began
        if durable is not None:
            durable()
        save_s = time.monotonic() - began
        used = Usage.now().since(before)
        dist.barrier()
        began = time.monotonic()
        restore()
        restore_s = time.monotonic() - began
        state_bytes = sum(each.nbytes for each in live_tensors(trained))
        return {
            "save_s": save_s,
            "stall_s": stall_s,
            "restore_s": restore_s,
            "state_bytes": state_bytes,
            "file_bytes": used.file_bytes,
            "cpu_s": used.cpu_s,
        }

    def ray_sync(self, trained: Trained, _: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        from ray.train import CheckpointUploadMode

        return self._deepspeed_and_ray(trained, CheckpointUploadMode.SYNC)

    def ray_async(self, trained: Trained, _: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        from ray.train import CheckpointUploadMode

        return self._deepspeed_and_ray(trained, CheckpointUploadMode.ASYNC)

    def _deepspeed_and_ray(self, trained: Trained, mode: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        import ray.train

        engine: Any = trained.model.module
        local = tempfile.mkdtemp(dir=self._scratch)

        def durable() -> None:
            ray.train.get_all_reported_checkpoints()  # returns when every report has been taken up

        def save() -> Callable[[], None] | None:
            engine.save_checkpoint(local)
            checkpoint = ray.train.Checkpoint.from_directory(local)
            ray.train.report({"step": trained.step}, checkpoint=checkpoint, checkpoint_upload_mode=mode)
            return durable if mode is ray.train.CheckpointUploadMode.ASYNC else None

        def restore() -> None:
            shutil.rmtree(local, ignore_errors=True)  # ASYNC has removed it itself
            checkpoint = ray.train.get_all_reported_checkpoints()[-1].checkpoint
            with checkpoint.as_directory() as directory:
                path, _ = engine.load_checkpoint(directory)
            if path is None:
                raise RuntimeError(f"DeepSpeed found no checkpoint in {checkpoint}")

        return save, restore

    def dcp_fsspec(self, trained: Trained, place: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

        options = fsspec_options(place)

        def save() -> None:
            writer = FsspecWriter(place, **options)
            state_dict_saver.save(state_of(trained), storage_writer=writer, no_dist=False)

        def restore() -> None:
            reader = FsspecReader(place, **options)
            state_dict_loader.load(state_of(trained), storage_reader=reader, no_dist=False)

        return save, restore

    def torch_save_s3fs(self, trained: Trained, place: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        import s3fs

        files = s3fs.S3FileSystem(**fsspec_options(place))
        path = f"{place}/rank{dist.get_rank()}.pt"

        def save() -> None:
            with files.open(path, "wb") as file:
                torch.save(state_of(trained), file)

        def restore() -> None:
            with files.open(path, "rb") as file:
                held = torch.load(file, weights_only=True)
            for name, values in state_of(trained).items():
                values.copy_(held[name])

        return save, restore

    def s3torchconnector(self, trained: Trained, place: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        from s3torchconnector import S3ClientConfig
        from s3torchconnector._s3client import S3Client
        from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

        environment = EmbeddedStore().env()
        region, endpoint = environment["AWS_REGION"], environment["AWS_ENDPOINT_URL"]
        # Its client takes keys from the environment alone, and its writer no endpoint.
        os.environ |= {name: environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        config = S3ClientConfig(force_path_style=True)

        def reach(filed: Any) -> Any:
            filed.fs._client = S3Client(region=region, endpoint=endpoint, s3client_config=config)
            return filed

        def save() -> None:
            writer = reach(S3StorageWriter(region, place))
            state_dict_saver.save(state_of(trained), storage_writer=writer, no_dist=False)

        def restore() -> None:
            reader = reach(S3StorageReader(region, place))
            state_dict_loader.load(state_of(trained), storage_reader=reader, no_dist=False)

        return save, restore

    def touch(self) -> None:
        """After the store was emptied: put back the marker without which Ray Train takes its storage for another machine's."""
        import ray.train

        if ray.train.v2._internal.execution.context._train_context is not None:
            ray.train.get_context().get_storage()._create_validation_file()
