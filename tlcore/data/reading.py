"""Reads one set of examples, as a Hugging Face Dataset of the columns asked for.

Owns what is read and every message about rows that cannot be used. Does not know what the columns mean. Called by `tasks/`.

Files are read with pyarrow through fsspec (s3fs for `s3://`, with the store's own endpoint and keys) and only the columns
asked for. They are held in memory; large ones lie on the node's disk, once for all its processes, and are mapped (`on_node.py`).
`datasets.load_dataset` would write an Arrow copy of every file to its cache, whatever its size, and its csv reader turns texts such
as "None" and "NA" into missing cells. Hub datasets go through `load_dataset`, and are mapped from its cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlcore.data.files import DataFile, HubDataset, find_files, fingerprint, hub_dataset
from tlcore.data.formats import BETWEEN, check_columns, filesystem, first_line, tables_of
from tlcore.data.on_node import are_large, tables_on_node
from tlcore.errors import DataError
from tlcore.models.hub import hub_answers

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_SHOWN = 20
_WHOLE = r"^-?(0|[1-9]\d{0,17})$"
_NUMBER = r"^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$"
_CONFIGS = re.compile(r"(?:available configs|Available): (\[.*?\])")
"""Where `datasets` lists the configurations of a dataset, in its message about one that is missing or unknown."""


def read_split(
    url: str,
    columns: Sequence[str],
    texts: Sequence[str] = (),
    split: str = "train",
    may_be_empty: Sequence[str] = (),
) -> datasets.Dataset:
    """Read `columns` of the examples at `url`, in file order.

    Args:
        url: a file, directory or pattern at `s3://` or on this machine (parquet, csv, tsv, jsonl, a json array), or a hub id,
            `owner/name[/config][:split]` or `name:split`. A file of text may be gzipped (`.csv.gz`).
        columns: what to read; every cell must hold something, but those of `may_be_empty`.
        texts: those of them that must be text (a csv column of numbers is then read as text).
        split: which split of a hub dataset, where the id names none.

    Raises:
        DataError: nothing there, not readable as its ending says, a column missing, empty cells, no rows, not text.
        StorageError: the store refused, failed, or did not answer.
    """
    import datasets

    hub = hub_dataset(url)
    if hub is not None:
        dataset = _read_hub(url, hub, hub.split or split, columns)
        table = dataset.data.table
    else:
        table = _read_files(url, find_files(url), columns, texts)
        dataset = datasets.Dataset(datasets.table.InMemoryTable(table))
    _check(table, url, texts, may_be_empty)
    return dataset


def read_text(place: str) -> str:
    """The text of one file at `s3://` or on this machine. Raises DataError: no such file, or it is not UTF-8."""
    try:
        with filesystem(place).open(place.removeprefix("file://"), "rb") as stream:
            text: str = stream.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {place}: {first_line(error)}",
            hint="give a file of UTF-8 text, in the store or on this machine",
        ) from error
    return text


def _read_files(url: str, files: Sequence[DataFile], columns: Sequence[str], texts: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    if are_large(files):
        tables = tables_on_node(url, files, columns)
    else:
        opened = filesystem(url)
        tables = [pa.concat_tables(tables_of(opened, file, columns)) for file in files]
    _check_same_classes(tables, url)
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"the files at {url} do not fit together: {first_line(error)}", hint="give their columns the same types"
        ) from error
    return _with_numbers(table, texts) if files[0].format in BETWEEN else table


def _with_numbers(table: pa.Table, texts: Sequence[str]) -> pa.Table:
    """A csv's columns but `texts` as numbers where every cell is one; `True`, `007` and dates are what they are written as."""
    import pyarrow as pa

    for place, name in enumerate(table.column_names):
        if name in texts:
            continue
        for written, kind in ((_WHOLE, pa.int64()), (_NUMBER, pa.float64())):
            if _are_written_as(table.column(name), written):
                numbers = [_trimmed(cells).cast(kind) for cells in table.column(name).chunks]
                table = table.set_column(place, name, pa.chunked_array(numbers, kind))
                break
    return table


def _are_written_as(column: pa.ChunkedArray, written: str) -> bool:
    """Whether every cell that holds something is; of a column without any there is nothing to tell."""
    import pyarrow.compute

    if column.null_count == len(column):
        return False
    return all(
        pyarrow.compute.all(pyarrow.compute.match_substring_regex(_trimmed(cells), written)).as_py() is not False
        for cells in column.chunks
    )


