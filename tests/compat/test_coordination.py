"""Locks, queues and their kin, and what tasks do on the cluster that they run on."""

from __future__ import annotations

import operator

import pytest
from distributed import (
    Client,
    Event,
    Lock,
    MultiLock,
    Queue,
    Semaphore,
    Variable,
    get_client,
    get_worker,
    rejoin,
    secede,
    wait,
    worker_client,
)


def test_lock(client: Client) -> None:
    def bump(_: int) -> None:
        with Lock("bump"):
            shared = Variable("bumped")
            shared.set(shared.get() + 1)

    Variable("bumped", client=client).set(0)
    done = client.map(bump, range(12), pure=False)
    wait(done)
    assert Variable("bumped", client=client).get() == 12
    lock = Lock("held")
    assert lock.acquire(timeout=10)
    assert not client.submit(lambda: Lock("held").acquire(timeout=0.05), pure=False).result()
    assert lock.locked()
    lock.release()
    with MultiLock(names=["one", "two"]):
        assert not client.submit(lambda: MultiLock(names=["two", "three"]).acquire(timeout=0.05), pure=False).result()


def test_semaphore(client: Client) -> None:
    semaphore = Semaphore(max_leases=2, name="two")

    def enter(sem: Semaphore, n: int) -> int:
        with sem:
            return n + int(sem.get_value() > 2)

    assert client.gather(client.map(lambda n: enter(semaphore, n), range(12), pure=False)) == list(range(12))
    assert semaphore.get_value() == 0
    semaphore.close()


def test_queue(client: Client) -> None:
    queue = Queue("numbers", client=client, maxsize=2)
    putting = client.submit(lambda: [Queue("numbers").put(n) for n in range(6)], pure=False)
    assert [queue.get(timeout=60) for _ in range(6)] == list(range(6))
    wait(putting)
    queue.put(client.submit(operator.add, 1, 2))
    assert queue.get(timeout=60).result() == 3
    assert queue.qsize() == 0
    with pytest.raises(TimeoutError):
        queue.get(timeout=0.05)


def test_variable(client: Client) -> None:
    shared = Variable("shared", client=client)
    client.submit(lambda: Variable("shared").set({"a": "b"}), pure=False).result()
    assert shared.get(timeout=60) == {"a": "b"}
    shared.set(client.submit(operator.mul, 6, 7))
    assert client.submit(lambda: Variable("shared").get().result(), pure=False).result() == 42
    shared.delete()


def test_event(client: Client) -> None:
    event = Event("go", client=client)
    waiting = client.map(lambda _: Event("go").wait(60), range(2), pure=False)
    assert not event.is_set()
    event.set()
    assert client.gather(waiting) == [True, True]
    event.clear()
    assert client.submit(lambda: Event("go").wait(0.05), pure=False).result() is False


def test_worker_client(client: Client) -> None:
    def parent(n: int) -> int:
        with worker_client() as inner:
            return sum(inner.gather(inner.map(lambda k: k + 1, range(n))))

    # More parents than threads: each must give its thread up while it waits.
    assert client.gather(client.map(parent, range(1, 13), pure=False)) == [n * (n + 1) // 2 for n in range(1, 13)]


def test_get_client_secede_and_rejoin(client: Client) -> None:
    def parent(n: int) -> int:
        inner = get_client()
        parts = inner.map(lambda k: k + 1, range(n))
        secede()
        total = sum(inner.gather(parts))
        rejoin()
        return total

    assert client.gather(client.map(parent, range(1, 13), pure=False)) == [n * (n + 1) // 2 for n in range(1, 13)]


def test_a_tree_of_tasks_that_start_tasks(client: Client) -> None:
    def fib(n: int) -> int:
        if n < 2:
            return n
        with worker_client() as inner:
            return int(sum(inner.gather([inner.submit(fib, n - 1), inner.submit(fib, n - 2)])))

    assert client.submit(fib, 8).result() == 21


def test_tasks_know_their_cluster(client: Client) -> None:
    def where() -> tuple[str, str, str]:
        worker = get_worker()
        return get_client().scheduler.address, worker.scheduler.address, worker.address

    ours, workers = client.scheduler.address, list(client.scheduler_info(n_workers=-1)["workers"])
    for worker in workers:
        assert client.submit(where, workers=[worker], pure=False).result() == (ours, ours, worker)


def test_a_client_made_within_a_task(client: Client) -> None:
    def make(address: str) -> int:
        with Client(address, security=get_worker().security) as own:
            return int(own.submit(operator.add, 1, 1).result())

    assert client.submit(make, client.scheduler.address, pure=False).result() == 2
