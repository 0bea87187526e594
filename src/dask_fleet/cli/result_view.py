"""How a job's result is printed, written or piped."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from dask_fleet.cli import output
from dask_fleet.model.errors import NotAcceptable

if TYPE_CHECKING:
    from dask_fleet.client import Job

MAX_ROWS = 50


def document_with_result(job: Job) -> dict[str, Any]:
    """Return the job document with its result in it, however large, if the result has a JSON form."""
    document = dict(job.document)
    if document["status"] == "succeeded" and document.get("result") is None:
        try:
            document["result"] = json.loads(job.read("application/json"))
        except NotAcceptable:
            document["result"] = None  # bytes and pictures: result_media_type says so
    return document


def write_result(job: Job, target: str) -> None:
    """Write the stored bytes to a file, or to standard output for ``-``."""
    if target == "-":
        sys.stdout.buffer.write(job.read())
        sys.stdout.buffer.flush()
        return
    size = job.save(target)
    _remark(f"{size:,} bytes of {job.document.get('result_media_type')} in {target}")


def show_result(job: Job, *, timeout: float | None = None, progress: bool = True) -> None:
    """Wait for the result and print it as fits its kind and where it goes.

    Raises
    ------
    JobError
        If there is none.
    """
    job.wait(timeout, progress=progress)
    media_type = str(job.document.get("result_media_type") or "")
    if job.status == "succeeded" and (media_type.startswith("image/") or media_type == "application/octet-stream"):
        if sys.stdout.isatty():
            size = job.document.get("result_size") or 0
            _remark(f"{size:,} bytes of {media_type}: write them to a file with --output FILE")
        else:
            write_result(job, "-")
        return
    show_value(job.result())


def show_value(value: Any) -> None:
    """Print a value: a table as a table, text as it is, all else as JSON or as Python shows it."""
    rows = table_rows(value)
    if rows is not None:
        columns, body, total = rows
        more = total > len(body)
        caption = f"{total:,} rows, the first {len(body)} shown; all with --output FILE or --json" if more else None
        output.print_table(columns, body, caption=caption)
    elif isinstance(value, str):
        sys.stdout.write(value if value.endswith("\n") or not sys.stdout.isatty() else value + "\n")
    else:
        try:
            output.print_json(value)
        except (TypeError, ValueError):
            sys.stdout.write(f"{value!r}\n")


def table_rows(value: Any) -> tuple[list[str], list[list[str]], int] | None:
    """Return columns, the first rows and the number of rows of a pandas or Arrow table; ``None`` for anything else."""
    pandas, pyarrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if pandas is not None and isinstance(value, pandas.Series):
        value = value.to_frame()
    if pandas is not None and isinstance(value, pandas.DataFrame):
        frame = value.head(MAX_ROWS)
        named = [str(name) for name in frame.index.names if name is not None]
        if named:
            frame = frame.reset_index()
        body = [[_cell(cell) for cell in row] for row in frame.itertuples(index=False, name=None)]
        return [str(column) for column in frame.columns], body, len(value)
    if pyarrow is not None and isinstance(value, pyarrow.Table):
        records = value.slice(0, MAX_ROWS).to_pylist()
        columns = [str(name) for name in value.column_names]
        return columns, [[_cell(record[name]) for name in columns] for record in records], value.num_rows
    return None


def _remark(text: str) -> None:
    output.stderr().print(text, markup=False, highlight=False, soft_wrap=True)


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

