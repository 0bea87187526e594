"""Dask clusters over warm processes: a scheduler is taken for a request and given back, workers join it and leave again.

* `authority`, `credentials`, `security`: each cluster has a certificate authority of its own; both ends of every connection
  show a certificate of it.
* `scheduler_process` (with `fleet_scheduler`) is the child, `schedulers` the agent's side of a scheduler process, forked
  ahead of time as a spare.
* `membership` (with `member_worker`, `fair_pool`) runs in a worker process: any number of ``distributed.Worker`` on one
  event loop, over one fair thread pool.
* `member_process` is a worker process that does nothing else, for clusters that want processes of their own.
* `frames` is what they say to each other.
"""
