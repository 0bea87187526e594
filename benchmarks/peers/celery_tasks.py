"""Peer (b), the worker's side: Celery with Redis as broker and result backend, acknowledging after the work is done."""

from __future__ import annotations

import os

from celery import Celery

_redis = f"redis://127.0.0.1:{os.environ['BENCH_REDIS_PORT']}/0"
celery = Celery("bench", broker=_redis, backend=_redis)
celery.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True)


@celery.task(name="add_one")
def add_one(n: int) -> int:
    return n + 1
