"""What is forgotten and what is kept: results, jobs, tokens."""

# ruff: noqa: D102, ARG002 - a scenario is told by its name, and all scenarios take the same arguments

from __future__ import annotations

from msgspec.structs import replace

from dask_fleet.model.jobs import JobFilter, JobRecord, StoredResult, TokenRecord
from dask_fleet.model.states import RunEvent, RunState
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.testing.ledger_conformance.scenarios import (
    LedgerMaker,
    ManualClock,
    end_of,
    listed,
    request,
    result,
    scenario,
    some,
)


class RetentionScenarios(LedgerMaker):
    """What is forgotten and what is kept: results, jobs, tokens."""

    # ------------------------------------------------------------------ retention

    async def _stored(self, ledger: Ledger, name: str, location: str | None) -> JobRecord:
        job = (await ledger.accept(request(name), claim_for="agent")).job
        given = result() if location is None else StoredResult(media_type="x/y", digest="d", size=1, location=location)
        return some(await ledger.finish(end_of(job, result=given)))

    @scenario
    async def test_expired_results_are_forgotten_and_their_locations_told_until_deleted(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        early = await self._stored(ledger, "a", "loc-a")
        inline = await self._stored(ledger, "b", None)
        clock.advance(10)
        late = await self._stored(ledger, "c", "loc-c")
        clock.advance(3590 - 1e-6)
        assert await ledger.purge_results() == []
        assert await ledger.get_result(early.seq, 1) is not None
        clock.advance(1e-6)
        assert await ledger.purge_results() == ["loc-a"]
        assert await ledger.purge_results() == ["loc-a"]
        assert await ledger.get_result(early.seq, 1) is None
        assert await ledger.get_result(inline.seq, 1) is None
        assert await ledger.get_result(late.seq, 1) is not None
        forgotten = some(await ledger.get("a"))
        assert (forgotten.state, forgotten.result_run, forgotten.result_expires_us) == (RunState.SUCCEEDED, None, None)
        await ledger.forget_locations(["loc-a", "unknown"])
        assert await ledger.purge_results() == []
        assert some(await ledger.get("c")).result_run == 1

    @scenario
    async def test_a_location_is_known_while_a_result_names_it_or_it_is_to_be_deleted(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        await self._stored(ledger, "a", "loc-a")
        asked = ["loc-a", "loc-b", *(f"many-{n}" for n in range(1000))]
        assert await ledger.unknown_locations(asked) == asked[1:]
        clock.advance(3600)
        await ledger.purge_results()
        assert await ledger.unknown_locations(asked[:2]) == ["loc-b"]
        await ledger.forget_locations(["loc-a"])
        assert await ledger.unknown_locations(asked[:2]) == ["loc-a", "loc-b"]

    @scenario
    async def test_a_purge_is_limited(self, ledger: Ledger, clock: ManualClock) -> None:
        for n in range(5):
            await self._stored(ledger, f"j{n}", f"loc-{n}")
        clock.advance(3600)
        assert len(await ledger.purge_results(limit=2)) == 2
        assert len(await ledger.purge_results(limit=2)) == 4
        assert len(await ledger.purge_results(limit=500)) == 5
        clock.advance(1)
        assert await ledger.purge_jobs(finished_before_us=clock.now_us(), limit=2) == 2
        assert await ledger.purge_jobs(finished_before_us=clock.now_us(), limit=500) == 3
        assert await ledger.purge_jobs(finished_before_us=clock.now_us()) == 0

    @scenario
    async def test_ended_jobs_without_result_are_deleted_wholly(self, ledger: Ledger, clock: ManualClock) -> None:
        failed = (await ledger.accept(request("failed", tags=("t",), params=b"z" * 5000), claim_for="agent")).job
        await ledger.finish(end_of(failed, RunEvent.FAIL))
        await ledger.reopen(failed.seq, by="bob")
        await ledger.request_cancel(failed.seq, 2, by="bob")
        kept = await self._stored(ledger, "kept", None)
        queued = (await ledger.accept(request("queued"))).job
        clock.advance(1)
        young = (await ledger.accept(request("young"))).job
        await ledger.request_cancel(young.seq, 1, by="bob")
        assert await ledger.purge_jobs(finished_before_us=clock.now_us()) == 1
        assert await ledger.get("failed") is None
        assert await ledger.events(failed.seq) == []
        assert await ledger.attempts(failed.seq) == []
        assert await listed(ledger, JobFilter(tenant="default", tag="t")) == []
        for job in (kept, queued, young):
            assert await ledger.get(job.job_id) is not None
        assert await ledger.finish(end_of(failed)) is None
        again = await ledger.accept(request("failed"))
        assert (again.opened, again.job.run) == (True, 1)
        assert again.job.seq > young.seq

    @scenario
    async def test_the_handle_of_a_purged_job_is_not_given_again(self, ledger: Ledger, clock: ManualClock) -> None:
        job = (await ledger.accept(request())).job
        await ledger.request_cancel(job.seq, 1, by="ada")
        assert await ledger.purge_jobs(finished_before_us=clock.now_us() + 1) == 1
        again = await self.reopened(ledger, clock)
        try:
            assert (await again.accept(request())).job.seq > job.seq
        finally:
            await again.close()

    @scenario
    async def test_an_idempotency_key_of_a_purged_job_stands_for_nothing(
        self, ledger: Ledger, clock: ManualClock
    ) -> None:
        job = (await ledger.accept(request("a", idempotency_key="k", request_digest=b"1"))).job
        await ledger.request_cancel(job.seq, 1, by="ada")
        await ledger.purge_jobs(finished_before_us=clock.now_us() + 1)
        assert (await ledger.accept(request("b", idempotency_key="k", request_digest=b"2"))).opened

    # ------------------------------------------------------------------ tokens

    @scenario
    async def test_tokens(self, ledger: Ledger, clock: ManualClock) -> None:
        assert await ledger.tokens() == []
        one = TokenRecord(token_id="t1", digest=b"\x00" * 32, user="ada", tenant="default",  # noqa: S106 - an id
                          scopes=frozenset({"jobs", "agent"}), created_us=5)
        two = TokenRecord(token_id="t2", digest=b"\xff" * 32, user="bob", tenant="default",  # noqa: S106 - an id
                          scopes=frozenset(), created_us=6, expires_us=9)
        await ledger.put_token(one)
        await ledger.put_token(two)
        revoked = TokenRecord(token_id="t1", digest=one.digest, user="ada", tenant="default",  # noqa: S106 - an id
                              scopes=one.scopes, created_us=5, revoked_us=7)
        await ledger.put_token(revoked)
        assert sorted(await ledger.tokens(), key=lambda token: token.token_id) == [revoked, two]

    @scenario
    async def test_a_token_is_revoked_once(self, ledger: Ledger, clock: ManualClock) -> None:
        one = TokenRecord(token_id="t1", digest=b"\x00" * 32, user="ada", tenant="default",  # noqa: S106 - an id
                          scopes=frozenset({"read"}), created_us=clock.now_us())
        await ledger.put_token(one)
        revoked = await ledger.revoke_token("t1", at_us=clock.now_us() + 5)
        assert revoked == replace(one, revoked_us=clock.now_us() + 5)
        assert await ledger.revoke_token("t1", at_us=clock.now_us() + 9) == revoked
        assert await ledger.revoke_token("t2", at_us=clock.now_us()) is None
        assert await ledger.tokens() == [revoked]

    @scenario
    async def test_only_tokens_that_have_ended_are_forgotten(self, ledger: Ledger, clock: ManualClock) -> None:
        def token(token_id: str, **ends: int) -> TokenRecord:
            return TokenRecord(token_id=token_id, digest=token_id.encode() * 16, user="ada", tenant="default",
                               scopes=frozenset({"read"}), created_us=5, **ends)  # fmt: skip

        ends: dict[str, dict[str, int]] = {
            "t1": {}, "t2": {"expires_us": 10}, "t3": {"expires_us": 11}, "t4": {"revoked_us": 10}, "t5": {"revoked_us": 11},
            "t6": {"expires_us": 90, "revoked_us": 9}, "t7": {"expires_us": 9, "revoked_us": 90}, "t8": {"expires_us": 1},
        }  # fmt: skip
        for token_id, given in ends.items():
            await ledger.put_token(token(token_id, **given))
        asked = ["t1", "t2", "t2", "t3", "t4", "t5", "t6", "t7", "unknown"]
        assert await ledger.forget_tokens(asked, ended_by_us=10) == 4
        assert [kept.token_id for kept in await ledger.tokens()] == ["t1", "t3", "t5", "t8"]
        assert await ledger.forget_tokens(asked, ended_by_us=10) == 0
        assert await ledger.forget_tokens([], ended_by_us=99) == 0
