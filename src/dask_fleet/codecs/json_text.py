"""JSON text as results need it: whole numbers of any size, which Python's own reader and writer cut off at
4,300 digits.
"""

from __future__ import annotations

import json
import math
import secrets
import sys
from decimal import Decimal
from typing import Any

from dask_fleet.codecs.errors import ResultNotSerializable

MAX_INT_DIGITS = 100_000
"""Turning one into text takes time with the square of its digits: about 0.2 s for as many."""
_BITS_OF_MOST_DIGITS = int(MAX_INT_DIGITS * math.log2(10))

_writer = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))


def write_json(value: Any) -> bytes:
    """Return the JSON text of a value that :func:`~dask_fleet.codecs.json_values.to_json_value` returned.

    Raises
    ------
    ResultNotSerializable
        If text in it holds half a surrogate pair, or a whole number has more than 100,000 digits.
    """
    try:
        text = _writer.encode(value)
    except ValueError:
        text = _write_large_integers(value)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ResultNotSerializable(
            f"a text holds half of a surrogate pair ({exc.object[exc.start]!r}), which UTF-8 cannot write"
        ) from None


def _write_large_integers(value: Any) -> str:
    """Write with every whole number of more digits than Python allows replaced by a placeholder, then put its
    digits in.
    """
    digits: dict[str, str] = {}
    mark = secrets.token_hex(16)  # no text of the author's can be a mark

    def replace(node: Any) -> Any:
        if type(node) is int and node.bit_length() > 14_000:
            if node.bit_length() > _BITS_OF_MOST_DIGITS + 1:
                raise ResultNotSerializable(f"a whole number has more than {MAX_INT_DIGITS:,} digits: return it as bytes")
            name = f"{mark}{len(digits)}"
            digits[f'"{name}"'] = format(Decimal(node), "f")
            return name
        if isinstance(node, dict):
            return {key: replace(item) for key, item in node.items()}
        if isinstance(node, list | tuple):
            return [replace(item) for item in node]
        return node

    text = _writer.encode(replace(value))
    for name, shown in digits.items():
        text = text.replace(name, shown)
    return text


def read_json(data: bytes | bytearray | memoryview) -> Any:
    """Return the value of JSON text that we wrote ourselves: whole numbers are exact at any size.

    Raises
    ------
    ValueError
        If it is no JSON.
    """
    return json.loads(bytes(data), parse_int=_parse_int if len(data) > sys.int_info.default_max_str_digits else None)


def _parse_int(text: str) -> int:
    return int(text) if len(text) < sys.int_info.str_digits_check_threshold else int(Decimal(text))
