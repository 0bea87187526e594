"""Signing in: links work once, sessions end, and no other site can use them."""

from __future__ import annotations

import pytest
from tests.unit.server.rig import HandClock

from dask_fleet.model.errors import Forbidden, Unauthorized
from dask_fleet.server.auth import Principal
from dask_fleet.server.signin import (
    CODE_VALID_S,
    SESSION_IDLE_S,
    SignIn,
    check_same_origin,
    session_cookie,
    set_cookie_header,
)

ANN = Principal(user="ann", tenant="default", scopes=frozenset({"read"}), token_id="t1")
HOST = (b"host", b"127.0.0.1:8000")


def scope(method: str, *headers: tuple[bytes, bytes], scheme: str = "http") -> dict[str, object]:
    return {"method": method, "scheme": scheme, "headers": [HOST, *headers]}


def test_a_code_signs_in_once() -> None:
    sign_in = SignIn(HandClock())
    code = sign_in.new_code(ANN)
    session = sign_in.redeem(code)
    found = sign_in.session(session)
    assert found is not None
    assert (found.user, found.via) == ("ann", "cookie")
    with pytest.raises(Unauthorized) as used:
        sign_in.redeem(code)
    with pytest.raises(Unauthorized) as wrong:
        sign_in.redeem("x")
    assert str(used.value) == str(wrong.value)


@pytest.mark.parametrize(("late_us", "works"), [(-1, True), (0, False), (1, False)])
def test_a_code_is_valid_for_ten_minutes(late_us: int, works: bool) -> None:
    clock = HandClock()
    sign_in = SignIn(clock)
    code = sign_in.new_code(ANN)
    clock.us += int(CODE_VALID_S * 1e6) + late_us
    if works:
        sign_in.redeem(code)
    else:
        with pytest.raises(Unauthorized):
            sign_in.redeem(code)


def test_a_session_lives_as_long_as_it_is_used() -> None:
    clock = HandClock()
    sign_in = SignIn(clock)
    session = sign_in.redeem(sign_in.new_code(ANN))
    for _ in range(3):
        clock.us += int(SESSION_IDLE_S * 1e6) - 1
        assert sign_in.session(session) is not None
    clock.us += int(SESSION_IDLE_S * 1e6)
    assert sign_in.session(session) is None
    assert sign_in.session("never") is None


def test_a_session_ends_with_its_token_and_by_signing_out() -> None:
    valid = {"t1"}
    sign_in = SignIn(HandClock(), is_valid=valid.__contains__)
    first = sign_in.redeem(sign_in.new_code(ANN))
    second = sign_in.redeem(sign_in.new_code(ANN))
    unused = sign_in.new_code(ANN)
    sign_in.end(first)
    assert sign_in.session(first) is None
    assert sign_in.session(second) is not None
    valid.clear()
    assert sign_in.session(second) is None
    with pytest.raises(Unauthorized):
        sign_in.redeem(unused)


def test_codes_are_bounded() -> None:
    sign_in = SignIn(HandClock())
    codes = [sign_in.new_code(ANN) for _ in range(101)]
    with pytest.raises(Unauthorized):
        sign_in.redeem(codes[0])
    sign_in.redeem(codes[1])


def test_the_cookie_is_kept_from_scripts_and_other_sites() -> None:
    assert set_cookie_header("s", secure=False) == "fleet_session=s; HttpOnly; SameSite=Strict; Path=/"
    assert set_cookie_header("s", secure=True).endswith("; Secure")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([b"fleet_session=abc"], "abc"),
        ([b"a=b; fleet_session=abc; c=d"], "abc"),
        ([b"xfleet_session=abc"], None),
        ([b"fleet_session=abc; fleet_session=def"], None),
        ([b"fleet_session=abc", b"fleet_session=abc"], None),
        ([b""], None),
        ([], None),
    ],
)
def test_reading_the_cookie(values: list[bytes], found: str | None) -> None:
    assert session_cookie([(b"cookie", value) for value in values]) == found


ORIGINS = [
    (((b"sec-fetch-site", b"same-origin"),), True),
    (((b"sec-fetch-site", b"same-origin"), (b"origin", b"http://127.0.0.1:8000")), True),
    (((b"origin", b"http://127.0.0.1:8000"),), True),
    ((), False),
    (((b"sec-fetch-site", b"same-site"),), False),
    (((b"sec-fetch-site", b"cross-site"), (b"origin", b"http://127.0.0.1:8000")), False),
    (((b"sec-fetch-site", b"none"),), False),
    (((b"sec-fetch-site", b"same-origin"), (b"sec-fetch-site", b"cross-site")), False),
    (((b"origin", b"http://127.0.0.1:9000"),), False),
    (((b"origin", b"https://127.0.0.1:8000"),), False),
    (((b"origin", b"null"),), False),
    (((b"origin", b"http://evil.example"),), False),
    (((b"origin", b"http://127.0.0.1:8000"), (b"origin", b"http://evil.example")), False),
]


@pytest.mark.parametrize(("headers", "allowed"), ORIGINS)
def test_only_our_own_pages_may_change_things(headers: tuple[tuple[bytes, bytes], ...], allowed: bool) -> None:
    if allowed:
        check_same_origin(scope("DELETE", *headers))
    else:
        with pytest.raises(Forbidden):
            check_same_origin(scope("DELETE", *headers))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE", "PROPFIND", "", "get"])
def test_every_method_that_is_not_known_to_be_safe_needs_proof_of_origin(method: str) -> None:
    sign_in = SignIn(HandClock())
    cookie = (b"cookie", b"fleet_session=" + sign_in.redeem(sign_in.new_code(ANN)).encode())
    for safe in ("GET", "HEAD", "OPTIONS"):
        assert sign_in.authenticate_cookie(scope(safe, cookie)) is not None
    with pytest.raises(Forbidden):
        sign_in.authenticate_cookie(scope(method, cookie))
    assert sign_in.authenticate_cookie(scope(method, cookie, (b"sec-fetch-site", b"same-origin"))) is not None


def test_without_a_living_session_nobody_is_signed_in() -> None:
    sign_in = SignIn(HandClock())
    assert sign_in.authenticate_cookie(scope("GET")) is None
    assert sign_in.authenticate_cookie(scope("POST", (b"cookie", b"fleet_session=x"))) is None
