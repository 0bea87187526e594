"""PNG: matplotlib figures, drawn when the job ends."""

from __future__ import annotations

import io
import sys
import threading
from typing import Any

from dask_fleet.codecs.bytes import bytes_as_json
from dask_fleet.plugins.codec import Codec

MEDIA_TYPE = "image/png"

_drawing = threading.Lock()
"""Matplotlib's font caches are not made for threads; drawing takes turns within a process."""


class PNGImage(bytes):
    """The bytes of a PNG file, shown as the picture in notebooks."""

    __slots__ = ()

    def _repr_png_(self) -> bytes:
        return bytes(self)

    def __repr__(self) -> str:
        return f"<PNGImage of {len(self):,} bytes>"


class PNGCodec(Codec):
    """Stores a ``Figure``, or the figure of an ``Axes``, as a picture; it comes back as `PNGImage`."""

    name = "png"
    media_type = MEDIA_TYPE
    order = 50

    def takes(self, value: Any) -> bool:
        """Whether `value` is a figure or axes of matplotlib."""
        return _figure_of(value) is not None

    def encode(self, value: Any) -> bytes:
        """Draw the figure as its ``savefig`` would, and close it, so that no figure outlives its job."""
        figure = _figure_of(value)
        assert figure is not None
        buffer = io.BytesIO()
        with _drawing:
            try:
                # Without the name and version of the software, equal figures are equal bytes.
                figure.savefig(buffer, format="png", metadata={"Software": None})
            finally:
                pyplot = sys.modules.get("matplotlib.pyplot")
                if pyplot is not None:
                    pyplot.close(figure)
        return buffer.getvalue()

    def decode(self, data: bytes | memoryview) -> PNGImage:
        """Return the picture's bytes."""
        return PNGImage(data)

    def to_json(self, value: Any, *, max_bytes: int) -> bytes | None:
        """Return ``{"$bytes": "<base64>", "media_type": "image/png"}``; `value` may be the drawn bytes, which
        saves drawing twice.
        """
        data = value if isinstance(value, bytes) else self.encode(value)
        return bytes_as_json(data, MEDIA_TYPE, max_bytes=max_bytes)


def _figure_of(value: Any) -> Any:
    module = sys.modules.get("matplotlib.figure")
    if module is None:
        return None
    if isinstance(value, module.Figure):
        return value
    axes = sys.modules.get("matplotlib.axes")
    if axes is not None and isinstance(value, axes.Axes):
        figure = value.get_figure(root=True)
        return figure if isinstance(figure, module.Figure) else None
    return None
