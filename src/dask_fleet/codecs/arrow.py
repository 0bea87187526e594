"""Arrow: tables, as an Arrow IPC stream that any language reads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from dask_fleet.codecs.errors import ResultNotSerializable, type_name
from dask_fleet.plugins.codec import Codec

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
KIND_KEY = b"dask_fleet.kind"
"""Entry of the schema's metadata that says what to give back: ``dataframe``, ``series``, ``index`` or
``table``."""
VALUES_AT_ONCE = 20_000
"""Of a rendering, as Python objects in memory."""
ROWS_IN_BATCH = 65_536
"""So that a reader of the stream needs little memory at a time."""


class ArrowCodec(Codec):
    """Stores pandas ``DataFrame``, ``Series`` and ``Index``, pyarrow ``Table`` and ``RecordBatch``, and every
    other table that speaks Arrow's C stream interface (polars), which comes back as a pyarrow ``Table``.

    Pandas objects come back as they were, with index and dtypes, where pandas is installed; else as a pyarrow
    ``Table``.
    """

    name = "arrow"
    media_type = MEDIA_TYPE
    order = 30

    def takes(self, value: Any) -> bool:
        """Whether `value` is a table."""
        pandas = sys.modules.get("pandas")
        if pandas is not None and isinstance(value, pandas.DataFrame | pandas.Series | pandas.Index):
            return True
        pyarrow = sys.modules.get("pyarrow")
        if pyarrow is not None and isinstance(value, pyarrow.Table | pyarrow.RecordBatch):
            return True
        return hasattr(type(value), "__arrow_c_stream__")

    def encode(self, value: Any) -> memoryview:
        """Return the stream."""
        import pyarrow as pa

        table, kind = _table_of(value)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), KIND_KEY: kind})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=ROWS_IN_BATCH)
        return memoryview(sink.getvalue())

    def decode(self, data: bytes | memoryview) -> Any:
        """Return the table."""
        import pyarrow as pa

        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            table = reader.read_all()
        metadata = dict(table.schema.metadata or {})
        kind = metadata.pop(KIND_KEY, b"table")
        table = table.replace_schema_metadata(metadata or None)
        if kind == b"table":
            return table
        try:
            import pandas as pd
        except ImportError:
            return table
        frame = table.to_pandas()
        if kind == b"dataframe":
            return frame
        series = frame.iloc[:, 0]
        if b"dask_fleet.unnamed" in metadata:
            series.name = None
        return series if kind == b"series" else pd.Index(series, name=series.name)

    def to_json(self, value: Any, *, max_bytes: int) -> bytes | None:
        """Return a list of records, one object a row. Missing values (null, NaN, NaT) are ``null``; an index
        that is not just the row's number becomes the first members.
        """
        table, _ = _table_of(value)
        least = sum(len(str(name)) + 5 for name in table.column_names)  # "name":1,
        if table.num_rows * max(least, 3) > max_bytes:
            return None
        parts: list[bytes] = []
        size = 2
        for part in records_as_json(table):
            size += len(part) + 1
            if size > max_bytes:
                return None
            parts.append(part)
        return b"[" + b",".join(parts) + b"]"


def records_as_json(table: Any) -> Iterator[bytes]:
    """Yield the rows of a pyarrow table (or record batch) as JSON objects, separated by commas, some at a
    time.
    """
    from dask_fleet.codecs.json_text import write_json
    from dask_fleet.codecs.json_values import to_json_value

    names = _record_names(table.schema)
    if not names:
        return  # Arrow does not count the rows of a table without columns
    rows_at_once = max(1, VALUES_AT_ONCE // len(names))
    for start in range(0, table.num_rows, rows_at_once):
        piece = table.slice(start, rows_at_once)
        columns = [_json_column(piece.column(index)) for index, _ in names]
        keys = [name for _, name in names]
        rows = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
        yield write_json(to_json_value(rows, nan_as_null=True))[1:-1]


def _record_names(schema: Any) -> list[tuple[int, str]]:
    """Return position and name of each column, index columns of pandas first."""
    indexes = [entry for entry in (schema.pandas_metadata or {}).get("index_columns", []) if isinstance(entry, str)]
    order = sorted(range(len(schema.names)), key=lambda at: (schema.names[at] not in indexes, at))
    found: list[tuple[int, str]] = []
    taken: dict[str, int] = {}
    for at in order:
        name = schema.names[at]
        if name in indexes and name.startswith("__index_level_"):
            name = "index" if len(indexes) == 1 else f"index_{indexes.index(name)}"
        taken[name] = taken.get(name, 0) + 1
        found.append((at, name if taken[name] == 1 else f"{name}_{taken[name]}"))
    return found


def _json_column(column: Any) -> list[Any]:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _json_column(column.cast(kind.value_type))
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        # Python's times end at microseconds; nanoseconds that are there are kept as text.
        if kind.unit == "ns" and pa.types.is_timestamp(kind):
            return [None if value is None else value.isoformat() for value in _nanosecond_times(column)]
        if kind.unit == "ns":
            return _json_column(column.cast(pa.duration("us"), safe=False))
    values: list[Any] = column.to_pylist()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        import base64

        return [None if value is None else base64.b64encode(value).decode("ascii") for value in values]
    return values


def _nanosecond_times(column: Any) -> list[Any]:
    import pyarrow as pa

    try:
        exact: list[Any] = column.cast(pa.timestamp("us", column.type.tz), safe=True).to_pylist()
    except pa.ArrowInvalid:
        exact = column.to_pylist()  # pandas.Timestamp, where pandas is installed
    return exact


def _table_of(value: Any) -> tuple[Any, bytes]:
    import pyarrow as pa

    if isinstance(value, pa.Table):
        return value, b"table"
    if isinstance(value, pa.RecordBatch):
        return pa.Table.from_batches([value]), b"table"
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(value, pandas.DataFrame | pandas.Series | pandas.Index):
        try:
            return pa.table(value), b"table"
        except (pa.ArrowException, TypeError, ValueError) as exc:
            raise ResultNotSerializable(f"a {type_name(value)} does not give an Arrow table: {exc}") from exc
    kind = b"dataframe"
    unnamed = False
    frame = value
    if isinstance(value, pandas.MultiIndex):
        raise ResultNotSerializable("a pandas MultiIndex alone has no stored form: return index.to_frame(index=False)")
    if not isinstance(value, pandas.DataFrame):
        kind = b"series" if isinstance(value, pandas.Series) else b"index"
        unnamed = value.name is None
        name = "value" if unnamed else value.name
        frame = value.to_frame(name=name) if kind == b"series" else value.to_frame(index=False, name=name)
    try:
        table = pa.Table.from_pandas(frame)
    except (pa.ArrowException, TypeError, ValueError) as exc:
        detail = "; ".join(str(arg) for arg in exc.args)
        raise ResultNotSerializable(
            f"the {type_name(value)} has no Arrow form: {detail}. Give each column one type"
            " (frame.astype(…)) and a name of its own"
        ) from exc
    if unnamed:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"dask_fleet.unnamed": b"1"})
    return table, kind
