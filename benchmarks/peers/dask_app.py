"""Peer (a): FastAPI, ``Client.submit`` with ``fire_and_forget``, results in Redis by task id.

The id is a hash of the parameters, so that a repeated request finds its result. What it does not do: an accepted job is on
no disk, two equal requests at once may both run, and nothing tells a failed task from one that is still running.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio
from distributed import Client, fire_and_forget
from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks.peers.dask_task import add_one


class Params(BaseModel):
    n: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.redis = redis.asyncio.Redis(host="127.0.0.1", port=int(os.environ["BENCH_REDIS_PORT"]))
    async with Client(os.environ["BENCH_SCHEDULER"], asynchronous=True) as client:
        app.state.client = client
        await client.wait_for_workers(2)
        yield
    await app.state.redis.aclose()


app = FastAPI(lifespan=lifespan)


@app.post("/jobs")
async def submit(params: Params, response: Response) -> dict[str, Any]:
    task_id = hashlib.sha256(f"add_one:{params.n}".encode()).hexdigest()[:32]
    found = await app.state.redis.get(f"result:{task_id}")
    if found is not None:
        return {"id": task_id, "result": int(found)}
    future = app.state.client.submit(add_one, task_id, params.n, key=task_id)
    fire_and_forget(future)
    response.status_code = 202
    return {"id": task_id}


@app.get("/jobs/{task_id}")
async def result(task_id: str, response: Response) -> dict[str, Any]:
    found = await app.state.redis.get(f"result:{task_id}")
    if found is None:
        response.status_code = 202
        return {"id": task_id}
    return {"id": task_id, "result": int(found)}
