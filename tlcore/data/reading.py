"""Reads one set of examples into memory, as a Hugging Face Dataset of the columns asked for.

Owns the reading and every message about data that cannot be read. Does not know what the columns mean. Called by `tasks/`.

Files are read with pyarrow through fsspec (s3fs for `s3://`, with the store's own endpoint and keys) and only the columns
asked for: nothing is copied to local disk. `datasets.load_dataset` would write an Arrow copy of every file to its cache,
and its csv reader turns texts such as "None" and "NA" into missing cells. Hub datasets go through `load_dataset`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlcore.data.files import DataFile, find_files, hub_dataset
from tlcore.errors import DataError
from tlcore.models.hub import hub_answers

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_SHOWN = 20


def read_split(url: str, columns: Sequence[str], texts: Sequence[str] = (), split: str = "train") -> datasets.Dataset:
    """Read `columns` of the examples at `url`, in file order.

    Args:
        url: a file, directory or pattern at `s3://` or on this machine (parquet, csv, jsonl), or a hub id, `owner/name[:split]`.
        columns: what to read; every cell must hold something.
        texts: those of them that must be text (a csv column of digits is then read as text).
        split: which split of a hub dataset, where the id names none.

    Raises:
        DataError: nothing there, not readable as its ending says, a column missing, empty cells, no rows, not text.
        StorageError: the store refused, failed, or did not answer.
    """
    import datasets

    hub = hub_dataset(url)
    if hub is not None:
        dataset = _read_hub(url, hub[0], hub[1] or split, columns)
        table = dataset.data.table
    else:
        table = _read_files(url, find_files(url), columns, texts)
        dataset = datasets.Dataset(datasets.table.InMemoryTable(table))
    _check(table, url, texts)
    return dataset


def _read_files(url: str, files: Sequence[DataFile], columns: Sequence[str], texts: Sequence[str]) -> pa.Table:
    import fsspec
    import pyarrow as pa

    if url.startswith("s3://"):
        from tlcore.storage import fsspec_options

        # A cached listing would hide a file that was replaced since.
        filesystem = fsspec.filesystem("s3", use_listings_cache=False, **fsspec_options(url))
    else:
        filesystem = fsspec.filesystem("file")
    tables = []
    for file in files:
        try:
            with filesystem.open(file.path, "rb") as stream:
                tables.append(_read_file(stream, file, columns, texts))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot read {file.path} as {file.format}: {_first_line(error)}", hint=_HINTS[file.format]
            ) from error
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"the files at {url} do not fit together: {_first_line(error)}", hint="give their columns the same types"
        ) from error


_HINTS = {
    "parquet": "check that the file is whole",
    "csv": "it must be UTF-8, comma-separated, with a first line of column names",
    "jsonl": "it must be UTF-8 with one JSON object per line",
}


def _read_file(stream: Any, file: DataFile, columns: Sequence[str], texts: Sequence[str]) -> pa.Table:
    import pyarrow as pa

    if file.size_bytes == 0:
        raise DataError(f"{file.path} is empty", hint="it has no byte in it")
    if file.format == "parquet":
        import pyarrow.parquet

        parquet = pyarrow.parquet.ParquetFile(stream)
        _check_columns(parquet.schema_arrow.names, columns, file.path)
        return parquet.read(columns=list(columns))
    if file.format == "csv":
        import pyarrow.csv

        table = pyarrow.csv.read_csv(
            stream,
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(texts, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    else:
        import pyarrow.json

        # One block: pyarrow refuses a line that does not fit its block, and guesses types from the first one alone.
        options = pyarrow.json.ReadOptions(block_size=max(1 << 20, min(file.size_bytes + 1, 2**31 - 1)))
        table = pyarrow.json.read_json(stream, read_options=options)
    _check_columns(table.column_names, columns, file.path)
    return table.select(list(columns))


def _read_hub(url: str, name: str, split: str, columns: Sequence[str]) -> datasets.Dataset:
    import datasets
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not hub_answers():
        raise DataError(
            f"{url}: no such file here, and the hub cannot be reached",
            hint="check the network or HF_ENDPOINT; HF_HUB_OFFLINE=1 uses what the hub cache holds",
        )
    try:
        dataset = datasets.load_dataset(name, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"{url}: no such file here, and no such dataset on the hub (or no access to it)",
            hint="files are s3://... or paths; a private dataset needs `hf auth login`",
        ) from error
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot read hub dataset {name}, split {split!r}: {_first_line(error)}",
            hint="name a split: owner/name:split",
        ) from error
    _check_columns(dataset.column_names, columns, url)
    return dataset.select_columns(list(columns))


def _check_columns(there: Sequence[str], wanted: Sequence[str], where: str) -> None:
    for column in wanted:
        if column not in there:
            near = difflib.get_close_matches(column, there, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
            raise DataError(
                f"{where} has no column {column!r}{meant}",
                hint=f"its columns: {', '.join(there[:_SHOWN])}{more}",
                column=column,
            )


def _check(table: pa.Table, url: str, texts: Sequence[str]) -> None:
    """Rows there are, cells hold something, texts are text."""
    import pyarrow as pa

    if table.num_rows == 0:
        raise DataError(f"{url} has no rows", hint="a header alone is no data")
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise DataError(
                f"{url}: column {name!r} is empty in {column.null_count} of {table.num_rows} rows, first in row {row + 1}",
                hint="remove those rows or fill them",
                column=name,
            )
    for name in texts:
        kind = table.schema.field(name).type
        value = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)):
            raise DataError(
                f"{url}: column {name!r} holds {kind}, not text", hint="check which column data.text names", column=name
            )


def _first_line(error: BaseException) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
