"""Which form of a result a caller gets: ``Accept`` (RFC 9110, section 12.5.1) against what there is."""

from __future__ import annotations

import re
from collections.abc import Sequence

_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_MAX_RANGES = 50


def choose(accept: str | None, offers: Sequence[str]) -> str | None:
    """Return the offered media type that suits best, or ``None`` if `accept` allows none of them.

    The highest quality wins; between equals the earlier offer. Parameters of media ranges other than ``q`` are not
    looked at, and malformed ranges are passed over. Without a header, everything suits.
    """
    if accept is None or not accept.strip():
        return offers[0] if offers else None
    ranges = _parse(accept)
    best: str | None = None
    best_quality = 0.0
    for offer in offers:
        quality = _quality_of(offer, ranges)
        if quality > best_quality:
            best, best_quality = offer, quality
    return best


def _parse(accept: str) -> list[tuple[str, str, float]]:
    """Return the media ranges of a header as type, subtype, quality."""
    ranges: list[tuple[str, str, float]] = []
    for item in accept.split(",")[:_MAX_RANGES]:
        media_range, *parameters = (part.strip() for part in item.split(";"))
        main, slash, sub = media_range.lower().partition("/")
        if not slash or not _TOKEN.match(main) or not _TOKEN.match(sub) or (main == "*" and sub != "*"):
            continue
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                if not _QUALITY.match(value.strip()):
                    break
                quality = float(value)
        else:
            ranges.append((main, sub, quality))
    return ranges


def _quality_of(offer: str, ranges: list[tuple[str, str, float]]) -> float:
    """Return the quality of an offer: that of the most specific range which covers it."""
    main, _, sub = offer.partition(";")[0].strip().lower().partition("/")
    quality, specificity = 0.0, -1
    for range_main, range_sub, range_quality in ranges:
        if range_main == "*":
            specific = 0
        elif range_main == main and range_sub == "*":
            specific = 1
        elif range_main == main and range_sub == sub:
            specific = 2
        else:
            continue
        if specific > specificity or (specific == specificity and range_quality > quality):
            quality, specificity = range_quality, specific
    return quality
