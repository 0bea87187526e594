"""Finished jobs that were looked at lately, so that a repeated call costs no read of the ledger."""

from __future__ import annotations

from collections import OrderedDict

from dask_fleet.model.jobs import JobRecord, StoredResult

_OVERHEAD_BYTES = 1_500
"""What an entry costs beside its bytes (measured: record, result, strings, dictionary slot)."""


_RUNS_REMEMBERED = 4_096
"""Far more than are opened again while the ledger is read."""


class RecentJob:
    """A succeeded job with its result, and the answer made of them."""

    __slots__ = ("document", "job", "result")

    def __init__(self, job: JobRecord, result: StoredResult) -> None:
        self.job = job
        self.result = result
        self.document: bytes | None = None
        """The answer to a POST, kept by the server: it never changes while the entry lives."""


class RecentJobs:
    """Least recently used first out, bounded in bytes. The one server of the ledger is told of every change, so an entry is
    dropped the moment its job gets another run.
    """

    def __init__(self, max_bytes: int = 16 << 20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[str, RecentJob] = OrderedDict()
        self._newest_runs: OrderedDict[str, int] = OrderedDict()
        """Of the jobs that got another run lately."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, job_id: str, now_us: int) -> RecentJob | None:
        """Return a finished job whose result may still be served."""
        entry = self._entries.get(job_id)
        if entry is None:
            return None
        if entry.result.expires_us <= now_us:
            self.drop(job_id)
            return None
        self._entries.move_to_end(job_id)
        return entry

    def put(self, job: JobRecord, result: StoredResult) -> None:
        """Remember a job that just succeeded, or whose result was just read; not if another run was opened meanwhile."""
        if job.run < self._newest_runs.get(job.job_id, 0):
            return
        self.drop(job.job_id)
        entry = RecentJob(job, result)
        self._entries[job.job_id] = entry
        self._bytes += _size(entry)
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            _, oldest = self._entries.popitem(last=False)
            self._bytes -= _size(oldest)

    def supersede(self, job: JobRecord) -> None:
        """The job has got another run: forget the one before, also where it is just being read."""
        self.drop(job.job_id)
        self._newest_runs[job.job_id] = job.run
        self._newest_runs.move_to_end(job.job_id)
        if len(self._newest_runs) > _RUNS_REMEMBERED:
            self._newest_runs.popitem(last=False)

    def drop(self, job_id: str) -> None:
        """Forget a job; one that is not there is no error."""
        entry = self._entries.pop(job_id, None)
        if entry is not None:
            self._bytes -= _size(entry)


def _size(entry: RecentJob) -> int:
    # Params and inline bytes appear a second time in the kept answer.
    return _OVERHEAD_BYTES + 2 * (len(entry.job.params) + len(entry.result.body or b"") + len(entry.result.json or b""))
