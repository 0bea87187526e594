"""Bytes: ``bytes``, ``bytearray`` or ``memoryview`` alone, as they are."""

from __future__ import annotations

import base64
from typing import Any

from dask_fleet.plugins.codec import Codec

MEDIA_TYPE = "application/octet-stream"


class BytesCodec(Codec):
    """Stores bytes; ``bytearray`` and ``memoryview`` come back as ``bytes``."""

    name = "bytes"
    media_type = MEDIA_TYPE
    order = 20

    def takes(self, value: Any) -> bool:
        """Whether `value` is bytes."""
        return isinstance(value, bytes | bytearray | memoryview)

    def encode(self, value: Any) -> bytes:
        """Return the bytes."""
        return bytes(value)

    def decode(self, data: bytes | memoryview) -> Any:
        """Return the bytes."""
        return bytes(data)

    def to_json(self, value: Any, *, max_bytes: int) -> bytes | None:
        """Return ``{"$bytes": "<base64>", "media_type": …}``."""
        return bytes_as_json(value, MEDIA_TYPE, max_bytes=max_bytes)


def bytes_as_json(data: Any, media_type: str, *, max_bytes: int) -> bytes | None:
    """Return the JSON rendering of bytes of any media type, or ``None`` if it would be larger than
    `max_bytes`.
    """
    view = memoryview(data)
    head, tail = b'{"$bytes":"', b'","media_type":"%s"}' % media_type.encode("ascii")
    if len(head) + len(tail) + 4 * ((view.nbytes + 2) // 3) > max_bytes:
        return None
    return head + base64.b64encode(bytes(view)) + tail
