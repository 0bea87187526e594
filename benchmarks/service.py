"""The trivial function, as Fleet serves it."""

from dask_fleet import Service

service = Service("bench")


@service.endpoint(cache="1d", timeout="1m")
def add_one(n: int) -> int:
    """Return ``n + 1``."""
    return n + 1
