"""Who an agent is, where it keeps its things, and where it lets its token go."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dask_fleet.agent.address import read_address, refuse_clear_text
from dask_fleet.agent.home import default_data_dir, ensure_home, state_folder
from dask_fleet.agent.options import AgentOptions
from dask_fleet.controller.agents import agent_home
from dask_fleet.model.errors import ClearTextRefused, SetupError
from dask_fleet.model.ids import random_id

KEY = "sha256:" + "5" * 64


def test_a_home_is_for_good_and_its_own(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    home = ensure_home(first, "node-7")
    assert ensure_home(first, "another name") == home
    assert home.startswith("node-7-")
    assert ensure_home(second, "node-7") != home
    assert agent_home(random_id(home)) == home  # as the server reads it
    assert (first / "agent.home").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("left", ["", "two words", "a/b", "x" * 200])
def test_a_broken_home_is_made_anew(tmp_path: Path, left: str) -> None:
    (tmp_path / "agent.home").write_text(left)
    assert ensure_home(tmp_path, "n").startswith("n-")


def test_a_home_that_cannot_be_kept_says_so(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="--data-dir"):
        ensure_home(tmp_path / "missing", "n")


def test_default_folders_differ_by_server_host_and_name(tmp_path: Path) -> None:
    asked = [
        ("https://fleet:8000", "a", "h1"),
        ("https://fleet:8001", "a", "h1"),
        ("https://fleet:8000", "b", "h1"),
        ("https://fleet:8000", "a", "h2"),
        ("https://fleet:8000/../..", "a", "h1"),
    ]
    found = {default_data_dir(server, name, host, state=tmp_path) for server, name, host in asked}
    assert len(found) == len(asked)
    assert {folder.parent for folder in found} == {tmp_path / "dask-fleet" / "agents"}


def test_state_goes_where_this_user_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_folder({"XDG_STATE_HOME": "/var/x"}, tmp_path) == Path("/var/x")
    assert state_folder({"XDG_STATE_HOME": "relative"}, tmp_path) == tmp_path / ".local" / "state"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    nowhere = tmp_path / "no home"
    folder = state_folder({}, nowhere)
    assert folder == tmp_path / f"dask-fleet-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(SetupError, match="not this user's alone"):
        state_folder({}, nowhere)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(SetupError, match="not this user's alone"):
        state_folder({}, nowhere)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost", "http://[::1]:1", "https://10.1.2.3:8000"])
def test_where_a_token_may_go(url: str) -> None:
    refuse_clear_text(url)


@pytest.mark.parametrize("url", ["http://10.1.2.3:8000", "http://fleet.example.org", "http://localhost.example.org"])
def test_where_a_token_may_not_go(url: str) -> None:
    with pytest.raises(ClearTextRefused, match="--tls auto"):
        refuse_clear_text(url)
    assert ClearTextRefused.exit_code == 78


@pytest.mark.parametrize("url", ["", "fleet:8000", "ftp://fleet", "https://"])
def test_what_is_no_server(url: str) -> None:
    with pytest.raises(ValueError, match="not a server's URL"):
        refuse_clear_text(url)


def options(folder: Path, **given: Any) -> AgentOptions:
    (folder / "agent.token").write_text("fleet_x\n")
    return AgentOptions(token_file=folder / "agent.token", data_dir=folder, **given)


def test_the_server_file_is_read_anew_with_its_key(tmp_path: Path) -> None:
    given = options(tmp_path, server_file=tmp_path / "server.json", ca_file=tmp_path / "ca.pem")
    with pytest.raises(FileNotFoundError):
        read_address(given)
    (tmp_path / "server.json").write_text(json.dumps({"url": "https://127.0.0.1:1", "fingerprint": KEY}))
    address = read_address(given)
    assert (address.host, address.port, address.secure, address.token) == ("127.0.0.1", 1, True, "fleet_x")
    assert (address.trust.fingerprint, address.trust.ca_file) == (KEY, None)
    (tmp_path / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:2"}))
    assert read_address(given).context() is None
    for bad in ("[]", "{}", "half", json.dumps({"url": "https://x", "fingerprint": "y"})):
        (tmp_path / "server.json").write_text(bad)
        with pytest.raises(ValueError):  # noqa: PT011 - each has its own words
            read_address(given)


def test_a_named_server_has_the_named_trust(tmp_path: Path) -> None:
    assert read_address(options(tmp_path, server="https://x/", fingerprint=KEY)).trust.fingerprint == KEY
    address = read_address(options(tmp_path, server="https://x/", ca_file=tmp_path / "ca.pem"))
    assert (address.url, address.port, address.trust.ca_file) == ("https://x", 443, tmp_path / "ca.pem")


@pytest.mark.parametrize("bad", [{"name": "a b"}, {"name": ""}, {"pool": "é"}, {"name": "x" * 65}, {"lifetime_s": -1.0}])
def test_options_that_make_no_agent(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"name and pool|negative"):
        options(tmp_path, server="https://x", **bad)
