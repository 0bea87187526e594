"""Peer (b): FastAPI in front of Celery. Celery's client blocks, so the routes are plain functions."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks.peers.celery_tasks import add_one, celery


class Params(BaseModel):
    n: int


app = FastAPI()


@app.post("/jobs", status_code=202)
def submit(params: Params) -> dict[str, Any]:
    return {"id": add_one.delay(params.n).id}


@app.get("/jobs/{task_id}")
def result(task_id: str, response: Response) -> dict[str, Any]:
    found = celery.AsyncResult(task_id)
    if not found.ready():
        response.status_code = 202
        return {"id": task_id}
    return {"id": task_id, "result": found.get()}
