"""Peer (a), the worker's side: the trivial function, which writes its result to Redis under the task's id."""

from __future__ import annotations

import os
from functools import cache

import redis


@cache
def connection() -> redis.Redis:
    return redis.Redis(host="127.0.0.1", port=int(os.environ["BENCH_REDIS_PORT"]))


def add_one(task_id: str, n: int) -> None:
    connection().set(f"result:{task_id}", n + 1, ex=86_400)