def _trimmed(cells: pa.Array) -> pa.Array:
    import pyarrow.compute

    return pyarrow.compute.utf8_trim_whitespace(cells)


def class_names(table: pa.Table, column: str, field: str | None = None) -> tuple[str, ...] | None:
    """What the numbers in a column, or in its lists, stand for by the `ClassLabel` that `datasets` noted; else None.

    Args:
        field: of a column of objects, which of their fields.
    """
    import datasets

    feature: Any = datasets.Features.from_arrow_schema(table.schema).get(column)
    if field is not None:
        feature = feature.get(field) if isinstance(feature, dict) else None
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) and feature.names else None


def _check_same_classes(tables: Sequence[pa.Table], url: str) -> None:
    """One number means one class in all files: only the first file's names are kept."""
    if len(tables) < 2:
        return
    for column in tables[0].column_names:
        known = {names for table in tables if (names := class_names(table, column)) is not None}
        if len(known) > 1:
            raise DataError(
                f"the files at {url} number the classes of column {column!r} differently",
                hint="write them with one ClassLabel, or with the classes' names as text",
                column=column,
            )


def _read_hub(url: str, hub: HubDataset, split: str, columns: Sequence[str]) -> datasets.Dataset:
    import datasets
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not hub_answers():
        raise DataError(
            f"{url}: no such file here, and the hub cannot be reached",
            hint="check the network or HF_ENDPOINT; HF_HUB_OFFLINE=1 uses what the hub cache holds",
        )
    try:
        dataset = datasets.load_dataset(hub.id, hub.config, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"{url}: no such file here, and no such dataset on the hub (or no access to it)",
            hint="files are s3://... or paths; a private dataset needs `hf auth login`",
        ) from error
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(hub, split, error) from error
    check_columns(dataset.column_names, columns, url)
    return dataset.select_columns(list(columns))


def content_stamp(place: str) -> list[str]:
    """Of what lies at a place now: another content has another one. Raises DataError, StorageError."""
    hub = hub_dataset(place)
    return [place, _hub_commit(hub)] if hub is not None else list(fingerprint(place))


def _hub_commit(hub: HubDataset) -> str:
    """Which state of a hub dataset is read: its commit, or that of the cached copy where the hub is away."""
    import datasets

    return str(datasets.load_dataset_builder(hub.id, hub.config).hash)


def _unreadable(hub: HubDataset, split: str, error: Exception) -> DataError:
    if isinstance(error, RuntimeError) and "scripts" in str(error):
        return DataError(
            f"hub dataset {hub.id} is made by a script that comes with it, and no such script is run",
            hint="look for a copy of it in parquet on the hub, or make parquet files of it once and name those",
        )
    if configs := _CONFIGS.search(str(error)):
        names = re.findall(r"'([^']+)'", configs[1])
        named = "needs a configuration" if hub.config is None else f"has no configuration {hub.config!r}"
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return DataError(
            f"hub dataset {hub.id} {named}",
            hint=f"name it as {hub.id}/<configuration>:{split}; there are {', '.join(names[:_SHOWN])}{more}",
        )
    place = hub.id if hub.config is None else f"{hub.id}/{hub.config}"
    return DataError(
        f"cannot read hub dataset {place}, split {split!r}: {first_line(error)}",
        hint=f"name a split, and a configuration where there are several: {hub.id}/<configuration>:<split>",
    )


def _check(table: pa.Table, url: str, texts: Sequence[str], may_be_empty: Sequence[str]) -> None:
    """Rows there are, cells hold something where they must, texts are text."""
    import pyarrow as pa

    if table.num_rows == 0:
        raise DataError(f"{url} has no rows", hint="a header alone is no data")
    for name in table.column_names:
        column = table.column(name)
        if column.null_count and name not in may_be_empty:
            row = column.is_null().index(True).as_py()
            raise DataError(
                f"{url}: column {name!r} is empty in {column.null_count} of {table.num_rows} rows, first in row {row + 1}",
                hint="remove those rows or fill them",
                column=name,
            )
    for name in texts:
        kind = table.schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_null(value) and name in may_be_empty:
            continue
        if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
            raise DataError(
                f"{url}: column {name!r} holds {kind}, not text", hint="check which column data.text names", column=name
            )
