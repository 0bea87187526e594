"""``as_completed``: jobs in the order in which they end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator

from dask_fleet.client.async_job import AsyncJob
from dask_fleet.client.fan_out import in_completion_order
from dask_fleet.client.job import Job


class as_completed:  # noqa: N801 - the name this has in asyncio, concurrent.futures and Dask
    """Iterate over jobs as they end, however they do: ``for`` over `Job`, ``async for`` over `AsyncJob`.

    Parameters
    ----------
    jobs
        Jobs of one client.
    """

    def __init__(self, jobs: Iterable[Job] | Iterable[AsyncJob]) -> None:
        self._jobs: list[Job | AsyncJob] = list(jobs)

    def __iter__(self) -> Iterator[Job]:
        held = [job for job in self._jobs if isinstance(job, Job)]
        if len(held) != len(self._jobs):
            raise TypeError("these are AsyncJobs: iterate with `async for`")
        if not held:
            return
        loop = held[0]._loop  # noqa: SLF001 - the two files are halves of one thing
        if any(job._loop is not loop for job in held):  # noqa: SLF001
            raise ValueError("as_completed takes jobs of one client")
        faces: dict[int, list[Job]] = {}
        for job in held:  # a job may be there twice
            faces.setdefault(id(job._inner), []).append(job)  # noqa: SLF001
        for inner in loop.iterate(in_completion_order([job._inner for job in held], AsyncJob.poll)):  # noqa: SLF001
            yield faces[id(inner)].pop()

    def __aiter__(self) -> AsyncIterator[AsyncJob]:
        held = [job for job in self._jobs if isinstance(job, AsyncJob)]
        if len(held) != len(self._jobs):
            raise TypeError("these are Jobs: iterate with `for`")
        return in_completion_order(held, AsyncJob.poll)
