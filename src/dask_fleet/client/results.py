"""From a result's bytes to the value, by the codecs: Arrow, NPY, JSON, text … and never pickle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from dask_fleet.codecs.encode import codec_for
from dask_fleet.model.errors import ResultCorrupt, SetupError

JSON_MEDIA_TYPE = "application/json"
TEXT_MEDIA_TYPE = "text/plain"
NOTHING = object()
"""Stands for "no value here", as ``None`` is one."""

_DECODE_ON_LOOP_BYTES = 1 << 20
_NULL_BYTES = 4


def base_type(content_type: str) -> str:
    """Return a media type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def decode(content_type: str, body: bytes) -> Any:
    """Return the value.

    Raises
    ------
    SetupError
        If no codec for it is installed here.
    ResultCorrupt
        If the bytes are not what their type says.
    """
    try:
        codec = codec_for(content_type)
    except ValueError as exc:
        raise SetupError(str(exc)) from exc
    try:
        return codec.decode(body)
    except ValueError as exc:
        raise ResultCorrupt(f"the result cannot be read as {base_type(content_type)}: {exc}") from exc


async def decode_beside(content_type: str, body: bytes) -> Any:
    """Return `decode`; large results are decoded in a thread, so that the event loop goes on."""
    if len(body) <= _DECODE_ON_LOOP_BYTES:
        return decode(content_type, body)
    return await asyncio.to_thread(decode, content_type, body)


def inline_value(document: Mapping[str, Any]) -> Any:
    """Return the value that a job document carries, or `NOTHING` if it must be fetched.

    Only a result that is stored as JSON or text is taken from there: of a table it shows a rendering without its types.
    """
    media_type = base_type(document.get("result_media_type") or "")
    value = document.get("result")
    if media_type == TEXT_MEDIA_TYPE and isinstance(value, str):
        return value
    if media_type != JSON_MEDIA_TYPE or (value is None and document.get("result_size") != _NULL_BYTES):
        return NOTHING  # too large to be carried; a result that *is* null has the four bytes of that word
    return decode(JSON_MEDIA_TYPE, json.dumps(value).encode())
