"""What cannot be: through `FleetCluster`, the command line and HTTP a clear error with its cure, nothing left running."""

from __future__ import annotations

import contextlib
import gc
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from distributed import Client
from distributed.versions import VersionMismatchWarning

from dask_fleet import FleetCluster
from dask_fleet.cli.main import main
from dask_fleet.client import cluster_taking
from dask_fleet.client.cluster_key import ClusterKey
from dask_fleet.model.errors import BadRequest, ClusterImpossible, Conflict, FleetError, Forbidden, NotFound, VersionMismatch
from dask_fleet.testing.served import Answer, Connection, ServedFleet

DEADLINE_S = 60.0
MOST = 8
"""Workers that one cluster may have."""
CSR = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
WRONG = "sha256:" + "0" * 64


class Bad(NamedTuple):
    """One thing that cannot be, asked for in three ways."""

    options: dict[str, Any]
    """Of a `FleetCluster`."""
    raises: type[Exception]
    cli: list[str]
    """Of ``dask-fleet clusters``."""
    body: dict[str, Any]
    """Of ``POST /v1/clusters``."""
    status: int
    code: str
    cure: str
    """What every answer tells; `Bad.cli_cure` if the command line's own check comes first."""
    cli_cure: str = ""
    cli_code: int = 1


CREATE: dict[str, Bad] = {
    "negative size": Bad(
        {"n_workers": -1}, ValueError, ["create", "-n", "-1"], {"n_workers": -1}, 400, "bad_request", "whole number",
        "greater than or equal to 0", 2,
    ),
    "no threads": Bad(
        {"threads_per_worker": 0}, ValueError, ["create", "--threads-per-worker", "0"], {"threads_per_worker": 0},
        400, "bad_request", "whole number", "greater than or equal to 1", 2,
    ),
    "more workers than allowed": Bad(
        {"n_workers": MOST + 1}, ClusterImpossible, ["create", "-n", str(MOST + 1)], {"n_workers": MOST + 1},
        422, "cluster_impossible", "ask for fewer",
    ),
    "more threads than there are": Bad(
        {"threads_per_worker": 1000}, ClusterImpossible, ["create", "--threads-per-worker", "1000"],
        {"threads_per_worker": 1000}, 422, "cluster_impossible", "ask for at most 2 threads per worker",
    ),
    "more memory than there is": Bad(
        {"memory_limit": "900TiB"}, ClusterImpossible, ["create", "--memory-limit", "900TiB"],
        {"memory_limit": "900TiB"}, 422, "cluster_impossible", "ask for a smaller memory_limit",
    ),
    "no memory": Bad(
        {"memory_limit": "0"}, ValueError, ["create", "--memory-limit", "0"], {"memory_limit": "0"},
        400, "bad_request", "at least 1 MiB",
    ),
    "no threshold of memory": Bad(
        {"config": {"distributed.worker.memory.spill": "lots"}}, ValueError,
        ["create", "--set", "distributed.worker.memory.spill=lots"],
        {"config": {"distributed": {"worker": {"memory": {"spill": "lots"}}}}},
        400, "bad_request", "above 0 and up to 1",
    ),
    "a threshold beyond all memory": Bad(
        {"config": {"distributed": {"worker": {"memory": {"terminate": 1.5}}}}}, ValueError,
        ["create", "--set", "distributed.worker.memory.terminate=1.5"],
        {"config": {"distributed.worker.memory.terminate": 1.5}}, 400, "bad_request", "false for never",
    ),
    "no size to spill": Bad(
        {"config": {"distributed.worker.memory.max_spill": "much"}}, ValueError,
        ["create", "--set", "distributed.worker.memory.max-spill=much"],
        {"config": {"distributed.worker.memory.max-spill": True}}, 400, "bad_request", "a size such as '10GiB'",
    ),
    "negative resource": Bad(
        {"resources": {"GPU": -1}}, FleetError, ["create", "--resource", "GPU=-1"], {"resources": {"GPU": -1}},
        400, "bad_request", "positive numbers",
    ),
    "unknown access": Bad(
        {"access": "everybody"}, BadRequest, ["create", "--access", "everybody"], {"access": "everybody"},
        400, "bad_request", "'user' or 'tenant'", "is not one of", 2,
    ),
    "negative idle time": Bad(
        {"idle_timeout": "-5m"}, ValueError, ["create", "--idle-timeout=-5m"], {"idle_timeout": "-5m"},
        400, "bad_request", "such as 30",
    ),
    "unknown pool": Bad(
        {"pool": "none-such"}, ClusterImpossible, ["create", "--pool", "none-such"], {"pool": "none-such"},
        422, "cluster_impossible", "the pools are: 'default'",
    ),
    "a name that cannot be": Bad(
        {"name": "a b"}, FleetError, ["create", "a b"], {"name": "a b"}, 400, "bad_request",
        "beginning with a letter or digit",
    ),
    "a name in use": Bad(
        {"name": "taken"}, Conflict, ["create", "taken"], {"name": "taken"}, 409, "conflict", "close that one first",
    ),
}  # fmt: skip


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    args = ("--no-services", "--nworkers", "1", "--nthreads", "2", "--spare-clusters", "0", "--tls", "auto")
    env = {"FLEET_MAX_CLUSTER_WORKERS": str(MOST), "FLEET_JOB_SHARE": "0"}
    with ServedFleet([], tmp_path_factory.mktemp("bad") / "data", args=args, env=env) as served:
        yield served


