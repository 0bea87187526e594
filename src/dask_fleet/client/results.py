"""From a result's bytes to the value, by the codecs: Arrow, NPY, JSON, text … and never pickle."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
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
_DIGEST = re.compile(r"[0-9a-f]{64}")


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


def checked_decode(content_type: str, body: bytes, etag: str) -> Any:
    """Return `decode`, after comparing the bytes with their digest where the ETag is one (of the stored form it is).

    Raises
    ------
    ResultCorrupt
        If they were changed on their way.
    """
    tag = etag.strip('"')
    if _DIGEST.fullmatch(tag) and hashlib.sha256(body).hexdigest() != tag:
        raise ResultCorrupt("the result's bytes do not match their digest: they were changed on their way here")
    return decode(content_type, body)


async def decode_beside(content_type: str, body: bytes, *, etag: str) -> Any:
    """Return `checked_decode`; large results are decoded in a thread, so that the event loop goes on."""
    if len(body) <= _DECODE_ON_LOOP_BYTES:
        return checked_decode(content_type, body, etag)
    return await asyncio.to_thread(checked_decode, content_type, body, etag)


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
