"""Which Python values have a JSON form, and which.

Beyond JSON's own values: tuples become lists; dataclasses, pydantic models and named mappings become objects;
``datetime``, ``date`` and ``time`` become ISO 8601 text, ``timedelta`` an ISO 8601 duration; ``Decimal``,
``UUID`` and paths become text (exact); an ``Enum`` becomes its value; numpy scalars become numbers, arrays
inside other values nested lists; ``NaT`` and ``NA`` become ``null``. A float that JSON lacks is kept as a
tagged value, ``{"$float": "NaN"}`` (``"Infinity"``, ``"-Infinity"``). So that no value of the author's can be
taken for a tag, an object whose only name begins with ``$`` is wrapped: ``{"$": {"$float": "NaN"}}``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from dask_fleet.codecs.errors import WHAT_CAN_BE_RETURNED, ResultNotSerializable, type_name

MAX_DEPTH = 100
_PLAIN = frozenset({int, str, bool, type(None)})
_NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}


def to_json_value(value: Any, *, nan_as_null: bool = False) -> Any:
    """Return what the JSON writer can write of `value`; nothing of it is changed.

    Parameters
    ----------
    value
        What a function returned.
    nan_as_null
        Write NaN as ``null`` (as in tables, where it stands for a missing value) instead of its tag.

    Raises
    ------
    ResultNotSerializable
        Naming the type and the place of what has no JSON form.
    """
    return _convert(value, _Place("", None), 0, nan_as_null)


class _Place:
    """Where a value is; the text is only made for an error."""

    __slots__ = ("above", "step")

    def __init__(self, step: object, above: _Place | None) -> None:
        self.step = step
        self.above = above

    def __str__(self) -> str:
        steps: list[str] = []
        place: _Place | None = self
        while place is not None and place.above is not None:
            steps.append(f"[{place.step!r}]"[:80])
            place = place.above
        return "".join(reversed(steps[:20]))


def _convert(value: Any, place: _Place, depth: int, nan_as_null: bool) -> Any:  # noqa: FBT001
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is float:
        return value if math.isfinite(value) else _special(value, nan_as_null)
    if depth >= MAX_DEPTH:
        raise ResultNotSerializable(f"the value is nested more than {MAX_DEPTH} deep, or holds itself: return a flatter one")
    if kind is dict:
        return _object(value, place, depth, nan_as_null)
    if kind is list or kind is tuple:
        kinds = set(map(type, value))
        if kinds <= _PLAIN:
            return value
        if kinds == {float} and all(map(math.isfinite, value)):
            return value
        return [_convert(item, _Place(index, place), depth + 1, nan_as_null) for index, item in enumerate(value)]
    return _other(value, place, depth, nan_as_null)


def _special(value: float, nan_as_null: bool) -> Any:  # noqa: FBT001
    if nan_as_null and value != value:
        return None
    return {"$float": _NAMES.get(value, "NaN")}


def _object(value: Mapping[Any, Any], place: _Place, depth: int, nan_as_null: bool) -> dict[str, Any]:  # noqa: FBT001
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = key if type(key) is str else _name(key, place)
        kind = type(item)
        found[name] = item if kind in _PLAIN else _convert(item, _Place(key, place), depth + 1, nan_as_null)
    if len(found) != len(value):
        raise ResultNotSerializable(
            f"the dict{_at(place)} has keys that are the same text in JSON: make them different text"
        )
    if len(found) == 1 and next(iter(found)).startswith("$"):
        return {"$": found}
    return found


def _name(key: Any, place: _Place) -> str:
    """JSON names are text. Whole numbers and dates are common keys, and come back as text."""
    if isinstance(key, Enum):
        key = key.value
    if isinstance(key, str):
        return str(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return int.__repr__(key)
    if isinstance(key, dt.date | dt.time):
        return key.isoformat()
    if isinstance(key, UUID):
        return str(key)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(key, numpy.integer):
        return str(int(key))
    raise ResultNotSerializable(
        f"a key of the dict{_at(place)} is a {type_name(key)}: JSON has only text as keys, use str(…)"
    )


def _other(value: Any, place: _Place, depth: int, nan_as_null: bool) -> Any:  # noqa: FBT001
    for kinds, convert in _BY_CLASS:
        if isinstance(value, kinds):
            return convert(value, place, depth, nan_as_null)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _object(fields, place, depth, nan_as_null)
    for package, convert_of in _BY_PACKAGE:
        if package in sys.modules:
            found = convert_of(value, place, depth, nan_as_null)
            if found is not _NOTHING:
                return found
    raise ResultNotSerializable(f"{type_name(value)}{_at(place)} cannot be kept as a result{_cure(value)}")


def _at(place: _Place) -> str:
    where = str(place)
    return f" at {where}" if where else ""


def _cure(value: Any) -> str:
    if isinstance(value, set | frozenset):
        return ": a set has no order; return sorted(…)"
    if hasattr(value, "__next__"):
        return ": return list(…)"
    if hasattr(value, "__aiter__"):
        return ": collect it into a list"
    if isinstance(value, complex):
        return ": return its real and imaginary parts, or a numpy array alone"
    if isinstance(value, bytes | bytearray | memoryview):
        return " inside another value: return it alone, or as base64 text"
    kind = type_name(value)
    if kind.startswith(("pandas.", "pyarrow.", "polars.")):
        return " inside another value: return the table alone, or as records with .to_dict('records')"
    if kind.startswith("matplotlib."):
        return " inside another value: return the figure alone"
    if kind.startswith("dask."):
        return " inside another value: return it alone, or computed"
    if callable(value) and not isinstance(value, type):
        return ": return what it gives, not the function"
    return f"; {WHAT_CAN_BE_RETURNED}"


_NOTHING: Any = object()
_Converter = Callable[[Any, _Place, int, bool], Any]


def _enum(value: Any, place: _Place, depth: int, nan_as_null: bool) -> Any:  # noqa: FBT001
    return _convert(value.value, place, depth + 1, nan_as_null)


def _moment(value: Any, *_: object) -> str | None:
    text: str = value.isoformat()
    return None if text == "NaT" else text


def _duration(value: Any, *_: object) -> str | None:
    if value != value:
        return None
    micros = (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds
    seconds, rest = divmod(abs(micros), 1_000_000)
    fraction = f".{rest:06d}".rstrip("0") if rest else ""
    return f"{'-' if micros < 0 else ''}PT{seconds}{fraction}S"


def _number(value: Any, place: _Place, depth: int, nan_as_null: bool) -> Any:  # noqa: FBT001
    return _convert(float(value), place, depth, nan_as_null)


def _array(value: Any, place: _Place, depth: int, nan_as_null: bool) -> Any:  # noqa: FBT001
    return _convert(list(value), place, depth, nan_as_null)


def _text(value: Any, *_: object) -> str:
    return str(value)


_BY_CLASS: list[tuple[Any, _Converter]] = [
    (Enum, _enum),
    (str, lambda value, *_: str.__str__(value)),
    (int, lambda value, *_: int(value)),
    (float, _number),
    ((dt.datetime, dt.date, dt.time), _moment),
    (dt.timedelta, _duration),
    ((Decimal, UUID, PurePath), _text),
    ((list, tuple, deque), _array),
    ((dict, OrderedDict, defaultdict, Mapping), _object),
]


def _numpy(value: Any, place: _Place, depth: int, nan_as_null: bool) -> Any:  # noqa: FBT001
    import numpy as np

    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.timedelta64):
        return _NOTHING  # counts as an integer, in a unit that would be lost
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return _number(value, place, depth, nan_as_null)
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(value)
    if isinstance(value, np.ndarray):
        from dask_fleet.codecs.npy import nested_lists

        return _convert(nested_lists(value), place, depth, nan_as_null)
    return _NOTHING


def _pydantic(value: Any, place: _Place, depth: int, nan_as_null: bool) -> Any:  # noqa: FBT001
    from pydantic import BaseModel, RootModel

    if isinstance(value, BaseModel):
        from pydantic_core import PydanticSerializationError

        try:
            plain = value.model_dump(mode="json", by_alias=True)
        except (PydanticSerializationError, ValueError, TypeError) as exc:
            raise ResultNotSerializable(f"the {type_name(value)}{_at(place)} cannot be written as JSON: {exc}") from exc
        if isinstance(value, RootModel):
            return _convert(plain, place, depth + 1, nan_as_null)
        return _object(plain, place, depth, nan_as_null)
    return _NOTHING


def _pandas(value: Any, *_: object) -> Any:
    import pandas as pd

    return None if value is pd.NA or value is pd.NaT else _NOTHING


def _msgspec(value: Any, place: _Place, depth: int, nan_as_null: bool) -> Any:  # noqa: FBT001
    import msgspec

    if isinstance(value, msgspec.Struct):
        return _object({name: getattr(value, name) for name in value.__struct_fields__}, place, depth, nan_as_null)
    return _NOTHING


_BY_PACKAGE: list[tuple[str, _Converter]] = [
    ("numpy", _numpy),
    ("pydantic", _pydantic),
    ("pandas", _pandas),
    ("msgspec", _msgspec),
]


def from_json_value(value: Any) -> Any:
    """Return `value` with tagged floats and wrapped objects restored, in place where it can."""
    if isinstance(value, dict):
        if len(value) == 1:
            ((name, inner),) = value.items()
            if name == "$float" and inner in _FLOATS:
                return _FLOATS[inner]
            if name == "$" and isinstance(inner, dict) and len(inner) == 1:
                return {key: from_json_value(item) for key, item in inner.items()}
        for key, item in value.items():
            if isinstance(item, dict | list):
                value[key] = from_json_value(item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, dict | list):
                value[index] = from_json_value(item)
    return value


_FLOATS: dict[object, float] = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
