"""Chooses the codec of a value, and of stored bytes."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from dask_fleet.codecs.bytes import BytesCodec
from dask_fleet.codecs.errors import ResultNotSerializable, ResultTooLarge, type_name
from dask_fleet.codecs.json import MEDIA_TYPE as JSON_MEDIA_TYPE
from dask_fleet.codecs.json import JSONCodec
from dask_fleet.codecs.text import TextCodec
from dask_fleet.plugins import registry
from dask_fleet.plugins.codec import Codec

JSON_RENDERING_MAX_BYTES = 256 << 10

__all__ = ["Encoded", "ResultNotSerializable", "ResultTooLarge", "codec_for", "codecs", "decode", "encode"]

_json, _text, _bytes = JSONCodec(), TextCodec(), BytesCodec()
_OF_PLAIN_TYPES: dict[type, Codec] = {
    type(None): _json,
    bool: _json,
    int: _json,
    float: _json,
    dict: _json,
    list: _json,
    tuple: _json,
    str: _text,
    bytes: _bytes,
}
"""Python's own types always have these forms, without asking each codec."""


class Encoded(NamedTuple):
    """A value in its stored form."""

    media_type: str
    data: bytes | memoryview
    json: bytes | None
    """The JSON rendering, where the stored form is not JSON itself and it is small."""


@cache
def codecs() -> tuple[Codec, ...]:
    """Return the installed codecs in the order in which they are asked; looked up once, which takes
    milliseconds.
    """
    found = [registry.load("codec", name)() for name in registry.names("codec")]
    return tuple(sorted(found, key=lambda codec: (codec.order, codec.name)))


def encode(value: Any, *, max_bytes: int, json_max: int = JSON_RENDERING_MAX_BYTES) -> Encoded:
    """Return the stored form of what a function returned.

    Parameters
    ----------
    value
        The value.
    max_bytes
        Largest stored form.
    json_max
        Largest JSON rendering to make beside it.

    Raises
    ------
    ResultNotSerializable
        A ``TypeError`` naming the type and what can be returned.
    ResultTooLarge
        A ``ValueError`` with both sizes.
    """
    codec = _OF_PLAIN_TYPES.get(type(value)) or _first_that_takes(value)
    try:
        data = codec.encode(value)
    except ResultNotSerializable:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise ResultNotSerializable(f"a {type_name(value)} cannot be kept as {codec.media_type}: {exc}") from exc
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if size > max_bytes:
        raise ResultTooLarge(
            f"the result takes {size:,} bytes as {codec.media_type}, more than the endpoint's max_result of {max_bytes:,}"
        )
    if codec is _json:
        return Encoded(JSON_MEDIA_TYPE, data, None)
    rendered_of = data if codec.media_type.startswith("image/") else value  # do not draw a picture twice
    return Encoded(codec.media_type, data, codec.to_json(rendered_of, max_bytes=json_max))


def _first_that_takes(value: Any) -> Codec:
    for codec in codecs():
        if codec.takes(value):
            return _json if type(codec) is JSONCodec else codec
    raise ResultNotSerializable(f"no installed codec takes a {type_name(value)}")


def codec_for(media_type: str) -> Codec:
    """Return the codec of a media type; its parameters (``charset``) and case do not matter.

    Raises
    ------
    ValueError
        If none is installed.
    """
    wanted = _essence(media_type)
    for codec in codecs():
        if _essence(codec.media_type) == wanted:
            return codec
    known = ", ".join(_essence(codec.media_type) for codec in codecs())
    raise ValueError(f"no installed codec reads {media_type!r} (installed: {known}): install the package that stores it")


def decode(media_type: str, data: bytes | memoryview) -> Any:
    """Return the value of stored bytes; the inverse of `encode`, up to the losses that the codecs document.

    Raises
    ------
    ValueError
        If no codec reads that media type, or the bytes are damaged.
    """
    return codec_for(media_type).decode(data)


def _essence(media_type: str) -> str:
    return media_type.partition(";")[0].strip().lower()
