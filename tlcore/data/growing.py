"""An array whose length is not known before its last element is, and which may be larger than the memory.

Owns that growing. Called by tasks that make tokens of texts, block by block.
"""

from __future__ import annotations

import tempfile
from typing import IO, Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from tlcore.data.on_node import data_shelf, no_room

Element = TypeVar("Element", bound=np.generic)

_HELD_BYTES: Final = 64 << 20


class GrowingArray(Generic[Element]):
    """Parts appended after one another; beyond 64 MiB they lie in a file without a name, on the node's disk, as long as they are
    in use.

    Args:
        dtype: of all elements.
    """

    def __init__(self, dtype: type[Element]) -> None:
        self._dtype = np.dtype(dtype)
        self._parts: list[npt.NDArray[Element]] = []
        self._held_bytes = self._elements = 0
        self._file: IO[bytes] | None = None

    def append(self, values: npt.NDArray[Any]) -> None:
        """Raises DataError where the disk cannot be written."""
        part = np.asarray(values, dtype=self._dtype)
        self._parts.append(part)
        self._elements += len(part)
        self._held_bytes += part.nbytes
        if self._held_bytes > _HELD_BYTES:
            self._write_away()

    def array(self) -> npt.NDArray[Element]:
        """All elements, in memory or mapped; nothing is appended after this."""
        if self._file is None:
            return np.concatenate(self._parts) if self._parts else np.empty(0, self._dtype)
        self._write_away()
        self._file.flush()
        mapped = np.memmap(self._file, dtype=self._dtype, mode="r", shape=(self._elements,))
        return np.asarray(mapped)

    def _write_away(self) -> None:
        try:
            if self._file is None:
                data_shelf().mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=data_shelf())  # noqa: SIM115
            if self._parts:
                np.concatenate(self._parts).tofile(self._file)
        except OSError as error:
            raise no_room("what is made of the data", error) from error
        self._parts, self._held_bytes = [], 0
