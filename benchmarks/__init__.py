"""Measurements of Fleet and of what teams build without it. See ``docs/benchmarks.md``; run by ``make bench``."""
