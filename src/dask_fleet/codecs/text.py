"""Text: a ``str`` alone, as UTF-8."""

from __future__ import annotations

import json
from typing import Any

from dask_fleet.codecs.errors import ResultNotSerializable
from dask_fleet.plugins.codec import Codec

MEDIA_TYPE = "text/plain; charset=utf-8"


class TextCodec(Codec):
    """Stores a ``str``; its JSON rendering is a JSON string."""

    name = "text"
    media_type = MEDIA_TYPE
    order = 10

    def takes(self, value: Any) -> bool:
        """Whether `value` is text."""
        return type(value) is str

    def encode(self, value: Any) -> bytes:
        """Return UTF-8."""
        try:
            return str(value).encode("utf-8")
        except UnicodeEncodeError as exc:
            raise ResultNotSerializable(
                f"the text holds half of a surrogate pair at character {exc.start}, which UTF-8 cannot write;"
                " return bytes if it is not text"
            ) from None

    def decode(self, data: bytes | memoryview) -> str:
        """Return the text."""
        return str(data, "utf-8")

    def to_json(self, value: Any, *, max_bytes: int) -> bytes | None:
        """Return a JSON string."""
        if len(value) > max_bytes:
            return None
        text = json.dumps(value, ensure_ascii=False).encode("utf-8")
        return text if len(text) <= max_bytes else None
