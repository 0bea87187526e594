"""NPY: numpy arrays, in numpy's own format, never with pickles in it."""

from __future__ import annotations

import io
import sys
from typing import Any

from dask_fleet.codecs.errors import ResultNotSerializable, type_name
from dask_fleet.plugins.codec import Codec

MEDIA_TYPE = "application/x-npy"


class NPYCodec(Codec):
    """Stores an ``ndarray`` of numbers, times, text, or records of these. Memory order is kept; subclasses
    come back plain.
    """

    name = "npy"
    media_type = MEDIA_TYPE
    order = 40

    def takes(self, value: Any) -> bool:
        """Whether `value` is an array."""
        numpy = sys.modules.get("numpy")
        return numpy is not None and isinstance(value, numpy.ndarray)

    def encode(self, value: Any) -> memoryview:
        """Return the NPY file."""
        import numpy as np

        if isinstance(value, np.ma.MaskedArray):
            raise ResultNotSerializable("a masked array would lose its mask: return array.filled(…), or the mask as well")
        if value.dtype.hasobject:
            raise ResultNotSerializable(
                f"an array of dtype {value.dtype} holds Python objects (such as {_first_type(value)}):"
                " give it a numeric or text dtype, or return array.tolist()"
            )
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asarray(value), allow_pickle=False)
        return buffer.getbuffer()

    def decode(self, data: bytes | memoryview) -> Any:
        """Return the array; refuses pickled objects."""
        import numpy as np

        return np.load(io.BytesIO(data), allow_pickle=False)

    def to_json(self, value: Any, *, max_bytes: int) -> bytes | None:
        """Return nested lists: complex numbers as ``[re, im]``, times as ISO 8601 text, NaN as its tag,
        records as lists.
        """
        from dask_fleet.codecs.json_text import write_json
        from dask_fleet.codecs.json_values import to_json_value

        if value.size * 2 > max_bytes:  # a digit and a comma each, at least
            return None
        text = write_json(to_json_value(nested_lists(value)))
        return text if len(text) <= max_bytes else None


def nested_lists(array: Any) -> Any:
    """Return `array` as nested lists of Python's own values (of its one value if it has no dimension).

    Raises
    ------
    ResultNotSerializable
        If an element has no JSON form.
    """
    import numpy as np

    kind = array.dtype.kind
    if kind == "c":
        return np.stack([array.real, array.imag], axis=-1).tolist()  # one more dimension, of two
    if kind == "M":
        text: Any = np.datetime_as_string(array).astype(object)
        text[np.isnat(array)] = None
        return text.tolist()
    if kind == "m":
        # Seconds, as NaN where not a time: a duration has no standard text that numpy can write.
        return (array / np.timedelta64(1, "s")).tolist()
    if kind == "S":
        return np.char.decode(array, "latin-1").tolist()
    if kind == "V" and array.dtype.names is None:
        raise ResultNotSerializable("an array of raw bytes (dtype void) has no JSON form: return its bytes")
    if kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64).tolist()
    return array.tolist()


def _first_type(array: Any) -> str:
    return type_name(array.flat[0]) if array.size else "…"
