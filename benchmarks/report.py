"""The report: medians, ratios and the aims beside them, as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

Median = Callable[[str], float | None]
PACKAGES = ("dask-fleet", "distributed", "celery", "fastapi", "redis", "starlette", "uvicorn", "uvloop", "apsw")
NOTES = "<!-- notes -->"
"""What follows this line in the report is written by hand and kept."""
HOSTILE = "## An honest client under attack"


def render(median: Median, samples: Mapping[str, Sequence[float]], *, rounds: int, many: int, rows: int) -> str:
    """Return the report."""
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Made by `make bench`; the machinery is in `benchmarks/`. Timing is never a test here: a shared machine would",
            "make it fail at random. Figures of another machine will differ; the ratios, taken in one run, are what lasts.",
            "",
            *_conditions(median, rounds),
            "",
            "## Fleet and what teams build without it",
            "",
            *_comparison(median),
            "",
            "## Aims",
            "",
            *_aims(median, samples, many=many, rows=rows),
            "",
            f"## Listings with {rows:,} jobs",
            "",
            *_listings(samples),
            "",
            HOSTILE,
            "",
            *hostile(median),
            "",
            *_notes(),
        ]
    )


def _conditions(median: Median, rounds: int) -> list[str]:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [
        f"* {datetime.now(UTC):%Y-%m-%d}; {os.cpu_count()} cores, {memory_gb:.0f} GB, Linux,",
        f"  Python {platform.python_version()}; medians of {rounds} interleaved rounds;",
        f"  **fsync of 4 KiB on this disk: {_figure(median('fsync ms'), 2)} ms**.",
        f"* {versions}.",
        "* The function returns `n + 1`. Every system has two worker processes of one thread and starts afresh each round.",
        "* One generator for all (`benchmarks/generator.py`): a process of its own on the same cores, asyncio, uvloop, raw",
        "  sockets, HTTP/1.1 with keep-alive. A call counts when its result has arrived and is right. Fleet is asked with",
        "  `Prefer: wait`; the peers have no such thing and are polled every 5 ms.",
        "* Redis runs without persistence, its fastest form: what a peer has accepted is on no disk. Fleet answers after",
        "  two commits with fsync.",
    ]


def _comparison(median: Median) -> list[str]:
    rows = [
        "| | Fleet | (a) FastAPI + `Client.submit` + Redis | (b) FastAPI + Celery + Redis, late acks |",
        "|---|---:|---:|---:|",
    ]
    for label, key, digits in (
        ("fresh call, median, 1 connection (ms)", "fresh p50 ms, 1 connection", 2),
        ("fresh call, 99 %, 1 connection (ms)", "fresh p99 ms, 1 connection", 2),
        ("fresh calls per s, 32 connections", "fresh per s, 32 connections", 0),
        ("fresh call, 99 %, 32 connections (ms)", "fresh p99 ms, 32 connections", 1),
        ("repeated calls per s, 32 connections", "repeated per s, 32 connections", 0),
    ):
        figures = [_figure(median(f"{who} {key}"), digits) for who in ("fleet", "a", "b")]
        rows.append(f"| {label} | {' | '.join(figures)} |")
    rates = {who: median(f"{who} fresh per s, 32 connections") for who in ("fleet", "a", "b")}
    ratios = [_ratio(rates["fleet"], rates[who]) for who in "ab"]
    rows.append(f"| **Fleet's fresh calls per s, in multiples** | | **{ratios[0]}** | **{ratios[1]}** |")
    rows += ["| accepted means on disk | yes | no | no |", "| equal requests at once run once | yes | no | no |"]
    return rows


def _aims(median: Median, samples: Mapping[str, Sequence[float]], *, many: int, rows: int) -> list[str]:
    fresh = median("fleet fresh per s, 32 connections")
    one, one_large = median("empty ledger p50 ms, 1 connection"), median("large ledger p50 ms, 1 connection")
    busy, busy_large = median("empty ledger per s, 32 connections"), median("large ledger per s, 32 connections")
    listings = [max(values) for name, values in samples.items() if name.startswith("list ")]
    idle = median("fleet rss idle MB")
    table: list[tuple[str, str, float | None, float, str]] = [
        ("fresh durable call, median, 1 connection", "≤ 1.5 ms", median("fleet fresh p50 ms, 1 connection"), -1.5, "ms"),
        ("fresh durable calls, 32 connections", "≥ 3,000 per s", fresh, 3_000, "per s"),
        ("… in multiples of (a)", "≥ 20", _quotient(fresh, median("a fresh per s, 32 connections")), 20, "x"),
        ("… in multiples of (b)", "≥ 13", _quotient(fresh, median("b fresh per s, 32 connections")), 13, "x"),
        ("repeated calls, 32 connections", "≥ 6,000 per s", median("fleet repeated per s, 32 connections"), 6_000, "per s"),
        ("`serve` to `/readyz` with its agent ready", "≤ 2.5 s", median("fleet ready s"), -2.5, "s"),
        ("… of the flights example", "≤ 2.5 s", median("flights ready s"), -2.5, "s"),
        ("server process, idle", "≤ 120 MB", idle, -120, "MB"),
        (f"server process after {many:,} jobs", "≤ 120 MB", median("fleet rss after many MB"), -120, "MB"),
        (f"call with {rows:,} jobs, 1 connection", "≤ 1.2 x", _quotient(one_large, one), -1.2, "x"),
        (f"call with {rows:,} jobs, 32 connections", "≤ 1.2 x", _quotient(busy, busy_large), -1.2, "x"),
        ("filtered list, slowest of all", "≤ 50 ms", max(listings, default=None), -50, "ms"),
    ]
    lines = ["| | aim | measured | |", "|---|---:|---:|---|"]
    for label, aim, value, bound, unit in table:
        met = value is not None and (value >= bound if bound > 0 else value <= -bound)
        shown = _figure(value, 0 if value is not None and value >= 100 else 2)
        lines.append(f"| {label} | {aim} | {shown} {unit} | {'met' if met else '**open**'} |")
    return lines


def _listings(samples: Mapping[str, Sequence[float]]) -> list[str]:
    lines = ["Each asked ten times over HTTP, 50 rows a page.", "", "| filter | median ms | slowest ms |", "|---|---:|---:|"]
    for name, values in samples.items():
        if name.startswith("list "):
            ordered = sorted(values)
            lines.append(f"| {name[5:-3]} | {ordered[len(ordered) // 2]:.1f} | {ordered[-1]:.1f} |")
    return lines


_ATTACKS = (
    ("paced", "hostile requests, 400 a second"),
    ("unlimited", "hostile requests, as many as are answered"),
    ("opening", "1,000 slow sockets are opened, all at once"),
    ("trickling", "1,000 slow sockets are open"),
    ("hanging up", "1,000 slow sockets hang up, all at once"),
    ("bodies", "100 bodies without end, all at once"),
)


def hostile(median: Median) -> list[str]:
    """Return what `benchmarks/hostile.py` has measured."""
    rows = [
        "The client asks for a result that is there, on one connection; it and the attackers are processes of their own on",
        "the same cores as the server. Polite attackers take only processor time that neither server nor client wants: what",
        "the client waits for longer is the server's doing (aim: its 99 % at most doubled). Others compete for the cores.",
        "Other programs' load hides in all rows what is small.",
        f"Load average of the machine before: {_figure(median('hostile load average'), 1)}, of {os.cpu_count()} cores.",
        "",
        "| | polite: median ms | 99 % ms | in multiples | competing: median ms | 99 % ms | in multiples |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, label in (("alone", "alone"), *_ATTACKS):
        keys = ("p50 ms", "p99 ms", "p99 ratio")
        names = [f"hostile {manner} {name} {key}" for manner in ("polite", "free") for key in keys]
        figures = [_figure(median(one), 2) for one in names]
        rows.append(f"| {label} | {' | '.join(figures)} |")
    polite, free = (_figure(median(f"hostile {manner} unlimited per s"), 0) for manner in ("polite", "free"))
    return [*rows, "", f"Hostile requests answered a second, without limit: {polite} (polite), {free} (competing)."]


def publish(heading: str, lines: Sequence[str], output: Path | None) -> None:
    """Print what was measured; if `output` is given, make its section in that report anew."""
    print("\n".join(lines))
    if output is not None:
        output.write_text(with_section(output.read_text(encoding="utf-8"), heading, lines), encoding="utf-8")


def with_section(text: str, heading: str, lines: Sequence[str]) -> str:
    """Return a report with one section new: for those who measure one thing only."""
    before, found, rest = text.partition(f"{heading}\n")
    if not found:
        before, _, rest = text.partition(NOTES)
        rest = NOTES + rest
    ends = [at for at in (rest.find("\n## "), rest.find(NOTES)) if at >= 0]
    rest = rest[min(ends, default=len(rest)) :].lstrip("\n")
    return "\n".join([before.rstrip("\n"), "", heading, "", *lines, "", rest])


def with_others(text: str, last: str) -> str:
    """Return a new report with those sections of the last one that it does not have: others have measured them."""
    for part in last.partition(NOTES)[0].split("\n## ")[1:]:
        heading, _, lines = part.partition("\n")
        if f"\n## {heading}\n" not in text:
            text = with_section(text, f"## {heading}", [lines.strip("\n")])
    return text


def _notes() -> list[str]:
    """Keep what people wrote below the mark in the last report."""
    path = Path(__file__).parent.parent / "docs" / "benchmarks.md"
    kept = path.read_text(encoding="utf-8").partition(NOTES)[2] if path.exists() else ""
    return [NOTES + (kept or "\n")]


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _ratio(above: float | None, below: float | None) -> str:
    value = _quotient(above, below)
    return f"{value:.0f} x" if value is not None else "-"


def _figure(value: float | None, digits: int) -> str:
    return f"{value:,.{digits}f}" if value is not None else "-"
