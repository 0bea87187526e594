"""The commands against the stand-in server: what they print, and how they exit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dask_fleet.cli.main import main


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(stub: Any, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*args: str) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exited:
            main(args)
        out, err = capfd.readouterr()
        return Ran(exited.value.code if isinstance(exited.value.code, int) else 0, out, err)

    return run


def test_a_call_prints_its_result(run: Run, stub: Any) -> None:
    options = ("--tag", "a", "--tag", "b", "--priority", "7")
    assert run("call", "math.fibonacci", "n=10", "origin=JFK", *options) == (0, "55\n", "")
    _, _, headers, body = next(request for request in stub.requests if request[0] == "POST")
    assert json.loads(body) == {"n": 10, "origin": "JFK"}
    assert (headers["fleet-tags"], headers["fleet-priority"]) == ("a,b", "7")


def test_a_call_for_programs(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("call", "math.fibonacci", "n=10", "--json")
    assert (code, json.loads(out)["result"], json.loads(out)["status"]) == (0, 55, "succeeded")
    (tmp_path / "p.json").write_text('{"n": 7}')
    assert run("call", "math.fibonacci", "--json-params", "@p.json").out == "13\n"
    assert run("call", "math.fibonacci", "--json-params", '{"n": 7}', "n=8").out == "21\n"
    code, out, _ = run("call", "math.slow", "n=1", "--no-wait")
    assert (code, out) == (0, "slow1\n")
    assert json.loads(run("call", "--json").out)[0]["endpoint"] == "math.fibonacci"
    assert "fibonacci(n: int" in run("call").out


def test_a_call_for_each_line_of_a_file(run: Run, stub: Any, tmp_path: Path) -> None:
    file = tmp_path / "sets.ndjson"
    file.write_text('{"n": 10}\n\n{"n": 11}\n')
    code, out, err = run("call", "math.fibonacci", "--batch", str(file), "base=2", "--tag", "a", "--output", "-")
    assert code == 0
    assert [(line["index"], line["status"], line["result"]) for line in map(json.loads, out.splitlines())] == [
        (0, "succeeded", 55), (1, "succeeded", 89)]
    assert "2 succeeded" in err
    _, path, headers, body = next(request for request in stub.requests if request[0] == "POST")
    assert (path, headers["fleet-tags"]) == ("/v1/math/fibonacci:batch", "a")
    assert [json.loads(line) for line in body.splitlines()] == [{"n": 10, "base": 2.0}, {"n": 11, "base": 2.0}]
    assert run("call", "math.slow", "--batch", str(file), "--no-wait").out == "slow10\nslow11\n"
    code, _, err = run("call", "math.slow", "--batch", str(file), "--timeout", "0.2s")
    assert (code, "2 of 2 jobs have not ended yet" in err) == (1, True)
    file.write_text('[{"n": 3}, {"n": "x"}]')
    code, out, _ = run("call", "math.fibonacci", "--batch", str(file), "--json")
    first, second = json.loads(out)
    assert (code, first["result"], second["error"]["code"]) == (1, 2, "invalid_parameters")
    code, out, err = run("call", "math.fail", "--batch", str(file))
    assert code == 1
    assert "ValueError: no luck" in out
    assert "1 failed, 1 refused" in err


@pytest.mark.parametrize(("text", "told"), [("{}\n{", "line 2"), ("7", "line 1"), ("[1]", "element 1"), ("[", "not JSON")])
def test_a_file_that_holds_no_sets_is_refused(run: Run, stub: Any, tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "sets").write_text(text)
    code, _, err = run("call", "math.fibonacci", "--batch", str(tmp_path / "sets"))
    assert (code, told in err) == (1, True)
    assert run("call", "math.fibonacci", "--batch", str(tmp_path / "none")).code == 1
    assert not stub.sent("POST", "/v1/math/fibonacci:batch")


def test_a_result_goes_into_a_file_or_a_pipe(run: Run, tmp_path: Path) -> None:
    text = "a text of some length" * 10
    code, out, err = run("call", "math.words", "n=1", "--output", "out.txt")
    assert (code, out) == (0, "")
    assert "210 bytes of text/plain in out.txt" in err
    assert (tmp_path / "out.txt").read_text() == text
    assert run("call", "math.words", "n=1", "-o", "-").out == text
    assert run("jobs", "result", "words1").out == text


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["call", "math.fibonaci", "n=1"], 1, "Did you mean 'fibonacci'"),
        (["call", "fibonacci"], 1, "SERVICE.ENDPOINT"),
        (["call", "math.fibonacci", "n=x"], 1, "n: Field required"),
        (["call", "math.fibonacci", "5"], 1, "write name=value"),
        (["call", "math.fibonacci", "n=1", "--priority", "1000"], 1, "priority must be from -100 to 100"),
        (["call", "math.fibonacci", "n=1", "--timeout", "soon"], 1, "--timeout must be a duration"),
        (["call", "math.fibonacci", "--json-params", "[1]"], 1, "must be an object"),
        (["call", "math.fail", "n=1"], 1, "ValueError: no luck"),
        (["call", "math.slow", "n=1", "--timeout", "50ms"], 1, "dask-fleet jobs result slow1"),
        (["jobs", "show", "none"], 1, "no such job"),
        (["jobs", "list", "--since", "yesterday"], 1, "--since must be a duration"),
        (["--url"], 2, "No such option"),
        (["serve"], 2, "Missing argument"),
    ],
)
def test_an_error_is_told_with_its_cure_on_standard_error(run: Run, args: list[str], code: int, told: str) -> None:
    ran = run(*args)
    assert (ran.code, ran.out) == (code, "")
    assert told in ran.err
    assert "Traceback (most recent" not in ran.err


def test_errors_for_programs(run: Run) -> None:
    ran = run("call", "math.fibonacci", "n=x", "--json")
    assert ran.code == 1
    assert json.loads(ran.err)["code"] == "invalid_parameters"
    assert json.loads(ran.err)["errors"][0]["loc"] == ["n"]


def test_a_failed_job_shows_the_functions_traceback(run: Run) -> None:
    assert "line 7" in run("call", "math.fail", "n=1").err
    ran = run("call", "math.fail", "n=1", "--json")
    assert (ran.code, json.loads(ran.out)["error"]["cause"]) == (1, "exception")


def test_no_server_is_one_line_and_a_cure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_URL", "http://127.0.0.1:9")
    ran = run("jobs", "list")
    first, second = ran.err.splitlines()
    assert ran.code == 1
    assert first.startswith("error: cannot reach the server at http://127.0.0.1:9")
    assert "dask-fleet serve" in second


def test_a_bad_setting_exits_with_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_PROT", "1")
    ran = run("config", "show")
    assert ran.code == 2
    assert "did you mean FLEET_PORT?" in ran.err


def test_jobs_are_listed_shown_and_steered(run: Run, stub: Any) -> None:
    run("call", "math.fibonacci", "n=1")
    run("call", "math.slow", "n=1", "--no-wait")
    listed = run("jobs", "list").out
    assert "math.fibonacci(n=1)" in listed
    assert "slow1" in listed
    found = json.loads(run("jobs", "list", "--state", "queued", "--endpoint", "math.slow", "--json").out)
    assert [job["job_id"] for job in found] == ["slow1"]
    assert run("jobs", "list", "--since", "2h").code == 0
    assert "created_after=" in stub.requests[-1][1]
    assert "queued" in run("jobs", "show", "slow1").out
    assert json.loads(run("jobs", "show", "slow1", "--json").out)["attempts"] == [{"attempt": 1}]
    assert run("jobs", "cancel", "slow1").out.split() == ["slow1", "cancelled"]
    ran = run("jobs", "retry", "none", "slow1", "--json")
    assert (ran.code, json.loads(ran.err)["code"]) == (1, "not_found")
    assert [(job["job_id"], job["status"]) for job in json.loads(ran.out)] == [("slow1", "queued")]


def test_watching_ends_with_the_job(run: Run) -> None:
    run("call", "math.fibonacci", "n=1")
    ran = run("jobs", "watch", "fibonacci1", "--json")
    assert ran.code == 0
    assert [json.loads(line)["kind"] for line in ran.out.splitlines()] == ["accepted", "succeeded"]
    run("call", "math.fail", "n=1")
    ran = run("jobs", "watch", "fail1")
    assert ran.code == 1
    assert "failed" in ran.out


def test_what_users_sent_cannot_steer_the_terminal(run: Run, stub: Any) -> None:
    run("call", "math.fibonacci", "n=1")
    stub.jobs["fibonacci1"]["user"] = "eve\x1b[2J[bold]"
    out = run("jobs", "list").out
    assert "\x1b" not in out
    assert "eve\\x1b[2J[bold]" in out


def test_settings_are_shown_with_their_origins_and_without_the_token(run: Run, stub: Any, tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text("port: 1234\n")
    found = json.loads(run("config", "show", "--json", "--data-dir", "x").out)
    assert found["port"] == {"value": 1234, "origin": str(tmp_path / "fleet.yaml")}
    assert found["url"]["origin"] == "FLEET_URL"
    assert found["data-dir"] == {"value": "x", "origin": "--data-dir"}
    assert found["token"] == {"value": "**********", "origin": "FLEET_TOKEN"}
    assert "stub-token" not in run("config", "show").out


def test_the_doctor_finds_what_is_wrong(run: Run, stub: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "token").write_text("x")
    (data / "token").chmod(0o644)
    ran = run("doctor", "--data-dir", str(data), "--json")
    found = {check["name"]: check for check in json.loads(ran.out)}
    assert ran.code == 1
    assert found["token"]["ok"]
    assert found["server"]["ok"]
    assert found["agents"]["detail"] == "1 connected, 2 slots"
    assert "chmod 600" in found["token file"]["cure"]
    assert not found["token file"]["ok"]
    ran = run("doctor", "--data-dir", str(data), "--url", "http://127.0.0.1:9")
    assert "✗ server: http://127.0.0.1:9 does not answer" in ran.out
    assert "dask-fleet serve" in ran.out


def test_the_tab_key_offers_what_there_is(stub: Any) -> None:
    words = {
        "dask-fleet call math.fib": ["math.fibonacci"],
        "dask-fleet call math.fibonacci o": ["origin=EWR", "origin=JFK"],
    }
    for line, expected in words.items():
        env = {**os.environ, "_DASK_FLEET_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = subprocess.run([_script("dask-fleet")], env=env, capture_output=True, text=True, timeout=30, check=False)
        assert done.stdout.split() == expected, done.stderr


def test_ctrl_c_leaves_the_job_and_says_how_to_find_it(stub: Any) -> None:
    stub.arrived.clear()
    process = subprocess.Popen(
        [_script("dask-fleet"), "call", "math.slow", "n=5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        while not stub.sent("GET", "/v1/jobs/slow5"):  # the request that waits for the result
            assert stub.arrived.wait(20)
            stub.arrived.clear()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err.strip() == "The job goes on. Get its result with: dask-fleet jobs result slow5"


def test_the_same_as_dask_fleet(stub: Any) -> None:
    done = subprocess.run(
        [_script("dask"), "fleet", "call", "math.fibonacci", "n=10", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert json.loads(done.stdout)["result"] == 55
    assert (done.returncode, done.stderr) == (0, "")


def test_serving_imports_nothing_heavy_before_the_server() -> None:
    code = """
import sys, types
stand_in = types.ModuleType("dask_fleet.server.serve")
stand_in.run = lambda settings, targets, **_: print(targets, settings.port, *sorted(sys.modules)) or 3
sys.modules["dask_fleet.server.serve"] = stand_in
from dask_fleet.cli.main import main
main(["serve", "service.py", "--port", "0"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("['service.py'] 0 ")
    loaded = set(done.stdout.split())
    heavy = {"dask", "distributed", "pandas", "numpy", "pyarrow", "httpx", "rich", "yaml", "click", "asyncio"}
    assert not loaded & heavy


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
