"""Sounds of a place as samples: decoded, one channel, at the model's rate, found by row.

Owns decoding (soundfile), resampling (a polyphase filter) and what of a place is taken; `data/media.py` finds and opens the files.
Called by the tasks of sound.

Samples are 16-bit whole numbers, as nearly all files hold them. Up to `KEPT_BYTES` of a place stay in memory once decoded (4.6
hours at 16 kHz); what is over is opened and decoded anew for each batch, so a place may be larger than memory. Lengths are known
before training because every file is opened once.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from tlcore.data import MediaRows, Opener, bytes_read, class_names, read_media
from tlcore.errors import DataError
from tlcore.tasks.classes import MOST_CHECKED_BYTES, check_distinct
from tlcore.tasks.recent import Recent
from tlcore.tasks.sample_labels import SampleLabels, empty_cells, named
from tlcore.tasks.splits import given_places
from tlcore.tasks.telling import tell_once

if TYPE_CHECKING:
    from tlcore.recipe.data_schema import DataSection

ENDINGS: Final = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
"""What is taken from a folder; libsndfile reads all of them."""
KEPT_BYTES: Final = 512 << 20
"""Decoded samples of one place that a process keeps."""
_KEPT_PLACES: Final = 4
_CHUNK_FILES: Final = 64
_FULL_SCALE: Final = 32768

Pcm = npt.NDArray[np.int16]


def decode(content: bytes, rate_hz: int, name: str) -> Pcm:
    """A file's sound [frames], the mean of its channels, at `rate_hz`.

    Raises DataError: no sound that can be read, an empty one, or values that are no numbers.
    """
    sound = _decode(content, rate_hz, name)
    if sound.size == 0:
        raise DataError(f"{name} holds no sound: it has no frame", hint="remove it from the data")
    return sound


def _decode(content: bytes, rate_hz: int, name: str) -> Pcm:
    """As `decode`, but an empty sound is one too."""
    import soundfile

    try:
        samples, given_hz = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError) as error:
        raise _unreadable(name, error) from error
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise DataError(f"{name} holds samples that are no numbers", hint="write the file anew")
    return as_pcm(resample(mono, given_hz, rate_hz))


def as_pcm(sound: npt.NDArray[np.float32]) -> Pcm:
    """Samples from -1 to 1 as 16-bit numbers."""
    return np.rint(sound * _FULL_SCALE).clip(-_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def as_floats(sound: Pcm) -> npt.NDArray[np.float32]:
    """The other way, which is what feature extractors take."""
    return sound.astype(np.float32) / np.float32(_FULL_SCALE)


def resample(sound: npt.NDArray[np.float32], given_hz: int, wanted_hz: int) -> npt.NDArray[np.float32]:
    """The same sound at another rate: scipy's polyphase filter, which keeps what lies above the new band from folding into it."""
    if given_hz == wanted_hz or sound.size == 0:
        return sound
    from scipy.signal import resample_poly  # a second to import, and most data needs none of it

    common = math.gcd(given_hz, wanted_hz)
    resampled: npt.NDArray[np.float32] = resample_poly(sound, wanted_hz // common, given_hz // common)
    return resampled.astype(np.float32)


def _seconds(content: bytes, name: str) -> float:
    import soundfile

    try:
        info = soundfile.info(io.BytesIO(content))
    except (soundfile.LibsndfileError, TypeError) as error:
        raise _unreadable(name, error) from error
    return float(info.frames / info.samplerate)


def _unreadable(name: str, error: Exception) -> DataError:
    reason = getattr(error, "error_string", "") or str(error)
    return DataError(f"cannot read {name} as sound: {reason}", hint=f"known are {', '.join(ENDINGS)}")


@dataclass(frozen=True)
class Sounds:
    """The sounds of a place that can be used. `frames` [N]: length of each at `rate_hz`; `kept` [N]: its row in `rows`."""

    rows: MediaRows
    column: str
    rate_hz: int
    kept: npt.NDArray[np.int64]
    frames: npt.NDArray[np.int32]
    _held: dict[int, Pcm] = field(repr=False)

    def __len__(self) -> int:
        return len(self.kept)

    def pcm(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> list[Pcm]:
        """The sounds [frames] of these samples, from memory or decoded now. Raises DataError, StorageError."""
        rows = [int(self.kept[index]) for index in indices]
        missing = [row for row in rows if row not in self._held]
        opened = dict(zip(missing, self.rows.read(self.column, missing), strict=True))
        names = self.rows.name
        return [
            self._held[row] if row in self._held else decode(opened[row], self.rate_hz, names(self.column, row))
            for row in rows
        ]

    def cells(self, column: str) -> list[Any]:
        """Another column's cells, one for each sample."""
        return list(self.rows.table.column(column).take(self.kept).to_pylist())

    def labels(self, column: str, multi_label: bool) -> SampleLabels:
        """Of a column, one entry for each sample."""
        return SampleLabels.read(self.rows.table, column, multi_label, self.kept)


_read: Recent[Sounds] = Recent(_KEPT_PLACES)


def read_sounds(
    place: str,
    column: str,
    rate_hz: int,
    max_seconds: float,
    split: str,
    label: str | None = None,
    texts: Sequence[str] = (),
    may_be_empty: Sequence[str] = (),
) -> Sounds:
    """Open every sound of a place once; those longer than `max_seconds` and those without a frame are left out, which rank 0 says.

    Args:
        column: holds the sounds; a folder of files has just them.
        split: of a hub dataset that names none.
        label: column of classes; in a folder, the name of the folder that a file is in.
        texts: further columns, which must hold text.
        may_be_empty: as `read_media` takes it.

    Raises DataError, StorageError.
    """
    rows = read_media(place, [column], ENDINGS, label, texts, texts, split, may_be_empty)
    key = (rows.digest, split, column, rate_hz, max_seconds, label, tuple(texts))
    return _read.get(key, lambda: _open_all(rows, column, rate_hz, max_seconds))


def _open_all(rows: MediaRows, column: str, rate_hz: int, max_seconds: float) -> Sounds:
    held: dict[int, Pcm] = {}
    held_bytes, lengths = 0, np.zeros(len(rows), np.int64)
    most = round(max_seconds * rate_hz)
    for start in range(0, len(rows), _CHUNK_FILES):
        chunk = range(start, min(start + _CHUNK_FILES, len(rows)))
        for row, content in zip(chunk, rows.read(column, chunk), strict=True):
            name = rows.name(column, row)
            if held_bytes >= KEPT_BYTES:
                lengths[row] = math.ceil(_seconds(content, name) * rate_hz)
                continue
            sound = _decode(content, rate_hz, name)
            lengths[row] = len(sound)
            if len(sound) <= most:
                held[row] = sound
                held_bytes += sound.nbytes
    kept = np.flatnonzero((lengths > 0) & (lengths <= most))
    _tell_left_out(rows.place, len(rows), int((lengths > most).sum()), int((lengths == 0).sum()), max_seconds)
    return Sounds(rows, column, rate_hz, kept.astype(np.int64), lengths[kept].astype(np.int32), held)


def _tell_left_out(place: str, samples: int, longer: int, empty: int, max_seconds: float) -> None:
    """Say how many were left out, of each kind. Raises DataError where none is left."""
    limit = f"longer than data.max_seconds={max_seconds:g}"
    if longer + empty == samples:
        raise DataError(
            f"{place}: none of {samples} sounds is left: {longer} are {limit}, {empty} have no frame",
            hint="raise data.max_seconds, cut them, or write the files anew",
        )
    if longer:
        tell_once(f"{place}: left out {longer} of {samples} sounds, which are {limit}: not learned, and in no metric")
    if empty:
        tell_once(f"{place}: left out {empty} of {samples} sounds, which have no frame")


def open_sound(given: Any, rate_hz: int) -> Pcm:
    """One sound as a prediction is asked for: a path, an `s3://` URL, a file's bytes or `{bytes, path}`. Raises DataError."""
    opener = Opener()
    content = opener.read(given)
    return decode(content, rate_hz, opener.path_of(given) or "the sound")


def sound_examples(data: DataSection, split: str, count: int, expected: str | None) -> list[tuple[Any, Any]]:
    """(path or bytes of the sound, cell of column `expected`) of the first samples of a split with a place of its own."""
    place = dict(given_places(data)).get(split)
    if place is None:
        return []
    label, texts = (expected, []) if expected == data.label else (None, [] if expected is None else [expected])
    rows = read_media(
        place, [data.audio], ENDINGS, label, texts, texts, split, empty_cells(data.label, data.multi_label)
    )
    names = class_names(rows.table, label) if label is not None and data.labels is None else None
    return [
        (
            rows.opener.path_of(rows.cell(data.audio, row)) or rows.cell(data.audio, row),
            None if expected is None else named(rows.cell(expected, row), names),
        )
        for row in range(min(count, len(rows)))
    ]


def check_sounds(data: DataSection, label: str | None = None, texts: Sequence[str] = ()) -> None:
    """What `check_data` promises of small places: columns, files on this machine, labels; no sound is decoded."""

    def distinct(split: str, place: str) -> SampleLabels | None:
        if bytes_read(place) > MOST_CHECKED_BYTES:
            return None
        empty = empty_cells(data.label, data.multi_label)
        rows = read_media(place, [data.audio], ENDINGS, label, texts, texts, split, empty)
        rows.check_present(data.audio)
        return None if label is None else SampleLabels.read(rows.table, label, data.multi_label)

    places = given_places(data)
    if label is not None:
        check_distinct(data, places, distinct)
        return
    for split, place in places:
        distinct(split, place)
