"""Named resources of a host, written as Dask's own command line has them: ``GPU=2 licence=1``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def parse_resources(value: object) -> dict[str, float]:
    """Return the amounts by name of a text such as ``GPU=2 licence=1`` (commas will do), or of a mapping.

    Raises
    ------
    ValueError
        If it is anything else; the text says what was expected.
    """
    wish = "amounts by name, such as GPU=2 or GPU=2,licence=1"
    pairs: list[tuple[object, object]]
    if isinstance(value, str):
        parts = [part.partition("=") for part in re.split(r"[\s,]+", value.strip()) if part]
        if not all(equals for _, equals, _ in parts):
            raise ValueError(wish)
        pairs = [(name, amount) for name, _, amount in parts]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise ValueError(wish)  # noqa: TRY004 - as every parser of a setting
    found: dict[str, float] = {}
    for name, amount in pairs:
        try:
            number = math.nan if isinstance(amount, bool) else float(amount)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in found or not 0 < number < math.inf:
            raise ValueError(wish)
        found[name] = number
    return found


def resources_text(resources: Mapping[str, float]) -> str:
    """Return what `parse_resources` reads."""
    return ",".join(f"{name}={amount:.17g}" for name, amount in resources.items())
