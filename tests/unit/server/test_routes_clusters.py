"""``/v1/clusters``: taking, looking, scaling, joining, closing, and every refusal."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version
from typing import Any, Self

import httpx
import pytest
from tests.unit.server.rig import ALL_SCOPES, Rig, run, until
from tests.unit.server.stub_clusters import StubClusters

from dask_fleet.server.auth import Scope
from dask_fleet.server.dask_versions import refuse_mismatch, versions_here

CSR = "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n"
HERE = {"python": ".".join(map(str, sys.version_info[:3])), "distributed": version("distributed")}


class ClusterRig(Rig):
    """A rig whose caller may run code, and whose clusters are records."""

    def __init__(self, *, runs_at_once: bool = True) -> None:
        super().__init__()
        self.clusters = StubClusters(runs_at_once=runs_at_once)
        self.controller.clusters = self.clusters
        self.coder = self.new_token("cem", scopes=ALL_SCOPES | {str(Scope.RUN_CODE)})

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.http = self.client(self.coder)
        return self


def problem(answer: httpx.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    detail: str = answer.json()["detail"]
    return detail


def test_a_cluster_that_runs_is_answered_with_all_that_a_client_needs() -> None:
    async def main() -> None:
        async with ClusterRig() as rig:
            asked = {"name": "mine", "n_workers": 2, "memory_limit": "1GiB", "csr": CSR, "versions": HERE}
            answer = await rig.http.post("/v1/clusters", json=asked, headers={"Prefer": "wait=1"})
            assert answer.status_code == 201, answer.text
            assert answer.headers["preference-applied"] == "wait=1"
            document = answer.json()
            assert answer.headers["location"] == f"/v1/clusters/{document['cluster_id']}"
            assert document["status"] == "running"
            assert document["address"] == "tls://127.0.0.1:4711"
            assert (document["certificate"], document["ca"]) == ("CERTIFICATE", "CA")
            assert document["versions"]["distributed"] == version("distributed")
            assert document["memory_limit"] == 1 << 30
            assert document["user"] == "cem"
            assert rig.clusters.signed == [CSR.encode()]
            for name in ("mine", document["cluster_id"]):
                shown = (await rig.http.get(f"/v1/clusters/{name}")).json()
                assert shown["cluster_id"] == document["cluster_id"]
                assert "certificate" not in shown
            listed = (await rig.http.get("/v1/clusters")).json()["clusters"]
            assert [each["name"] for each in listed] == ["mine"]

    run(main())


def test_what_does_not_run_yet_says_what_it_waits_for_and_a_waiting_answer_comes_when_it_runs() -> None:
    async def main() -> None:
        async with ClusterRig(runs_at_once=False) as rig:
            rig.clusters.waiting_for = "free slots in the pool 'default'"
            answer = await rig.http.post("/v1/clusters", json={"name": "late", "csr": CSR})
            assert answer.status_code == 202
            assert answer.json()["waiting_for"] == "free slots in the pool 'default'"
            assert "certificate" not in answer.json()
            joining = await rig.http.post("/v1/clusters/late/certificate", json={"csr": CSR})
            problem(joining, 409, "conflict")
            cluster_id = answer.json()["cluster_id"]
            waiting = asyncio.create_task(rig.http.get(f"/v1/clusters/{cluster_id}?wait=60"))
            other = asyncio.create_task(rig.http.post("/v1/clusters", json={"name": "b"}, headers={"Prefer": "wait=60"}))
            await until(lambda: len(rig.clusters.records) == 2)
            for each in list(rig.clusters.records):
                rig.clusters.run(each)
            assert (await waiting).json()["status"] == "running"
            assert (await other).status_code == 201
            joining = await rig.http.post("/v1/clusters/late/certificate", json={"csr": CSR})
            assert joining.json()["certificate"] == "CERTIFICATE"

    run(main())


def test_a_repeated_request_finds_the_cluster_it_made_and_another_one_is_told_that_the_name_is_in_use() -> None:
    async def main() -> None:
        async with ClusterRig() as rig:
            key = {"Idempotency-Key": "k1"}
            first = await rig.http.post("/v1/clusters", json={"name": "one"}, headers=key)
            again = await rig.http.post("/v1/clusters", json={"name": "one"}, headers=key)
            assert again.status_code == 201
            assert again.json()["cluster_id"] == first.json()["cluster_id"]
            problem(await rig.http.post("/v1/clusters", json={"name": "one"}), 409, "conflict")
            problem(
                await rig.http.post("/v1/clusters", json={"name": "one"}, headers={"Idempotency-Key": "k2"}), 409, "conflict"
            )
            assert len(rig.clusters.records) == 1

    run(main())


def test_closing_twice_is_closing_once_and_the_ended_one_is_listed_with_all() -> None:
    async def main() -> None:
        async with ClusterRig() as rig:
            cluster_id = (await rig.http.post("/v1/clusters", json={"name": "x"})).json()["cluster_id"]
            assert (await rig.http.delete("/v1/clusters/x")).status_code == 200
            again = await rig.http.delete(f"/v1/clusters/{cluster_id}")
            assert again.status_code == 200
            assert again.json()["reason"] == "closed by cem"
            problem(await rig.http.delete("/v1/clusters/x"), 404, "not_found")
            assert (await rig.http.get("/v1/clusters")).json()["clusters"] == []
            assert len((await rig.http.get("/v1/clusters?all=true")).json()["clusters"]) == 1
            problem(await rig.http.get("/v1/clusters?all=yes"), 400, "bad_request")

    run(main())


def test_scaling() -> None:
    async def main() -> None:
        async with ClusterRig() as rig:
            await rig.http.post("/v1/clusters", json={"name": "x"})
            assert (await rig.http.patch("/v1/clusters/x", json={"n_workers": 0})).json()["n_workers"] == 0
            assert rig.clusters.left == ()
            assert (await rig.http.patch("/v1/clusters/x", json={"n_workers": 1, "leave": ["3", "1"]})).status_code == 200
            assert rig.clusters.left == ("3", "1")
            for body in ({"n_workers": 0, "leave": "3"}, {"n_workers": 0, "leave": [3]}, {"leave": ["3"]}):
                problem(await rig.http.patch("/v1/clusters/x", json=body), 400, "bad_request")
            for body in ({}, {"n_workers": -1}, {"n_workers": 1.5}, {"n_workers": True}, {"n": 1}, []):
                problem(await rig.http.patch("/v1/clusters/x", json=body), 400, "bad_request")

    run(main())


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"n_workers": -1}, "n_workers"),
        ({"n_workers": 10**6}, "n_workers"),
        ({"n_workers": "2"}, "n_workers"),
        ({"threads_per_worker": 0}, "threads_per_worker"),
        ({"threads_per_worker": True}, "threads_per_worker"),
        ({"memory_limit": 0}, "memory_limit"),
        ({"memory_limit": "lots"}, "memory_limit"),
        ({"idle_timeout": 0}, "idle_timeout"),
        ({"idle_timeout": "soon"}, "idle_timeout"),
        ({"max_lifetime": -5}, "max_lifetime"),
        ({"name": ""}, "name"),
        ({"name": "../x"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"name": 7}, "name"),
        ({"pool": "no such/pool"}, "pool"),
        ({"resources": {"GPU": 0}}, "resources"),
        ({"resources": ["GPU"]}, "resources"),
        ({"config": ["x"]}, "config"),
        ({"config": {"a": [{"b": 10**400}]}}, "64 bits"),
        ({"config": {"a": -(1 << 63) - 1}}, "64 bits"),
        ({"resources": {"GPU": 10**400}}, "resources"),
        ({"resources": {"GPU": 1e308}}, "resources"),
        ({"resources": {"a\nb": 1}}, "resources"),
        ({"preload": "module"}, "preload"),
        ({"env": ["A"]}, "env"),
        ({"env": {"A": 1}}, "env"),
        ({"env": {"FLEET_TOKEN": "x"}}, "the fleet's own"),
        ({"env": {"DASK_ARRAY__CHUNK_SIZE": "1MiB"}}, "config"),
        ({"env": {"PYTHONPATH": "/tmp"}}, "agent"),
        ({"scheduler_memory_limit": "1MiB"}, "256 MiB"),
        ({"preload": ["import os; x"]}, "preload"),
        ({"dashboard": 1}, "dashboard"),
        ({"access": "everybody"}, "access"),
        ({"access": ["user"]}, "access"),
        ({"csr": "-----BEGIN PRIVATE KEY-----"}, "csr"),
        ({"versions": {"dask": 1}}, "versions"),
        ({"workers": 3}, "unknown members: workers"),
        ([], "object"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_made(body: Any, word: str) -> None:
    async def main() -> None:
        async with ClusterRig() as rig:
            assert word in problem(await rig.http.post("/v1/clusters", json=body), 400, "bad_request")
            assert not rig.clusters.records

    run(main())


def test_a_client_with_which_dask_would_fail_is_refused_with_both_versions() -> None:
    async def main() -> None:
        async with ClusterRig() as rig:
            theirs = {**HERE, "distributed": "2020.1.0", "numpy": "0.1"}
            answer = await rig.http.post("/v1/clusters", json={"versions": theirs})
            detail = problem(answer, 409, "version_mismatch")
            assert HERE["distributed"] in detail
            assert "2020.1.0" in detail
            assert answer.json()["mismatched"]["numpy"][0] == "0.1"
            assert not rig.clusters.records

    run(main())


def test_only_what_makes_dask_fail_is_refused() -> None:
    here = versions_here()
    refuse_mismatch({**here, "numpy": "0.1", "python": f"{sys.version_info[0]}.{sys.version_info[1]}.99"}, here)
    refuse_mismatch({}, here)
    with pytest.raises(Exception, match=r"python 3\.\d+"):
        refuse_mismatch({"python": "2.7.18"}, here)


def test_another_user_may_look_and_is_let_in_by_the_owner_only() -> None:
    async def main() -> None:
        async with ClusterRig() as rig:
            for name, access in (("mine", "user"), ("ours", "tenant")):
                await rig.http.post("/v1/clusters", json={"name": name, "access": access})
            scopes = {str(Scope.READ), str(Scope.RUN_CODE)}
            bob = rig.client(rig.new_token("bob", scopes=scopes))
            boss = rig.client(rig.new_token("ada", scopes={*scopes, str(Scope.ADMIN)}))
            calls: list[tuple[str, str, Any]] = [
                ("PATCH", "", {"n_workers": 1}), ("POST", "/certificate", {"csr": CSR}), ("DELETE", "", None),
            ]  # fmt: skip
            for method, page, body in calls:
                detail = problem(await bob.request(method, f"/v1/clusters/mine{page}", json=body), 403, "forbidden")
                assert "only cem and administrators" in detail
            assert {each["name"] for each in (await bob.get("/v1/clusters")).json()["clusters"]} == {"ours", "mine"}
            assert (await bob.get("/v1/clusters/mine/events")).status_code == 200
            for who, name in ((bob, "ours"), (boss, "mine")):
                for method, page, body in calls:
                    answer = await who.request(method, f"/v1/clusters/{name}{page}", json=body)
                    assert answer.status_code in {200, 202}, answer.text

    run(main())


def test_other_tenants_see_nothing_and_looking_is_not_using() -> None:
    async def main() -> None:
        async with ClusterRig() as rig:
            await rig.http.post("/v1/clusters", json={"name": "mine"})
            stranger = rig.client(rig.new_token("eve", tenant="evil", scopes=ALL_SCOPES | {str(Scope.RUN_CODE)}))
            reader = rig.client(rig.token)
            anyone = rig.client(None)
            calls: list[tuple[str, str, Any]] = [
                ("GET", "", None),
                ("GET", "/events", None),
                ("PATCH", "", {"n_workers": 1}),
                ("POST", "/certificate", {"csr": CSR}),
                ("DELETE", "", None),
            ]
            for method, page, body in calls:
                foreign = await stranger.request(method, f"/v1/clusters/mine{page}", json=body)
                absent = await stranger.request(method, f"/v1/clusters/none{page}", json=body)
                assert foreign.status_code == 404
                assert foreign.content == absent.content
                looked = await reader.request(method, f"/v1/clusters/mine{page}", json=body)
                if method == "GET":
                    assert looked.status_code == 200
                else:
                    assert "run_code" in problem(looked, 403, "forbidden")
                assert (await anyone.request(method, f"/v1/clusters/mine{page}", json=body)).status_code == 401
            assert (await stranger.get("/v1/clusters")).json() == {"clusters": []}
            problem(await reader.post("/v1/clusters", json={}), 403, "forbidden")
            assert not rig.clusters.signed
            # The same name is free for them.
            assert (await stranger.post("/v1/clusters", json={"name": "mine"})).status_code == 201

    run(main())
