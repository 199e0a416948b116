"""Files of data as Arrow tables, block after block.

Owns how each format is read: parquet, csv, tsv, JSON lines, one JSON array, text gzipped. Does not know what the columns mean, nor
whether the blocks are held. Called by `reading.py`, which joins them, and by `on_node.py`, which writes them away again.

A file is read in blocks of about 64 MiB, so that one larger than the memory can be read; all blocks of a file have one schema.
Cells of csv are taken as they are written. Types in JSON are those that fit every row of the file, which takes a first reading
where it has several blocks; dates stay the texts that they are. A JSON array is read whole.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tlcore.data.files import GZIP, DataFile
from tlcore.data.moving import block_done
from tlcore.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Opening = Callable[[], Any]
"""Opens a file anew, at its beginning."""

BLOCK_BYTES: Final = 64 << 20
BETWEEN: Final = {"csv": ",", "tsv": "\t"}
_SHOWN: Final = 20
_HINTS: Final = {
    "parquet": "check that the file is whole",
    "csv": "it must be UTF-8, comma-separated, with a first line of column names",
    "tsv": "it must be UTF-8, separated by tabs, with a first line of column names",
    "jsonl": "it must be UTF-8 with one JSON object per line",
}


def filesystem(url: str) -> Any:
    """The fsspec file system of a place: s3fs with the store's own endpoint and keys, or this machine's."""
    import fsspec

    if not url.startswith("s3://"):
        return fsspec.filesystem("file")
    from tlcore.storage import fsspec_options

    # A cached listing would hide a file that was replaced since.
    return fsspec.filesystem("s3", use_listings_cache=False, **fsspec_options(url))


def tables_of(files: Any, file: DataFile, columns: Sequence[str], block_bytes: int = BLOCK_BYTES) -> Iterator[pa.Table]:
    """The columns of one file's rows, in order: at least one table, which may have no row; all have one schema.

    Args:
        files: the file system that the file is on.

    Raises DataError: not readable as its ending says, a column missing; StorageError.
    """
    import pyarrow as pa

    if file.size_bytes == 0:
        raise DataError(f"{file.path} is empty", hint="it has no byte in it")
    reading = {"parquet": _parquet, "jsonl": _json}.get(file.format, _separated)
    try:
        for table in reading(partial(_open, files, file), file, columns, block_bytes):
            block_done()
            yield table
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {file.path} as {file.format}: {first_line(error)}", hint=_HINTS[file.format]
        ) from error


def check_columns(there: Sequence[str], wanted: Sequence[str], where: str) -> None:
    """Raise DataError where a column is missing."""
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


def first_line(error: BaseException) -> str:
    """What an error says first, in short."""
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _open(files: Any, file: DataFile) -> Any:
    import pyarrow as pa

    stream = files.open(file.path, "rb")
    return pa.CompressedInputStream(stream, "gzip") if file.is_gzipped else stream


def _parquet(opening: Opening, file: DataFile, columns: Sequence[str], block_bytes: int) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet

    with opening() as stream:
        parquet = pyarrow.parquet.ParquetFile(stream)
        check_columns(parquet.schema_arrow.names, columns, file.path)
        facts = parquet.metadata
        whole_bytes = sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups))
        rows = max(1, block_bytes * max(facts.num_rows, 1) // max(whole_bytes, 1))
        for batch in parquet.iter_batches(batch_size=rows, columns=list(columns)):
            yield pa.Table.from_batches([batch])
        if facts.num_rows == 0:
            yield parquet.read(columns=list(columns))


def _separated(opening: Opening, file: DataFile, columns: Sequence[str], block_bytes: int) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.csv

    def reader(stream: Any, **wanted: Any) -> Any:
        return pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=block_bytes),
            parse_options=pyarrow.csv.ParseOptions(delimiter=BETWEEN[file.format], newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False, **wanted
            ),
        )

    texts = dict.fromkeys(columns, pa.string())
    try:
        with opening() as stream:
            blocks = reader(stream, include_columns=list(columns), column_types=texts)
            empty = blocks.schema.empty_table()
            for block in blocks:
                empty = None
                yield pa.Table.from_batches([block])
            if empty is not None:
                yield empty
    except pa.ArrowKeyError:
        with opening() as stream:
            check_columns(reader(stream).schema.names, columns, file.path)
        raise


def _json(opening: Opening, file: DataFile, columns: Sequence[str], block_bytes: int) -> Iterator[pa.Table]:
    import pyarrow as pa

    # what stands in the file first, in types that fit all of it; of a file of one block that is the reading itself
    schemas: list[pa.Schema] = []
    for block in _json_blocks(opening, file, block_bytes):
        only = _read_json(block)
        schemas.append(pa.schema([(field.name, _dates_as_texts(field.type)) for field in only.schema]))
    if not schemas:
        raise DataError(f"{file.path} is empty", hint="there are nothing but blank lines in it")
    check_columns(list(dict.fromkeys(name for schema in schemas for name in schema.names)), columns, file.path)
    everything = pa.unify_schemas(schemas, promote_options="permissive")
    schema = pa.schema([everything.field(name) for name in columns])
    if len(schemas) == 1 and only.select(list(columns)).schema == schema:
        yield only.select(list(columns))
        return
    for block in _json_blocks(opening, file, block_bytes):
        yield _read_json(block, schema).select(list(columns))


def _read_json(block: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """Lines of JSON in the types of `schema`, other columns left out, or in those that fit."""
    import pyarrow.json

    told = {} if schema is None else {"explicit_schema": schema, "unexpected_field_behavior": "ignore"}
    return pyarrow.json.read_json(
        io.BytesIO(block),
        # one block: pyarrow refuses a row that does not fit its block, and guesses types from the first one alone
        read_options=pyarrow.json.ReadOptions(block_size=max(1 << 20, len(block) + 1)),
        parse_options=pyarrow.json.ParseOptions(**told),
    )


def _dates_as_texts(kind: pa.DataType) -> pa.DataType:
    """pyarrow takes texts for dates where every one that it has seen is."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_dates_as_texts(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _dates_as_texts(field.type)) for field in kind.fields])
    return kind


def _json_blocks(opening: Opening, file: DataFile, block_bytes: int) -> Iterator[bytes]:
    """Whole lines of JSON, blank ones apart; of a `.json` file that holds one array, its objects as such lines."""
    with opening() as stream:
        rest = stream.read(4096)
        if file.path.lower().removesuffix(GZIP).endswith(".json") and rest.lstrip()[:1] == b"[":
            yield _array_as_lines(rest + stream.read(), file)
            return
        while data := stream.read(block_bytes):
            end = data.rfind(b"\n") + 1
            if end and (rest.strip() or data[:end].strip()):
                yield rest + data[:end]
            rest = data[end:] if end else rest + data
        if rest.strip():
            yield rest


def _array_as_lines(content: bytes, file: DataFile) -> bytes:
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(
            f"cannot read {file.path} as a JSON array: {error}", hint="check that the file is whole"
        ) from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(
                f"{file.path}: item {number} of its array is {str(row)[:80]!r}, not an object",
                hint="each item is one example: an object with a value for each column",
            )
    return "\n".join(map(json.dumps, rows)).encode()
