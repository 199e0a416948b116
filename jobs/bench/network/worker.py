"""One save and one restore by one tool, in a process of its own: `__main__.py` starts it, tells it what to do and times nothing.

Owns the tools under comparison, each used as its users use it but with the same number of connections. A state is a dict
of float32 tensors; what a tool needs before it touches the network (local files, for the upload that Ray Train does) is
made before the clock starts.

    tlcore       CheckpointWriter and CheckpointReader
    dcp          torch DCP with FsspecWriter and FsspecReader over s3fs, as many threads as connections
    torch_save   torch.save and torch.load through an s3fs file
    s3torch      s3torchconnector's DCP writer and reader
    pyarrow      pyarrow.fs.copy_files of local files, with the arguments of Ray Train; nothing is loaded afterwards
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch.distributed.checkpoint.storage import StorageReader, StorageWriter

_PARAMETER_BYTES = 8_000_000
_FILES = 4
Arrays = dict[str, npt.NDArray[np.float32]]


class Tool(Protocol):
    """One way to keep a state. Built before the clock starts; `restore` fills the arrays it was built with."""

    def save(self) -> None: ...

    def restore(self) -> None: ...


def make_state(size_bytes: int) -> Arrays:
    """About `size_bytes` of random bits, as parameters of 8 MB."""
    draw = np.random.default_rng(0)
    count = max(1, round(size_bytes / _PARAMETER_BYTES))
    elements = size_bytes // count // 4
    return {
        f"layer.{n}.weight": draw.integers(0, 256, elements * 4, dtype=np.uint8).view(np.float32) for n in range(count)
    }


class Tlcore:
    def __init__(self, state: Arrays, asked: Mapping[str, Any]) -> None:
        from tlcore.checkpoint import CheckpointWriter, Piece, Row, WriterSettings
        from tlcore.storage import open_store

        self._store = open_store(asked["url"])
        self._connections = asked["connections"]
        self._pieces = [
            Piece(Row(name, "fp32", 0, data.size, "float32"), data.view(np.uint8)) for name, data in state.items()
        ]
        table = {
            name: {"shape": [data.size], "dtype": "float32", "trained": True, "tied_to": None}
            for name, data in state.items()
        }
        self._common = {"parameters": table, "scalars": {}, "zero_stage": 1}
        settings = WriterSettings(connections=self._connections)
        self._writer = CheckpointWriter(self._store, "bench", 0, 1, 1, settings)
        self._writer.prepare(self._pieces)

    def save(self) -> None:
        self._writer.save(1, self._pieces, self._common)
        self._writer.wait(1)

    def restore(self) -> None:
        from tlcore.checkpoint import CheckpointReader, read_manifest

        self._writer.close()
        manifest = read_manifest(self._store, "bench", 1)
        CheckpointReader(self._store, manifest, connections=self._connections).read_into(self._pieces)


class TorchSave:
    def __init__(self, state: Arrays, asked: Mapping[str, Any]) -> None:
        import s3fs
        import torch

        self._state, self._tensors = state, {name: torch.from_numpy(data) for name, data in state.items()}
        self._path = f"{asked['url']}/state.pt"
        self._files = s3fs.S3FileSystem(**_s3fs_options(asked))

    def save(self) -> None:
        import torch

        with self._files.open(self._path, "wb") as file:
            torch.save(self._tensors, file)

    def restore(self) -> None:
        import torch

        with self._files.open(self._path, "rb") as file:
            loaded = torch.load(file, weights_only=True)
        for name, data in self._state.items():
            data[:] = loaded[name].numpy()


class Distributed:
    """torch DCP through any writer and reader."""

    def __init__(self, state: Arrays, writer: StorageWriter, reader: StorageReader) -> None:
        import torch

        self._tensors = {name: torch.from_numpy(data) for name, data in state.items()}
        self._writer, self._reader = writer, reader

    def save(self) -> None:
        from torch.distributed.checkpoint.state_dict_saver import save

        save(self._tensors, storage_writer=self._writer, no_dist=True)

    def restore(self) -> None:
        from torch.distributed.checkpoint.state_dict_loader import load

        load(self._tensors, storage_reader=self._reader, no_dist=True)


class Dcp(Distributed):
    def __init__(self, state: Arrays, asked: Mapping[str, Any]) -> None:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

        options = _s3fs_options(asked)
        path = f"{asked['url']}/dcp"
        writer = FsspecWriter(
            path, single_file_per_rank=False, thread_count=asked["connections"], sync_files=False, **options
        )
        super().__init__(state, writer, FsspecReader(path, **options))


class S3Torch(Distributed):
    def __init__(self, state: Arrays, asked: Mapping[str, Any]) -> None:
        from s3torchconnector import S3ClientConfig, S3ReaderConstructor
        from s3torchconnector._s3client import S3Client
        from s3torchconnector._user_agent import UserAgent
        from s3torchconnector.dcp import S3StorageReader, S3StorageWriter
        from s3torchconnector.dcp.s3_file_system import S3FileSystem

        region, path = os.environ["AWS_REGION"], f"{asked['url']}/s3torch/"
        config = S3ClientConfig(force_path_style=True)
        # Its writer takes no endpoint, only its client does; the file system is therefore replaced by an equal one.
        client = S3Client(
            region=region, endpoint=os.environ["AWS_ENDPOINT_URL"], user_agent=UserAgent(), s3client_config=config
        )
        writer = S3StorageWriter(
            region, path, s3client_config=config, thread_count=asked["connections"], single_file_per_rank=False
        )
        writer.fs = S3FileSystem(region, s3_client=client)
        reads = S3ReaderConstructor.dcp_optimized()
        reader = S3StorageReader(region, path, s3client_config=config, reader_constructor=reads)
        reader.fs = S3FileSystem(region, s3_client=client, reader_constructor=reads)
        super().__init__(state, writer, reader)


class PyArrow:
    def __init__(self, state: Arrays, asked: Mapping[str, Any]) -> None:
        import pyarrow
        from pyarrow.fs import LocalFileSystem, S3FileSystem

        pyarrow.set_io_thread_count(asked["connections"])
        self._local, self._state = LocalFileSystem(), state
        scheme, _, host = os.environ["AWS_ENDPOINT_URL"].partition("://")
        self._remote = S3FileSystem(
            endpoint_override=host,
            scheme=scheme,
            region=os.environ["AWS_REGION"],
            access_key=os.environ["AWS_ACCESS_KEY_ID"],
            secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        )
        self._path = asked["url"].removeprefix("s3://") + "/pyarrow"
        self._directory = Path(asked["scratch"])
        names = sorted(state)
        for part in range(_FILES):
            with (self._directory / f"part-{part}.bin").open("wb") as file:
                for name in names[part::_FILES]:
                    file.write(state[name].data)

    def save(self) -> None:
        self._copy(str(self._directory), self._path, self._local, self._remote)

    def restore(self) -> None:
        target = self._directory / "back"
        target.mkdir()
        self._copy(self._path, str(target), self._remote, self._local)
        names = sorted(self._state)
        for part in range(_FILES):
            with (target / f"part-{part}.bin").open("rb") as file:
                for name in names[part::_FILES]:
                    file.readinto(self._state[name].data)

    def _copy(self, source: str, target: str, at: Any, to: Any) -> None:
        from pyarrow.fs import copy_files

        copy_files(source, target, source_filesystem=at, destination_filesystem=to, use_threads=False)


TOOLS: dict[str, Callable[[Arrays, Mapping[str, Any]], Tool]] = {
    "tlcore": Tlcore,
    "dcp": Dcp,
    "torch_save": TorchSave,
    "s3torch": S3Torch,
    "pyarrow": PyArrow,
}


def _s3fs_options(asked: Mapping[str, Any]) -> dict[str, Any]:
    from tlcore.storage import fsspec_options

    options = fsspec_options(asked["url"])
    options["config_kwargs"]["max_pool_connections"] = asked["connections"]
    return options


def _mark(state: Arrays) -> int:
    """What tells one state from another, quickly."""
    return sum(int(np.bitwise_xor.reduce(data.view(np.uint32))) * (n + 1) for n, data in enumerate(state.values()))


def _tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    """Read what to do, then save and restore once each, every time a line comes; answer each with a line."""
    asked = json.loads(sys.stdin.readline())
    with tempfile.TemporaryDirectory(prefix="tlcore-bench-") as scratch:
        state = make_state(asked["size_bytes"])
        size, before = sum(data.nbytes for data in state.values()), _mark(state)
        tool = TOOLS[asked["tool"]](state, {**asked, "scratch": scratch})
        _tell(ready=True)
        sys.stdin.readline()
        began = time.monotonic()
        tool.save()
        _tell(seconds=time.monotonic() - began, size_bytes=size)
        sys.stdin.readline()
        for data in state.values():
            data[:] = 0
        began = time.monotonic()
        tool.restore()
        seconds = time.monotonic() - began
        if _mark(state) != before:
            raise RuntimeError(f"{asked['tool']}: what was restored is not what was saved")
        _tell(seconds=seconds, size_bytes=size)


if __name__ == "__main__":
    main()
