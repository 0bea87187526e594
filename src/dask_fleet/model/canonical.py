"""Canonical JSON: one value, one spelling, so that equal requests are equal bytes.

Keys in order of code points, no white space, text as UTF-8 without needless escapes, floats in their shortest
form that reads back the same (``repr``), integers exact at any size. This deviates from RFC 8785 (JCS) where
that would merge integers beyond 2**53; ``docs/decisions/0005-canonical-parameters.md`` says how and why.
"""

from __future__ import annotations

import json
from typing import Any

_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"), check_circular=False
).encode


def canonical_bytes(value: Any) -> bytes:
    """Return the canonical spelling of a JSON value (``dict`` with text keys, ``list``, ``str``, ``int``,
    ``float``, ``bool``, ``None``).

    Numbers are spelled as they are: bring them to the form their schema asks for first
    (:meth:`dask_fleet.services.requests.RequestValidator.canonical`).

    Raises
    ------
    ValueError
        If a float is NaN or infinite, or text holds half a surrogate pair (``UnicodeEncodeError``).
    TypeError
        If a value is no JSON value.
    """
    return _encode(value).encode("utf-8")
