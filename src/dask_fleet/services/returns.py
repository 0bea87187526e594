"""What a function says it returns, as one word and, where there is one, a JSON Schema."""

from __future__ import annotations

import inspect
import types
import typing
import warnings
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

from dask_fleet.services.annotations import resolve

_WORDS_BY_NAME = {
    "DataFrame": "table",
    "Series": "table",
    "Index": "table",
    "Table": "table",
    "RecordBatch": "table",
    "ndarray": "array",
    "NDArray": "array",
    "Figure": "figure",
    "Axes": "figure",
    "Delayed": "dask",
}
_TABLE_PACKAGES = frozenset({"pandas", "pyarrow", "polars"})
_DASK_PACKAGES = frozenset({"dask", "dask_expr"})


def describe_result(function: Callable[..., Any]) -> tuple[str, dict[str, Any] | None]:
    """Return the word (see `EndpointManifest.returns`) and the JSON Schema of what `function` returns.

    A missing or unknown annotation is no fault: ``any``. Nothing heavy is imported: types are known by module
    and name.
    """
    annotation = inspect.signature(function).return_annotation
    if annotation is inspect.Signature.empty:
        return "any", None
    try:
        kind = resolve(function, "return", annotation)
    except Exception:  # noqa: BLE001 - often a name that is imported for type checkers only
        return _word_of_text(annotation), None
    word = _word_of(kind)
    if word == "text":
        return word, {"type": "string"}
    if word != "json":
        return word, None
    schema = _json_schema(kind)
    return ("json", schema) if schema is not None else ("any", None)


def _word_of_text(annotation: object) -> str:
    if not isinstance(annotation, str):
        return "any"
    parts = annotation.split("[", 1)[0].strip().split(".")
    if parts[0] in {"dd", "da", "db", "dask"}:
        return "dask"
    return _WORDS_BY_NAME.get(parts[-1], "any")


def _word_of(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        return _word_of(get_args(kind)[0])
    if origin in {Union, types.UnionType}:
        words = {_word_of(part) for part in get_args(kind) if part is not types.NoneType}
        return words.pop() if len(words) == 1 else "json" if words <= {"json", "text"} else "any"
    if kind is Any or isinstance(kind, typing.TypeVar):
        return "any"
    if kind is str:
        return "text"
    if kind in (bytes, bytearray, memoryview):
        return "bytes"
    plain = origin if origin is not None else kind
    for base in getattr(plain, "__mro__", (plain,)):
        package = getattr(base, "__module__", "").partition(".")[0]
        word = _WORDS_BY_NAME.get(getattr(base, "__name__", ""))
        if package in _DASK_PACKAGES:
            return "dask"
        if (package in _TABLE_PACKAGES and word == "table") or (package == "numpy" and word == "array"):
            return word
        if package == "matplotlib" and word == "figure":
            return word
    return "json"


def _json_schema(kind: Any) -> dict[str, Any] | None:
    import json

    from pydantic import TypeAdapter
    from pydantic_core import to_jsonable_python

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what cannot be told is left out here: it only describes
            schema = TypeAdapter(kind).json_schema(mode="serialization")
        plain: dict[str, Any] = json.loads(json.dumps(to_jsonable_python(schema), allow_nan=False))
    except Exception:  # noqa: BLE001 - a description that cannot be made is left out
        return None
    return plain
