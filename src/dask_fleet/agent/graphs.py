"""How large a graph is, and whether it may leave its process: what decides where it is computed.

Dask hands a scheduler an optimised expression, not yet a graph. Its layers tell for nothing how many tasks there may be;
only where that leaves it open is the graph made, which the threaded scheduler does anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

SURELY_LARGE = 20
"""Layers of so many times the limit make a large graph, whatever fusing them will leave."""
_MOST_WALKED = 100_000
"""Tasks of a graph whose width is found out; what has more gets all that the pool can give, anyway."""

_KEPT_ON_DISK = ("groupby-collect-", "partd-")
"""Layers by which a bag is grouped where there is no cluster: their tasks meet in a folder of their host."""


class Size(NamedTuple):
    """Of a graph. The width is the number of tasks that could run at once at most, as far as can be told cheaply."""

    tasks: int
    width: int


class Layers(NamedTuple):
    """What an expression tells without being turned into a graph."""

    tasks: int
    """About how many; 0 if it does not tell."""
    width: int
    bound: bool
    """It keeps data on the disk of its host: it was made for one process."""
    lowered: bool = False
    """So does what it was optimised to; what it was made from may become something else."""


def look(expression: Any) -> Layers:
    """Look at the layers of what Dask hands to a scheduler."""
    walk = getattr(expression, "walk", None)
    if walk is None:
        return Layers(0, 0, bound=False)
    tasks = width = 0
    bound = lowered = False
    try:
        for node in walk():
            lowered = lowered or "Disk" in type(node).__name__
            layered = getattr(node, "hlg", None)
            if layered is not None:
                for name, layer in layered.layers.items():
                    tasks, width = tasks + len(layer), max(width, len(layer))
                    bound = bound or str(name).startswith(_KEPT_ON_DISK)
            else:
                partitions = getattr(node, "npartitions", 0)
                tasks, width = tasks + partitions, max(width, partitions)
    except Exception:  # noqa: BLE001 - an expression is the author's own, or of another version of Dask
        return Layers(0, 0, bound=bound, lowered=lowered)
    return Layers(tasks, width, bound=bound, lowered=lowered)


def as_graph(expression: Any) -> Mapping[Any, Any]:
    """Return the graph of what Dask hands to a scheduler."""
    if isinstance(expression, Mapping):
        return expression
    graph: Mapping[Any, Any] = expression.__dask_graph__()
    return graph


def size_of(graph: Mapping[Any, Any]) -> Size:
    """Return how many tasks `graph` has, and how many the widest of its levels."""
    tasks = len(graph)
    if tasks > _MOST_WALKED:
        return Size(tasks, tasks)
    try:
        from dask._task_spec import convert_legacy_graph

        return Size(tasks, _width({key: node.dependencies for key, node in convert_legacy_graph(graph).items()}))
    except Exception:  # noqa: BLE001 - another version of Dask: the estimate is only worse
        return Size(tasks, tasks)


def _width(dependencies: Mapping[Any, Any]) -> int:
    """Return the most tasks of one depth, the depth of a task being its longest way to a task without inputs."""
    missing = {key: sum(other in dependencies for other in needs) for key, needs in dependencies.items()}
    dependents: dict[Any, list[Any]] = {}
    for key, needs in dependencies.items():
        for other in needs:
            if other in dependencies:
                dependents.setdefault(other, []).append(key)
    level = [key for key, count in missing.items() if not count]
    widest = 0
    while level:
        widest = max(widest, len(level))
        after = []
        for key in level:
            for dependent in dependents.get(key, ()):
                missing[dependent] -= 1
                if not missing[dependent]:
                    after.append(dependent)
        level = after
    return widest


def large(expression: Any, limit: int, *, again: bool = False) -> tuple[Size | None, Any]:
    """Return the size of what Dask hands to a scheduler if it has more than `limit` tasks and may leave the process.

    Else ``None``; and in any case what to compute: the expression, or the graph if it had to be made.

    Parameters
    ----------
    again
        On a cluster it would be optimised again. How a dataframe is shuffled is decided only then.
    """
    layers = look(expression)
    if layers.bound or (layers.lowered and not again):
        return None, expression
    if layers.tasks > SURELY_LARGE * max(limit, 1):
        return Size(layers.tasks, layers.width), expression
    graph = as_graph(expression)
    return (size_of(graph), expression) if len(graph) > limit else (None, graph)
