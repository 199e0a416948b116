"""Which files a place in `data.train`, `data.validation` or `data.test` names.

Owns finding them: one file, a directory (or `s3://` prefix) of files, or a `*` pattern in the last part, in the store
or on this machine; and what tells a hub id from a path. Does not read them. Called by `reading.py` and, for cache keys,
by `tasks/`.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from tlcore.errors import DataError

GZIP = ".gz"
_TEXT = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
FORMATS = {".parquet": "parquet", **_TEXT, **{f"{ending}{GZIP}": kind for ending, kind in _TEXT.items()}}
KNOWN = "parquet, csv, tsv, jsonl, json (those of text gzipped too: .csv.gz)"

_PART = r"[A-Za-z0-9][\w.-]*"
_HUB_ID = re.compile(
    rf"((?P<owned>{_PART}/{_PART})(/(?P<config>{_PART}))?(:(?P<split>[^/\s]+))?|(?P<bare>{_PART}):(?P<its_split>[^/\s]+))"
)


@dataclass(frozen=True)
class DataFile:
    """One file. `path` opens it (an `s3://` URL or a local path), `stamp` changes when its content may have."""

    path: str
    size_bytes: int
    stamp: str

    @property
    def format(self) -> str:
        """`parquet`, `csv`, `tsv` or `jsonl`."""
        return FORMATS[suffix(self.path)]

    @property
    def is_gzipped(self) -> bool:
        """Whether it is to be unpacked first."""
        return suffix(self.path).endswith(GZIP)


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the hub; `config` is None where the place names none, and so is `split`."""

    id: str
    config: str | None
    split: str | None


def hub_dataset(url: str) -> HubDataset | None:
    """The hub dataset that `url` names (`owner/name`, `owner/name/config`, either with `:split`, or `name:split`), else None.

    What is on this machine goes first: a file or directory of that name, and anything below a directory that is there. A split is
    whatever `datasets` takes for one (`train.clean.100`, `train[:10%]`).
    """
    match = _HUB_ID.fullmatch(url)
    if match is None or Path(url).exists():
        return None
    place, first = url.partition(":")[0], url.partition(":")[0].partition("/")[0]
    if suffix(place) in FORMATS or Path(first).exists():
        return None
    return HubDataset(match["owned"] or match["bare"], match["config"], match["split"] or match["its_split"])


def find_files(url: str) -> tuple[DataFile, ...]:
    """The files at `url`, in name order, all of one format.

    Raises:
        DataError: none there, or several formats side by side.
        StorageError: the store refused, failed, or did not answer.
    """
    files = _in_store(url) if url.startswith("s3://") else _on_this_machine(url)
    formats = {file.format for file in files}
    if len(formats) > 1:
        raise DataError(
            f"{url} holds files of several formats: {', '.join(sorted(formats))}",
            hint="name one kind, such as *.parquet",
        )
    return files


def fingerprint(url: str) -> tuple[str, ...]:
    """What to remember prepared data under: the place and its files' names, sizes and times."""
    if hub_dataset(url) is not None:
        return (url,)
    return (url, *(f"{file.path} {file.size_bytes} {file.stamp}" for file in find_files(url)))


def suffix(path: str) -> str:
    """How a name ends, lower case: `.csv`, or of a gzipped file `.csv.gz`."""
    name = Path(path.lower())
    return f"{Path(name.stem).suffix}{GZIP}" if name.suffix == GZIP else name.suffix


def _in_store(url: str) -> tuple[DataFile, ...]:
    from tlcore.storage import open_store

    folder, _, last = url.rstrip("/").rpartition("/")
    is_bucket = folder in ("s3:/", "s3:")
    root = url.rstrip("/") if is_bucket else folder
    prefix = "" if is_bucket or "*" in last else last
    below = {
        one.key: DataFile(f"{root}/{one.key}", one.size_bytes, one.modified.isoformat())
        for one in open_store(root).list(prefix)
    }
    if prefix in below and prefix:
        return (_of_known_format(below[prefix]),)
    inside = f"{prefix}/" if prefix else ""
    pattern = inside + (last if "*" in last else "*")
    found = [below[key] for key in sorted(below) if _directly_matches(key, pattern) and suffix(key) in FORMATS]
    if not found:
        raise _nothing_at(url, [key for key in below if "/" not in key.removeprefix(inside)], last)
    return tuple(found)


def _directly_matches(key: str, pattern: str) -> bool:
    return key.count("/") == pattern.count("/") and fnmatch.fnmatchcase(key, pattern)


def _on_this_machine(url: str) -> tuple[DataFile, ...]:
    if "://" in url and not url.startswith("file://"):
        raise DataError(
            f"nothing is known of {url.partition('://')[0]}:// (in {url})",
            hint="give s3://..., a path, or a hub dataset's id",
        )
    path = Path(url.removeprefix("file://")).expanduser().absolute()
    if path.is_file():
        return (_of_known_format(_local(path)),)
    if path.is_dir() or ("*" in path.name and path.parent.is_dir()):
        candidates = sorted(path.iterdir()) if path.is_dir() else sorted(path.parent.glob(path.name))
        found = [_local(one) for one in candidates if one.is_file() and suffix(str(one)) in FORMATS]
        if found:
            return tuple(found)
    beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    raise _nothing_at(url, beside, path.name)


def _local(path: Path) -> DataFile:
    stat = path.stat()
    return DataFile(str(path), stat.st_size, str(stat.st_mtime_ns))


def _of_known_format(file: DataFile) -> DataFile:
    if suffix(file.path) not in FORMATS:
        raise DataError(f"{file.path} is of no known format", hint=f"known by their ending: {KNOWN}")
    return file


def _nothing_at(url: str, beside: list[str], wanted: str) -> DataError:
    near = difflib.get_close_matches(wanted, beside, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return DataError(
        f"no data at {url}{meant}", hint=f"give a file, a directory of files, or a pattern with *, of {KNOWN}", url=url
    )
