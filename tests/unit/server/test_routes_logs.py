"""Logs over HTTP: to whom they are given, in which parts, and as nothing but text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.server.rig import HOST, Exchange, Rig, events_of, run, until
from tests.unit.server.test_routes_jobs import problem

from dask_fleet.model.errors import BadRequest
from dask_fleet.model.jobs import JobRecord
from dask_fleet.model.logs import LogStream, log_path
from dask_fleet.protocol.frames import LogGrown, Start
from dask_fleet.server.auth import Scope
from dask_fleet.server.log_tail import parse_places
from dask_fleet.server.log_text import joined, last_attempts, last_lines, parse_log_query


def write(rig: Rig, start: Start, data: bytes, stream: LogStream = LogStream.STDOUT) -> None:
    path = rig.controller.logs.folder / log_path(start.seq, start.attempt, stream)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data)


def test_logs_belong_to_their_tenant_and_need_the_scope(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(spool=tmp_path / "spool") as rig:
            rig.attach()
            job_id = await rig.submit()
            write(rig, await rig.started(), b"mine\n")
            link = f"/v1/jobs/{job_id}/logs"
            assert (await rig.http.get(link)).content == b"mine\n"
            assert (await rig.http.head(link)).content == b""
            assert (await rig.http.post(link)).status_code == 405
            foreign = rig.client(rig.new_token("eve", tenant="other"))
            never = await foreign.get(f"/v1/jobs/{'x' * 32}/logs")
            answer = await foreign.get(link)
            problem(answer, 404, "not_found")
            assert answer.content == never.content
            writer = rig.client(rig.new_token("bob", scopes=frozenset({str(Scope.SUBMIT)})))
            problem(await writer.get(link), 403, "forbidden")
            problem(await rig.client(None).get(link), 401, "unauthorized")

    run(main())


def test_no_browser_takes_a_log_for_a_page(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(spool=tmp_path / "spool") as rig:
            rig.attach()
            job_id = await rig.submit()
            write(rig, await rig.started(), b"<script>alert(1)</script>\n")
            answer = await rig.http.get(f"/v1/jobs/{job_id}/logs", headers={"Accept": "text/html,*/*"})
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-security-policy"].startswith("sandbox")
            problem(await rig.http.get(f"/v1/jobs/{job_id}/logs", headers={"Accept": "text/html"}), 406, "not_acceptable")

    run(main())


def test_the_event_stream_shows_logs_when_asked_and_is_resumed_where_it_broke(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rig(spool=tmp_path / "spool") as rig:
            rig.attach()
            job_id = await rig.submit()
            start = await rig.started()
            write(rig, start, b"one\n")
            sent = [("host", HOST), ("authorization", f"Bearer {rig.token}")]
            target = f"/v1/jobs/{job_id}/events?logs=true"
            async with Exchange(rig.app, "GET", target, headers=sent) as exchange:
                await exchange.contains(b'"text":"one\\n"')
                write(rig, start, b"tw" + "ö".encode()[:1])
                rig.tell(LogGrown(start.seq, 1))
                await exchange.contains(b'"text":"tw"')
                write(rig, start, "ö".encode()[1:] + b"\xff", LogStream.STDOUT)
                write(rig, start, b"bad\n", LogStream.STDERR)
                rig.succeed(start, b"1")
                blocks = events_of(await exchange.whole())
            told = [block for block in blocks if block.get("event") == "log"]
            assert all("id" not in block for block in told)
            texts: dict[str, str] = {}
            ends = dict.fromkeys(("stdout", "stderr"), 0)
            for block in told:  # in how many pieces depends on when the follower looked, but they join without gaps
                piece = block["data"]
                assert piece["offset"] == ends[piece["stream"]]
                ends[piece["stream"]] = piece["next_offset"]
                texts[piece["stream"]] = texts.get(piece["stream"], "") + piece["text"]
            assert texts == {"stdout": "one\ntwö\ufffd", "stderr": "bad\n"}
            assert ends == {"stdout": 9, "stderr": 4}
            assert blocks[-1]["event"] == "succeeded"  # after all that it wrote
            again = events_of((await rig.http.get(f"{target}&logs_after=1-stdout-4")).content)
            assert [b["data"]["text"] for b in again if b.get("event") == "log"] == ["twö\ufffd", "bad\n"]
            without = events_of((await rig.http.get(f"/v1/jobs/{job_id}/events")).content)
            assert not [block for block in without if block.get("event") == "log"]
            for bad in ("logs=yes", "logs=true&logs_after=x", "logs=true&logs_after=1-core-1"):
                problem(await rig.http.get(f"/v1/jobs/{job_id}/events?{bad}"), 400, "bad_request")

    run(main())


def test_the_end_is_told_after_the_logs_even_where_the_ledger_is_ahead_of_the_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with Rig(spool=tmp_path / "spool") as rig:
            rig.attach()
            job_id = await rig.submit()
            start = await rig.started()
            as_it_ran = await rig.controller.find(job_id, "default")
            looks = 0

            async def find_late(job_id: str, tenant: str) -> JobRecord:
                nonlocal looks
                looks += 1
                return as_it_ran

            sent = [("host", HOST), ("authorization", f"Bearer {rig.token}")]
            async with Exchange(rig.app, "GET", f"/v1/jobs/{job_id}/events?logs=true", headers=sent) as exchange:
                await exchange.contains(b"event: started")
                with monkeypatch.context() as patch:
                    patch.setattr(rig.controller, "find", find_late)
                    rig.succeed(start, b"1")
                    await until(lambda: looks >= 1 and not rig.controller.status()["running"])
                write(rig, start, b"last words\n")
                rig.controller._changes.progressed(start.seq)
                told = [block.get("event") for block in events_of(await exchange.whole())]
            assert told[-2:] == ["log", "succeeded"]
            assert told.count("succeeded") == 1

    run(main())


def test_last_lines() -> None:
    text = b"a\nb\nc"
    assert [last_lines(text, n) for n in range(5)] == [b"", b"c", b"b\nc", text, text]
    assert last_lines(b"a\nb\n", 1) == b"b\n"
    assert last_lines(b"\n\n", 1) == b"\n"
    assert last_lines(b"", 3) == b""


def test_streams_stand_below_their_names() -> None:
    assert joined({LogStream.STDOUT: b"", LogStream.LOG: b"x"}, 2) == b"x"
    assert joined({LogStream.STDOUT: b"a", LogStream.STDERR: b"b\n"}, 2) == (
        b"==> attempt 2 stdout <==\na\n\n==> attempt 2 stderr <==\nb\n"
    )
    assert joined({}, 1) == b""


def test_queries() -> None:
    assert parse_log_query({}).streams == tuple(LogStream)
    assert parse_log_query({"stream": "log", "offset": "0"}).offset == 0
    for bad in ({"stream": "x"}, {"attempt": "0"}, {"attempt": "1.5"}, {"tail": "-1"}, {"tail": "9999999"}, {"offset": "1"}):
        with pytest.raises(BadRequest):
            parse_log_query(bad)
    assert list(last_attempts(0)) == []
    assert list(last_attempts(2)) == [1, 2]
    assert len(last_attempts(5_000)) == 100


def test_places() -> None:
    assert parse_places("") == {}
    assert parse_places("1-stdout-4096,2-log-0") == {(1, LogStream.STDOUT): 4096, (2, LogStream.LOG): 0}
    for bad in (",", "1", "1-stdout", "1-stdout-", "1-stdout-x", "1-stdout-9999999", "-1-stdout-0", "1-stdout-1,"):
        with pytest.raises(BadRequest):
            parse_places(bad)
