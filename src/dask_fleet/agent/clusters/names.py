"""What Dask calls our workers."""

from __future__ import annotations


def dask_name(name: str) -> int | str:
    """Return a worker's name as Dask has it: a number if it is one, so that ``submit(..., workers=[0])`` finds it.

    >>> dask_name("7"), dask_name("07"), dask_name("gpu-1")
    (7, '07', 'gpu-1')
    """
    return int(name) if name.isdecimal() and str(int(name)) == name else name