@pytest.fixture(scope="module")
def where(fleet: ServedFleet) -> dict[str, Any]:
    return {"url": fleet.url, "token": fleet.token, "fingerprint": fleet.fingerprint, "quiet": True}


@pytest.fixture(scope="module")
def taken(fleet: ServedFleet, where: dict[str, Any]) -> Iterator[FleetCluster]:
    """A cluster that is there already, so that it shows if anything happens to it."""
    with FleetCluster(n_workers=1, name="taken", **where) as made:
        yield made


@pytest.fixture
def run(
    fleet: ServedFleet, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    def run(*args: str, token: str = "", fingerprint: str = "") -> Ran:
        monkeypatch.setenv("FLEET_URL", fleet.url)
        monkeypatch.setenv("FLEET_TOKEN", token or fleet.token)
        monkeypatch.setenv("FLEET_FINGERPRINT", fingerprint or str(fleet.fingerprint))
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        with pytest.raises(SystemExit) as exited:
            main(("clusters", *args))
        out, err = capfd.readouterr()
        # What is said of usage stands in a box that is as wide as the terminal.
        told = " ".join(err.replace("│", " ").split())
        return Ran(exited.value.code if isinstance(exited.value.code, int) else 0, out, told)

    return run


@pytest.fixture(autouse=True)
def nothing_left(fleet: ServedFleet, taken: FleetCluster) -> Iterator[None]:
    """Whatever is refused: the same clusters, leases, processes and threads as before, and the one there is unharmed."""

    def look() -> dict[str, Any]:
        with contextlib.closing(sqlite3.connect(f"file:{fleet.data_dir / 'ledger.db'}?mode=ro", uri=True)) as ledger:
            held = "SELECT lease_id FROM slot_leases WHERE state IN ('granted', 'joined', 'leaving')"
            return {
                "clusters": ledger.execute("SELECT name FROM clusters WHERE closed_us IS NULL").fetchall(),
                "leases": ledger.execute(held).fetchall(),
                "processes": sorted(process.pid for process in fleet.processes()),
                "scratch": sorted(path.name for path in (fleet.data_dir / "scratch").iterdir()),
                "clients": len(Client._instances),
                "own clusters": len(FleetCluster._instances),
            }

    def threads() -> set[str]:
        # Pools of threads keep theirs for the next call.
        names = {each.name for each in threading.enumerate()}
        return {name for name in names if "Executor" not in name and "offload" not in name.lower()}

    gc.collect()
    before, own = look(), threads()
    yield
    gc.collect()
    deadline = time.monotonic() + DEADLINE_S
    while (after := look()) != before or threads() - own:
        assert time.monotonic() < deadline, (before, after, threads() - own)
        time.sleep(0.05)
        gc.collect()
    assert taken.status.name == "running"


def problem(answer: Answer, status: int, code: str) -> str:
    document = answer.json()
    assert (answer.status, document["code"]) == (status, code), document
    assert answer.headers["content-type"] == "application/problem+json"
    return str(document["detail"])


@pytest.mark.parametrize("name", CREATE)
def test_what_cannot_be_made(fleet: ServedFleet, where: dict[str, Any], run: Run, name: str) -> None:
    bad = CREATE[name]
    with pytest.raises(bad.raises) as refused:
        FleetCluster(**{"n_workers": 1, **bad.options, **where})
    ran = run(*bad.cli)
    detail = problem(fleet.request("POST", "/v1/clusters", bad.body), bad.status, bad.code)
    assert bad.cure in detail
    if not isinstance(refused.value, ValueError):  # of what needs no server the client says it in Python's words
        assert bad.cure in str(refused.value)
    assert str(refused.value).strip()
    assert (ran.code, ran.out) == (bad.cli_code, "")
    assert (bad.cli_cure or bad.cure) in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("size", [-1, MOST + 1, 1.5])
def test_what_cannot_be_scaled_to(fleet: ServedFleet, taken: FleetCluster, run: Run, size: float) -> None:
    is_number = size > MOST
    with pytest.raises(ClusterImpossible if is_number else ValueError) as refused:
        taken.scale(size)  # type: ignore[arg-type]
    answer = fleet.request("PATCH", f"/v1/clusters/{taken.cluster_id}", {"n_workers": size})
    detail = problem(answer, *((422, "cluster_impossible") if is_number else (400, "bad_request")))
    cure = "ask for fewer" if is_number else "whole number"
    assert cure in detail
    assert cure in str(refused.value)
    ran = run("scale", "taken", "--", str(size))
    assert (ran.code, ran.out) == (1 if is_number else 2, "")
    assert (cure if is_number else "Invalid value for 'N'") in ran.err
    assert taken.n_workers == 1


def test_what_is_not_there(fleet: ServedFleet, where: dict[str, Any], run: Run) -> None:
    with pytest.raises(NotFound, match="clusters list"):
        FleetCluster.from_name("nobody", **where)
    for command in (["show", "nobody"], ["scale", "nobody", "2"], ["logs", "nobody"], ["close", "nobody"]):
        ran = run(*command)
        assert (ran.code, ran.out) == (1, "")
        assert "no such cluster" in ran.err
        assert "clusters list" in ran.err
    for method, body in (("GET", None), ("PATCH", {"n_workers": 1}), ("DELETE", None)):
        assert "clusters list" in problem(fleet.request(method, "/v1/clusters/nobody", body), 404, "not_found")


def test_another_tenants_cluster_is_as_one_that_is_not_there(
    fleet: ServedFleet, where: dict[str, Any], taken: FleetCluster, run: Run
) -> None:
    asked = {"user": "eve", "tenant": "others", "scopes": ["read", "run_code"]}
    token = fleet.request("POST", "/v1/tokens", asked).json()["token"]
    for name in ("taken", taken.cluster_id):
        with pytest.raises(NotFound, match="of your tenant"):
            FleetCluster.from_name(name, **{**where, "token": token})
        for command in (["show", name], ["scale", name, "0"], ["logs", name], ["close", name]):
            ran = run(*command, token=token)
            assert (ran.code, ran.out) == (1, "")
            assert "of your tenant" in ran.err
        with fleet.connect(token=token) as connection:
            for method, path, body in (
                ("GET", "", None), ("GET", "/events", None), ("PATCH", "", {"n_workers": 0}), ("DELETE", "", None),
                ("POST", "/certificate", {"csr": CSR}),
            ):  # fmt: skip
                problem(connection.request(method, f"/v1/clusters/{name}{path}", body), 404, "not_found")
    assert run("list", token=token).out.count("taken") == 0


def test_another_users_cluster_may_be_looked_at_only(
    fleet: ServedFleet, where: dict[str, Any], taken: FleetCluster, run: Run
) -> None:
    asked = {"user": "bob", "scopes": ["read", "run_code"]}
    token = fleet.request("POST", "/v1/tokens", asked).json()["token"]
    cure = "take one with access='tenant'"
    with pytest.raises(Forbidden, match=cure):
        FleetCluster.from_name("taken", **{**where, "token": token})
    for command in (["scale", "taken", "0"], ["logs", "taken"], ["close", "taken"]):
        ran = run(*command, token=token)
        assert (ran.code, ran.out) == (1, "")
        assert cure in ran.err
    with fleet.connect(token=token) as connection:
        for method, path, body in (
            ("PATCH", "", {"n_workers": 0}), ("DELETE", "", None), ("POST", "/certificate", {"csr": CSR}),
        ):  # fmt: skip
            assert cure in problem(connection.request(method, f"/v1/clusters/taken{path}", body), 403, "forbidden")
        assert connection.request("GET", "/v1/clusters/taken").json()["access"] == "user"
    assert run("list", token=token).out.count("taken") == 1
    assert taken.n_workers == 1


def test_a_cluster_for_the_tenant_is_every_users(fleet: ServedFleet, where: dict[str, Any], run: Run) -> None:
    asked = {"user": "bob", "scopes": ["read", "run_code"]}
    token = fleet.request("POST", "/v1/tokens", asked).json()["token"]
    with FleetCluster(n_workers=1, name="team", access="tenant", **where):
        with FleetCluster.from_name("team", **{**where, "token": token}) as joined, Client(joined) as client:
            assert client.submit(sum, (1, 2)).result(timeout=DEADLINE_S) == 3
        assert run("scale", "team", "0", token=token).code == 0
        assert "tenant" in run("show", "team", token=token).out
        with FleetCluster(n_workers=1, name="bobs", **{**where, "token": token}):
            assert run("close", "bobs").code == 0, "an administrator may"


def test_who_may_only_look_may_not_use(fleet: ServedFleet, where: dict[str, Any], run: Run) -> None:
    token = fleet.request("POST", "/v1/tokens", {"user": "bob", "scopes": ["read"]}).json()["token"]
    with pytest.raises(FleetError, match="run_code"):
        FleetCluster(n_workers=1, **{**where, "token": token})
    with pytest.raises(FleetError, match="run_code"):
        FleetCluster.from_name("taken", **{**where, "token": token})
    for command in (["create"], ["scale", "taken", "0"], ["logs", "taken"], ["close", "taken"]):
        ran = run(*command, token=token)
        assert (ran.code, ran.out) == (1, "")
        assert "run_code" in ran.err
    with fleet.connect(token=token) as connection:
        for method, path, body in (("POST", "", {}), ("PATCH", "/taken", {"n_workers": 0}), ("DELETE", "/taken", None)):
            assert "run_code" in problem(connection.request(method, f"/v1/clusters{path}", body), 403, "forbidden")


def test_a_server_that_is_not_the_one_that_was_pinned(fleet: ServedFleet, where: dict[str, Any], run: Run) -> None:
    with pytest.raises(FleetError) as refused:
        FleetCluster(n_workers=1, **{**where, "fingerprint": WRONG})
    assert "fingerprint" in str(refused.value)
    for command in (["create"], ["scale", "taken", "0"], ["logs", "taken"], ["close", "taken"]):
        ran = run(*command, fingerprint=WRONG)
        assert (ran.code, ran.out) == (1, "")
        assert "fingerprint" in ran.err
    with Connection(fleet.url, fleet.token, fingerprint=WRONG) as connection, pytest.raises(OSError, match="not the pinned"):
        connection.request("GET", "/v1/clusters")


def test_a_certificate_of_another_cluster_opens_nothing(where: dict[str, Any], taken: FleetCluster) -> None:
    with FleetCluster(n_workers=0, **where) as other, pytest.raises(OSError, match=r"(?i)timed out|certificate"):
        Client(taken.scheduler_address, security=other.security, timeout=2, set_as_default=False)


def test_other_versions_are_refused_where_dask_would_fail_and_else_named(
    fleet: ServedFleet, where: dict[str, Any], taken: FleetCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line computes nothing, so what is installed beside it does not matter; it joins only for `logs`."""
    certificate = f"/v1/clusters/{taken.cluster_id}/certificate"
    mine = cluster_taking.versions_here()
    for package, version in (("python", "3.4.0"), ("distributed", "2020.1.0")):
        theirs = {**mine, package: version}
        monkeypatch.setattr(cluster_taking, "versions_here", lambda theirs=theirs: theirs)
        with pytest.raises(VersionMismatch, match=f"{package} {mine[package]}.*yours is {version}.*Use an environment"):
            FleetCluster(n_workers=1, **where)
        with pytest.raises(VersionMismatch, match=f"{package} {mine[package]}.*yours is {version}.*Use an environment"):
            FleetCluster.from_name(taken.name, **where)
        for path, more in (("/v1/clusters", {}), (certificate, {"csr": ClusterKey().csr})):
            detail = problem(fleet.request("POST", path, {"versions": theirs, **more}), 409, "version_mismatch")
            assert "Use an environment with those versions" in detail
    theirs = {**mine, "numpy": "0.1"}
    monkeypatch.setattr(cluster_taking, "versions_here", lambda: theirs)
    with pytest.warns(VersionMismatchWarning, match=r"numpy 0\.1 here"), FleetCluster(n_workers=0, **where):
        taken._taken.sign()  # who is in already renews, whatever the server runs by now
