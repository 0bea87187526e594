"""The render process: makes the JSON rendering of a large stored result, piece by piece.

``python -m dask_fleet.codecs.render MEDIA_TYPE [FILE]`` reads the stored form from the file (or standard
input) and writes JSON to standard output. The server starts it for results whose rendering was too large for
the worker to make beside the result, so that no foreign bytes are decoded in the server. Its memory is
bounded.
"""

from __future__ import annotations

import base64
import codecs
import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

PIECE_BYTES = 3 << 16
"""A multiple of three, so that pieces of base64 need no padding between them."""
ELEMENTS_AT_ONCE = 20_000
MEMORY_BYTES = 2 << 30


def render(media_type: str, file: Path) -> Iterator[bytes]:
    """Yield the JSON rendering of the stored form in `file`, in pieces.

    Raises
    ------
    ValueError
        If that media type has no JSON rendering, or the bytes are damaged.
    """
    from dask_fleet.codecs import arrow, npy, png, text
    from dask_fleet.codecs import bytes as raw

    essence = media_type.partition(";")[0].strip().lower()
    if essence == "application/json":
        yield from _pieces(file)
    elif essence == text.MEDIA_TYPE.partition(";")[0]:
        yield from _render_text(file)
    elif essence == arrow.MEDIA_TYPE:
        yield from _render_table(file)
    elif essence == npy.MEDIA_TYPE:
        import numpy as np

        yield from _render_array(np.load(file, mmap_mode="r", allow_pickle=False))
    elif essence in {raw.MEDIA_TYPE, png.MEDIA_TYPE}:
        yield b'{"$bytes":"'
        for piece in _pieces(file):
            yield base64.b64encode(piece)
        yield b'","media_type":"%s"}' % essence.encode("ascii")
    else:
        yield _render_by_codec(media_type, file)


def _render_by_codec(media_type: str, file: Path) -> bytes:
    from dask_fleet.codecs.encode import codec_for

    codec = codec_for(media_type)
    rendered = codec.to_json(codec.decode(file.read_bytes()), max_bytes=MEMORY_BYTES)
    if rendered is None:
        raise ValueError(f"{media_type} has no JSON rendering")
    return rendered


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while piece := source.read(PIECE_BYTES):
            yield piece


def _render_text(file: Path) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    yield b'"'
    for piece in _pieces(file):
        yield json.dumps(decoder.decode(piece), ensure_ascii=False)[1:-1].encode("utf-8")
    decoder.decode(b"", final=True)
    yield b'"'


def _render_table(file: Path) -> Iterator[bytes]:
    import pyarrow as pa

    from dask_fleet.codecs.arrow import records_as_json

    yield b"["
    between = b""
    with pa.memory_map(os.fspath(file)) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            for piece in records_as_json(pa.Table.from_batches([batch], schema=reader.schema)):
                yield between + piece
                between = b","
    yield b"]"


def _render_array(array: Any) -> Iterator[bytes]:
    from dask_fleet.codecs.json_text import write_json
    from dask_fleet.codecs.json_values import to_json_value
    from dask_fleet.codecs.npy import nested_lists

    if array.ndim == 0 or array.size == 0:
        yield write_json(to_json_value(nested_lists(array)))
        return
    yield b"["
    row = array.size // array.shape[0]
    rows = max(1, ELEMENTS_AT_ONCE // row)
    for start in range(0, array.shape[0], rows):
        if start:
            yield b","
        if row > ELEMENTS_AT_ONCE:
            yield from _render_array(array[start])
        else:
            yield write_json(to_json_value(nested_lists(array[start : start + rows])))[1:-1]
    yield b"]"


def _spooled(source: BinaryIO, folder: str) -> Path:
    """Copy standard input to a file: tables and arrays are then read in place, not into memory."""
    path = Path(folder, "stored")
    with path.open("wb") as target:
        shutil.copyfileobj(source, target, PIECE_BYTES)
    return path


def main(argv: Sequence[str]) -> int:
    """Render to standard output; return the exit code (1 with one line on standard error if it cannot be
    rendered).
    """
    if not 1 <= len(argv) <= 2:
        print("usage: python -m dask_fleet.codecs.render MEDIA_TYPE [FILE]", file=sys.stderr)  # noqa: T201
        return 2
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    out = sys.stdout.buffer
    try:
        with tempfile.TemporaryDirectory(prefix="fleet-render-") as folder:
            file = Path(argv[1]) if len(argv) == 2 else _spooled(sys.stdin.buffer, folder)
            for piece in render(argv[0], file):
                out.write(piece)
        out.flush()
    except BrokenPipeError:
        # Whoever asked is gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (ValueError, OSError, MemoryError) as exc:  # pyarrow's errors are ValueErrors and OSErrors
        print(f"cannot render {argv[0]}: {type(exc).__name__}: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
