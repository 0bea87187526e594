"""Names of jobs."""

from __future__ import annotations

import base64
import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from dask_fleet.model.ids import JOB_ID_PATTERN, job_id, random_id

FIELDS = st.tuples(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.binary(max_size=9))


def name(fields: tuple[str, str, str, str, bytes], nonce: str = "") -> str:
    tenant, service, endpoint, version, params = fields
    return job_id(tenant=tenant, service=service, endpoint=endpoint, version=version, params=params, nonce=nonce)


@given(FIELDS, st.text(max_size=5))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_name_is_the_base32_of_a_hash_over_length_prefixed_fields(
    fields: tuple[str, str, str, str, bytes], nonce: str
) -> None:
    digest = hashlib.sha256()
    for field in (*fields, nonce):
        data = field if isinstance(field, bytes) else field.encode()
        digest.update(b"%d:%b" % (len(data), data))
    made = name(fields, nonce)
    assert made == base64.b32encode(digest.digest()[:20]).decode().lower()
    assert JOB_ID_PATTERN.match(made)


def test_no_two_lists_of_fields_run_together() -> None:
    assert name(("a", "bc", "", "", b"")) != name(("ab", "c", "", "", b""))
    assert name(("a", "b", "1:c", "", b"")) != name(("a", "b1:", "c", "", b""))


def test_a_nonce_makes_another_job() -> None:
    assert name(("t", "s", "e", "v", b"{}")) != name(("t", "s", "e", "v", b"{}"), "1")


def test_random_ids_begin_with_their_name_and_differ() -> None:
    made = {random_id("local") for _ in range(100)}
    assert len(made) == 100
    assert all(each.rpartition("-")[0] == "local" for each in made)
