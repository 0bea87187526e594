"""Settings: precedence, origins, and errors that name the cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from dask_fleet.config import Secret, Settings, load, load_client
from dask_fleet.config.durations import format_duration, parse_duration
from dask_fleet.model.errors import ConfigError


def test_each_source_overrules_the_one_before_it(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text("port: 1\nnthreads: 2\nmax_queued: 3\norphan-timeout: 2m\n")
    found = load({"FLEET_NTHREADS": "4", "FLEET_MAX_QUEUED": "5", "OTHER": "x"}, {"max_queued": 6, "host": None}, tmp_path)
    assert (found.settings.port, found.settings.nthreads, found.settings.max_queued) == (1, 4, 6)
    assert found.settings.orphan_timeout_s == 120.0
    assert found.settings.host == "127.0.0.1"
    file = str(tmp_path / "fleet.yaml")
    assert found.origins["port"] == found.origins["orphan_timeout_s"] == file
    assert found.origins["nthreads"] == "FLEET_NTHREADS"
    assert found.origins["max_queued"] == "--max-queued"
    assert found.origins["host"] == "default"
    assert found.origins.keys() == set(Settings.__dataclass_fields__)


@pytest.mark.parametrize(
    ("environ", "text", "message"),
    [
        ({}, "prot: 8000", r"unknown setting 'prot' in .*fleet\.yaml; did you mean port\?"),
        ({}, "orphan_timeout_s: 3", r"did you mean orphan-timeout\?"),
        ({"FLEET_PROT": "1"}, "", r"unknown variable FLEET_PROT; did you mean FLEET_PORT\?"),
        ({"FLEET_TOKENFILE": "1"}, "", r"did you mean FLEET_TOKEN_FILE\?"),
        ({"FLEET_PORT": "http"}, "", r"FLEET_PORT must be a whole number from 0 to 65535, not 'http'"),
        ({}, "port: 1.5", r"port in .* must be a whole number"),
        ({}, "port: 1\nport: 2", r"is there twice"),
        ({}, "- port", r"lines of `setting: value`"),
        ({}, "port: [", r"is not YAML"),
        ({}, "drain-timeout: soon", r"a duration such as"),
        ({}, "agent: perhaps", r"true or false"),
        ({}, "log-level: loud", r"one of debug, info, warning, error"),
        ({}, "token: abc", r"must not hold the token"),
        ({"FLEET_URL": "localhost:8000"}, "", r"a URL such as"),
        ({"FLEET_URL": "http://me:pw@host"}, "", r"without a user name"),
        ({"FLEET_CONFIG": "nowhere.yaml"}, "", r"FLEET_CONFIG names .*nowhere\.yaml, which is not a file"),
    ],
)
def test_a_mistake_is_named_with_its_cure(tmp_path: Path, environ: dict[str, str], text: str, message: str) -> None:
    (tmp_path / "fleet.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(environ, {}, tmp_path)


def test_an_error_about_the_token_does_not_show_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"FLEET_TOKEN": "abc\ndef"}, {}, tmp_path)
    assert "abc" not in str(caught.value)


def test_another_file_is_read_and_its_paths_are_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "prod.yaml").write_text("data-dir: state\nallowed-hosts: [Fleet.example.org]\nagent: no\n")
    found = load({"FLEET_CONFIG": "etc/missing.yaml"}, {"config": "etc/prod.yaml"}, tmp_path)
    assert found.settings.data_dir == folder / "state"
    assert found.settings.allowed_hosts == ("fleet.example.org",)
    assert found.settings.agent is False


def test_a_server_in_this_folder_is_found(tmp_path: Path) -> None:
    data = tmp_path / ".fleet"
    data.mkdir()
    (data / "server.json").write_text('{"url": "http://127.0.0.1:4321", "pid": 1}')
    (data / "token").write_text("s3cret\n")
    found = load_client({}, {}, tmp_path)
    assert found.settings.url == "http://127.0.0.1:4321"
    assert found.settings.token == Secret("s3cret")
    assert found.origins["url"] == str(data / "server.json")
    assert found.origins["token"] == str(data / "token")


def test_a_token_found_in_a_folder_never_leaves_this_machine(tmp_path: Path) -> None:
    data = tmp_path / ".fleet"
    data.mkdir()
    (data / "token").write_text("s3cret\n")
    assert load_client({"FLEET_URL": "https://fleet.example.org"}, {}, tmp_path).settings.token is None
    assert load_client({"FLEET_URL": "http://localhost.example.org"}, {}, tmp_path).settings.token is None
    assert load_client({"FLEET_URL": "http://localhost:9"}, {}, tmp_path).settings.token == Secret("s3cret")


def test_a_named_token_wins_over_a_found_one(tmp_path: Path) -> None:
    data = tmp_path / ".fleet"
    data.mkdir()
    (data / "token").write_text("found")
    (tmp_path / "mine").write_text("named\n")
    environ = {"FLEET_TOKEN_FILE": "mine"}
    assert load_client(environ, {}, tmp_path).settings.token == Secret("named")
    assert load_client({**environ, "FLEET_TOKEN": "said"}, {}, tmp_path).settings.token == Secret("said")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_client({"FLEET_TOKEN_FILE": "gone"}, {}, tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"url": 3}', '{"url": "ftp://x"}', ""])
def test_a_broken_server_file_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / ".fleet").mkdir()
    (tmp_path / ".fleet" / "server.json").write_text(text)
    assert load_client({}, {}, tmp_path).origins["url"] == "default"


def test_a_secret_never_prints_and_never_travels() -> None:
    import copy
    import pickle

    secret = Secret("hunter2")
    settings = Settings(token=secret)
    assert "hunter2" not in f"{secret} {secret!r} {settings!r} {[secret]}"
    assert secret.reveal() == "hunter2"
    assert copy.deepcopy(secret) == secret
    assert secret != Secret("other")
    with pytest.raises(TypeError):
        pickle.dumps(secret)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(30, 30.0), ("45s", 45.0), ("2m", 120.0), ("1h30m", 5400.0), ("90d", 7_776_000.0), ("250ms", 0.25), ("1.5", 1.5)],
)
def test_durations(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("value", ["", "m", "-3", "3 parsecs", "nan", "inf", True, None, [1], "1h and 2m"])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="a duration such as"):
        parse_duration(value)
