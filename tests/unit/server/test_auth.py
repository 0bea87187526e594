"""Tokens: the right one is let in, and whatever else comes is refused in the same words."""

from __future__ import annotations

import base64
import random

import pytest
from starlette.requests import Request
from tests.unit.server.rig import HandClock

from dask_fleet.model.errors import Forbidden, Unauthorized
from dask_fleet.model.jobs import TokenRecord
from dask_fleet.server.auth import (
    Principal,
    Scope,
    TokenAuthenticator,
    digest,
    effective_scopes,
    new_token,
    principal_of,
    require,
)
from dask_fleet.server.problems import problem_bytes


def record(token: str, token_id: str = "t1", **rest: int) -> TokenRecord:
    return TokenRecord(
        token_id=token_id,
        digest=digest(token),
        user="ann",
        tenant="default",
        scopes=frozenset({"read"}),
        created_us=0,
        **rest,
    )


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def test_a_known_token_says_who_is_asking(clock: HandClock) -> None:
    token = new_token()
    tokens = TokenAuthenticator(clock)
    tokens.load([record(token)])
    found = tokens.authenticate_bearer(b"Bearer " + token.encode())
    assert found == Principal(user="ann", tenant="default", scopes=frozenset({"read"}), token_id="t1")
    assert tokens.authenticate_bearer(b"bEaReR " + token.encode()) is found  # schemes know no case


def test_new_tokens_have_their_form_and_256_bits() -> None:
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    for token in made:
        assert token.startswith("fleet_")
        assert len(base64.urlsafe_b64decode(token.removeprefix("fleet_") + "=")) == 32


def mutants(token: str, count: int) -> list[bytes]:
    """Return values of the header that are not quite the right one."""
    chance = random.Random(26)
    right = b"Bearer " + token.encode()
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=")
    found = {
        b"",
        b"Bearer",
        b"Bearer ",
        token.encode(),
        b"Basic " + base64.b64encode(b"ann:" + token.encode()),
        b"Bearer  " + token.encode(),
        b"Bearer " + token.encode() + b" ",
        b"Bearer " + token.encode() + b"\0",
        b"Bearer " + none + b"." + none + b".",
        b"Bearer " + new_token().encode(),
        b"Bearer " + token.upper().encode(),
        b"Bearer " + digest(token).hex().encode(),
        b"Bearer fleet_" + b"A" * 1_000_000,
    }
    while len(found) < count:
        value = bytearray(right)
        kind = chance.randrange(4)
        place = chance.randrange(len(value))
        if kind == 0:
            value[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del value[place]
        elif kind == 2:
            value.insert(place, chance.randrange(256))
        else:
            value = value[: chance.randrange(len(value))]
        # The scheme alone may change its case.
        if value[:7].lower() != b"bearer " or value[7:] != right[7:]:
            found.add(bytes(value))
    return sorted(found)


def test_a_thousand_mutated_tokens_are_refused_alike(clock: HandClock) -> None:
    token, expired, revoked = new_token(), new_token(), new_token()
    tokens = TokenAuthenticator(clock)
    tokens.load([record(token), record(expired, "t2", expires_us=clock.us), record(revoked, "t3", revoked_us=clock.us - 1)])
    bodies = set()
    tried = [*mutants(token, 1000), b"Bearer " + expired.encode(), b"Bearer " + revoked.encode()]
    for value in tried:
        with pytest.raises(Unauthorized) as caught:
            tokens.authenticate_bearer(value)
        bodies.add(problem_bytes(caught.value))
    assert len(tried) >= 1000
    assert len(bodies) == 1
    assert token.encode() not in bodies.pop()


def test_expiry_and_revocation_end_a_token_to_the_microsecond(clock: HandClock) -> None:
    token = new_token()
    tokens = TokenAuthenticator(clock)
    tokens.load([record(token, expires_us=clock.us + 1)])
    assert tokens.is_valid("t1")
    tokens.authenticate_bearer(b"Bearer " + token.encode())
    clock.us += 1
    assert not tokens.is_valid("t1")
    with pytest.raises(Unauthorized):
        tokens.authenticate_bearer(b"Bearer " + token.encode())


def test_loading_replaces_what_was_known(clock: HandClock) -> None:
    old, new = new_token(), new_token()
    tokens = TokenAuthenticator(clock)
    tokens.load([record(old)])
    tokens.load([record(new, "t2")])
    with pytest.raises(Unauthorized):
        tokens.authenticate_bearer(b"Bearer " + old.encode())
    assert not tokens.is_valid("t1")
    assert tokens.is_valid("t2")


def test_scopes() -> None:
    admin = Principal(user="a", tenant="t", scopes=effective_scopes({"admin"}), token_id="x")
    for scope in (Scope.ADMIN, Scope.SUBMIT, Scope.READ):
        require(admin, scope)
    for scope in (Scope.AGENT, Scope.RUN_CODE):
        with pytest.raises(Forbidden, match=scope.value):
            require(admin, scope)
    agent = Principal(user="a", tenant="t", scopes=effective_scopes({"agent"}), token_id="x")
    with pytest.raises(Forbidden):
        require(agent, Scope.READ)


@pytest.mark.parametrize("state", [{}, {"state": {}}, {"state": {"principal": "ann"}}])
def test_a_route_reached_around_authentication_stays_closed(state: dict[str, object]) -> None:
    with pytest.raises(Unauthorized):
        principal_of(Request({"type": "http", "headers": [], **state}))
