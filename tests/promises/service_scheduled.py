"""Jobs whose graphs run on Dask clusters of their own; each task says when it began, so that a second time is seen."""

import os
import time
from pathlib import Path

import dask
from dask.delayed import Delayed

from dask_fleet import Service

service = Service("scheduled")


def say_and_sum(n: int, folder: str) -> int:
    with Path(folder, str(n)).open("a") as out:  # one write, so that lines do not mix
        out.write(f"{time.time()}\n")
    time.sleep(float(os.environ.get("SCHEDULED_S", "0.5")))
    return 3 * n


@service.endpoint(placement="cluster", workers=1)
def triple(n: int, folder: str) -> Delayed:
    """Return a graph: three times n, and who began when in a file of the job's."""
    begun = dask.delayed(say_and_sum)(n, folder)
    return dask.delayed(sum)([begun, dask.delayed(int)(0)])


@service.endpoint
def plain(n: int) -> int:
    """Use no Dask."""
    return 3 * n
