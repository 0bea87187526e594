"""What Dask's nannies are for: restarts in fresh processes, plug-ins beside the workers. And the names of workers."""

from __future__ import annotations

import os
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, Nanny, get_worker
from distributed.diagnostics.plugin import Environ, NannyPlugin, PipInstall, UploadDirectory
from tests.compat.take import LOCAL, Served
from tests.compat.test_futures import until


@pytest.fixture
def one(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A cluster of one worker with one thread, that the test may spoil."""
    if LOCAL:
        with LocalCluster(
            n_workers=1, threads_per_worker=1, protocol="tls", security=True, dashboard_address="127.0.0.1:0"
        ) as made:
            yield made
    else:
        with request.getfixturevalue("fleet").cluster(1, 1) as made:
            yield made


@pytest.fixture
def client(one: Any) -> Iterator[Client]:
    with Client(one) as made:
        made.wait_for_workers(1, timeout=60)
        yield made


def _pids(client: Client) -> set[int]:
    return set(client.run(os.getpid).values())


def _variable(name: str) -> str | None:
    return os.environ.get(name)


def _endless(path: str) -> None:
    Path(path).touch()
    while True:
        time.sleep(0.01)


def test_a_restart_frees_a_worker_of_an_endless_task(client: Client, tmp_path: Path) -> None:
    before = _pids(client)
    endless = client.submit(_endless, str(tmp_path / "began"))
    until((tmp_path / "began").exists)
    client.restart(timeout=60)
    assert endless.status == "cancelled"
    assert client.submit(sum, [1, 2], pure=False).result(60) == 3
    assert not _pids(client) & before


def _deaf(path: str) -> None:
    import re

    Path(path).touch()
    re.match(r"(a+)+$", "a" * 60 + "b")  # for years, without letting go of the interpreter


def test_a_restart_frees_a_worker_that_does_not_answer(client: Client, tmp_path: Path) -> None:
    before = _pids(client)
    deaf = client.submit(_deaf, str(tmp_path / "began"))
    until((tmp_path / "began").exists)
    client.restart(timeout=60)
    assert deaf.status == "cancelled"
    assert client.submit(sum, [1, 2], pure=False).result(60) == 3
    assert not _pids(client) & before


def test_one_worker_is_restarted_and_its_task_runs_again(client: Client, tmp_path: Path) -> None:
    (address,), before = client.run(os.getpid), _pids(client)
    began = tmp_path / "began"

    def first_endless(path: str) -> str:
        if Path(path).exists():
            return "again"
        Path(path).touch()
        while True:
            time.sleep(0.01)

    task = client.submit(first_endless, str(began), pure=False)
    until(began.exists)
    assert client.restart_workers([address], timeout=60) == {address: "OK"}
    assert task.result(60) == "again"
    assert not _pids(client) & before
    assert client.restart_workers([0], timeout=60) == {0: "OK"}


def test_restarted_without_waiting(client: Client) -> None:
    before = _pids(client)
    client.restart(wait_for_workers=False)
    client.wait_for_workers(1, timeout=60)
    until(lambda: bool(_pids(client)))
    assert not _pids(client) & before


def test_a_worker_that_just_died_comes_back_with_the_restart(fleet: Served) -> None:
    with fleet.cluster(2, 1) as made, Client(made) as client:
        client.wait_for_workers(2, timeout=60)
        pids = client.run(os.getpid)
        os.kill(next(iter(pids.values())), 9)
        client.restart(timeout=60)
        client.wait_for_workers(2, timeout=60)
        until(lambda: len(_pids(client)) == 2)
        assert not _pids(client) & set(pids.values())


class Noting(NannyPlugin):
    """Sets a variable for the worker, and notes what becomes of it."""

    def __init__(self, folder: str, *, restart: bool = False) -> None:
        self.name = "noting"
        self.folder, self.restart = Path(folder), restart

    def setup(self, nanny: Any) -> None:
        nanny.env["NOTED"] = "yes"
        assert Path(nanny.local_directory).is_dir()
        assert self.name in nanny.plugins
        (self.folder / f"setup-{time.monotonic_ns()}").touch()

    def teardown(self, nanny: Any) -> None:
        (self.folder / f"teardown-{time.monotonic_ns()}").touch()


def test_a_plug_in_is_set_up_beside_each_worker(client: Client, tmp_path: Path) -> None:
    before = _pids(client)
    client.register_plugin(Noting(str(tmp_path)))
    assert len(list(tmp_path.glob("setup-*"))) == 1
    assert _pids(client) == before
    client.restart(timeout=60)
    assert set(client.run(_variable, "NOTED").values()) == {"yes"}
    assert not list(tmp_path.glob("teardown-*"))
    client.unregister_worker_plugin("noting", nanny=True)
    assert len(list(tmp_path.glob("teardown-*"))) == 1
    client.restart(timeout=60)
    if not LOCAL:  # its process is another one, which has never seen the plug-in
        assert set(client.run(_variable, "NOTED").values()) == {None}


def test_a_plug_in_that_restarts_its_worker(client: Client, one: Any, tmp_path: Path) -> None:
    before = _pids(client)
    client.register_plugin(Noting(str(tmp_path), restart=True))
    assert set(client.run(_variable, "NOTED").values()) == {"yes"}
    assert not _pids(client) & before
    one.scale(2)
    client.wait_for_workers(2, timeout=60)
    assert list(client.run(_variable, "NOTED").values()) == ["yes", "yes"]


class Failing(NannyPlugin):
    """Cannot be set up."""

    name = "failing"
    restart = True

    def setup(self, nanny: Any) -> None:
        raise LookupError("no such thing")


def test_a_plug_in_that_fails_says_so_and_restarts_nothing(client: Client) -> None:
    before = _pids(client)
    with pytest.raises(LookupError, match="no such thing"):
        client.register_plugin(Failing())
    assert _pids(client) == before
    assert client.submit(sum, [1, 2], pure=False).result(60) == 3


def test_environ(client: Client, one: Any) -> None:
    client.register_plugin(Environ({"FROM_A_PLUG_IN": 7}))
    assert set(client.run(_variable, "FROM_A_PLUG_IN").values()) == {"7"}
    assert client.submit(_variable, "FROM_A_PLUG_IN").result(60) == "7"
    client.restart(timeout=60)
    one.scale(2)
    client.wait_for_workers(2, timeout=60)
    assert list(client.run(_variable, "FROM_A_PLUG_IN").values()) == ["7", "7"]


@pytest.mark.parametrize("restart", [False, True])
def test_upload_directory(client: Client, one: Any, tmp_path: Path, *, restart: bool) -> None:
    package = tmp_path / f"uploaded_package_{restart}".lower()
    package.mkdir()
    (package / "__init__.py").write_text("ANSWER = 42\n")
    (package / "part.py").write_text("ANSWER = 43\n")

    def use(name: str) -> tuple[int, int]:
        import importlib

        return importlib.import_module(name).ANSWER, importlib.import_module(f"{name}.part").ANSWER

    client.register_plugin(UploadDirectory(str(package), restart_workers=restart))
    assert client.submit(use, package.name, pure=False).result(60) == (42, 43)
    client.restart(timeout=60)
    one.scale(2)
    client.wait_for_workers(2, timeout=60)
    assert list(client.run(use, package.name).values()) == [(42, 43)] * 2


@pytest.mark.parametrize("restart", [False, True])
def test_pip_install_of_a_local_wheel(client: Client, tmp_path: Path, *, restart: bool) -> None:
    pytest.importorskip("pip")
    wheel, target = _wheel(tmp_path), tmp_path / "site"
    client.register_plugin(
        PipInstall(
            [str(wheel)], ["--no-index", "--no-deps", "--disable-pip-version-check", "--target", str(target), "--upgrade"],
            restart_workers=restart,
        )
    )  # fmt: skip

    def use(folder: str) -> int:
        sys.path.insert(0, folder)
        import installed_by_compat

        answer: int = installed_by_compat.ANSWER
        return answer

    assert client.submit(use, str(target)).result(60) == 44
    missing = PipInstall(["/there/is/none-1-py3-none-any.whl"], ["--no-index"], restart_workers=restart)
    with pytest.raises(RuntimeError, match="pip install failed"):
        client.register_plugin(missing)


def _wheel(folder: Path) -> Path:
    path = folder / "installed_by_compat-1.0-py3-none-any.whl"
    info = "installed_by_compat-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("installed_by_compat.py", "ANSWER = 44\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: installed-by-compat\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def test_functions_run_beside_the_worker(client: Client) -> None:
    (worker,) = client.run(os.getpid)
    assert client.run(lambda dask_worker: type(dask_worker).__name__, nanny=True) == {
        worker: Nanny.__name__ if LOCAL else "MemberNanny"
    }
    assert client.run(lambda dask_worker: dask_worker.worker_address, nanny=True) == {worker: worker}
    assert list(client.get_worker_logs(nanny=True)) == [worker]


def test_names_are_numbers(client: Client, one: Any) -> None:
    one.scale(2)
    client.wait_for_workers(2, timeout=60)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    by_name = {worker["name"]: address for address, worker in workers.items()}
    assert set(by_name) == {0, 1}
    for name, address in by_name.items():
        assert client.submit(lambda: get_worker().address, workers=[name], pure=False).result(60) == address
        held = client.scatter(f"at {name}", workers=[name])
        assert client.who_has([held])[held.key] == (address,)
    assert set(by_name.values()) <= set(one.get_logs())
    assert set(one.plan) == {0, 1}
    assert set(one.worker_spec) == {0, 1}
    assert set(one.observed) == {0, 1}
    kept = client.scatter("kept", workers=[1])
    assert [worker["name"] for worker in client.retire_workers(names=[1]).values()] == [1]
    assert kept.result() == "kept"


def test_in_shared_processes_plug_ins_for_nannies_are_refused(fleet: Served, tmp_path: Path) -> None:
    with fleet.cluster(1, 1, shared=True) as made, Client(made) as client:
        client.wait_for_workers(1, timeout=60)
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"without shared=True.*WorkerPlugin"):
                client.register_plugin(Noting(str(tmp_path)))
        with pytest.raises(RuntimeError, match=r"client\.run without nanny=True"):
            client.run(os.getpid, nanny=True)
        assert not list(tmp_path.iterdir())
