"""The page for people: nothing of a service's text can become part of it, and it asks no other host for anything."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.unit.server.rig import MANIFEST

from dask_fleet.model.manifest import EndpointManifest, Manifest, ServiceManifest
from dask_fleet.server.doc_text import doc_html
from dask_fleet.server.docs_page import docs_page, signin_page
from dask_fleet.server.schema_text import describe, limits

HOSTILE = "</textarea></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def hostile() -> Manifest:
    parameters = {
        "type": "object",
        "properties": {
            HOSTILE: {"type": "string", "default": HOSTILE, "description": HOSTILE, "pattern": HOSTILE},
            "kind": {"enum": [HOSTILE]},
        },
        "required": ["kind"],
    }
    endpoint = EndpointManifest(
        name="f", doc=f"{HOSTILE}\n\n{HOSTILE}", parameters=parameters, order=("kind", HOSTILE), returns=HOSTILE
    )
    service = ServiceManifest(name="s", doc=HOSTILE, version=HOSTILE, target="s.py", endpoints=(endpoint,))
    return Manifest(services=(service,))


def test_texts_of_a_service_stay_text() -> None:
    page = docs_page(hostile(), version="1")
    text = bytes(page.body).decode()
    assert "<img" not in text
    assert "alert(1)</script>" not in text
    assert text.count("<script") == text.count("</script>") == 1
    assert text.count("<textarea") == text.count("</textarea>") == 1
    assert "&lt;/textarea&gt;" in text


@pytest.mark.parametrize("page", [docs_page(MANIFEST, version="1"), signin_page(status_code=401)])
def test_only_our_own_script_and_style_run(page: Any) -> None:
    text = bytes(page.body).decode()
    policy = page.headers["content-security-policy"]
    (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
    assert set(re.findall(r'<(?:script|style) nonce="([^"]*)"', text)) == {nonce}
    assert len(re.findall(r"<(?:script|style)\b", text)) == text.count(f'nonce="{nonce}"')
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"\son\w+=|\sstyle=", text)
    assert page.headers["cache-control"] == "no-store"


def test_no_other_host_is_asked() -> None:
    text = bytes(docs_page(MANIFEST, version="1").body).decode()
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", text)


def test_nonces_differ() -> None:
    assert docs_page(MANIFEST, version="1").headers != docs_page(MANIFEST, version="1").headers


def test_each_endpoint_has_its_place_and_form() -> None:
    text = bytes(docs_page(MANIFEST, version="1").body).decode()
    assert '<article id="math.f">' in text
    assert 'data-path="/v1/math/f"' in text
    assert "at least 0" in text
    assert "/v1/jobs/{job_id}/result" in text


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("", ""),
        ("One\nline.", '<p class="doc">One line.</p>'),
        ("One.\n\n\n  \nTwo.", '<p class="doc">One.</p><p class="doc">Two.</p>'),
        ("Of ``n`` and `m`.", '<p class="doc">Of <code>n</code> and <code>m</code>.</p>'),
        ("- a\n- b", '<p class="doc kept">- a\n- b</p>'),
        ("n\n    How many.", '<p class="doc kept">n\n    How many.</p>'),
        ("`<b>` & <i>", '<p class="doc"><code>&lt;b&gt;</code> &amp; &lt;i&gt;</p>'),
    ],
)
def test_docstrings_as_paragraphs(text: str, html: str) -> None:
    assert doc_html(text) == html


DEFS = {
    "Point": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}},
    "Color": {"enum": ["red", "green"]},
    "Loop": {"anyOf": [{"$ref": "#/$defs/Loop"}, {"type": "null"}]},
}


@pytest.mark.parametrize(
    ("schema", "text", "limit"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 12}, "integer", "at least 1; at most 12"),
        ({"anyOf": [{"enum": ["EWR", "JFK"]}, {"type": "null"}]}, '"EWR" | "JFK" | null', ""),
        ({"type": "array", "items": {"type": "number"}, "maxItems": 3}, "[number]", "at most 3 items"),
        ({"$ref": "#/$defs/Point"}, "Point", "{x: number, y: number}"),
        ({"$ref": "#/$defs/Color"}, '"red" | "green"', ""),
        ({"$ref": "#/$defs/Loop"}, "Loop", ""),
        ({"type": "string", "format": "date-time"}, "date-time", ""),
        ({"type": ["string", "null"]}, "string | null", ""),
        ({"const": 3}, "3", ""),
        ({"allOf": [{"type": "integer"}, {"minimum": 2}]}, "integer & any", "at least 2"),
        ({}, "any", ""),
        (True, "any", ""),
    ],
)
def test_types_in_words(schema: Any, text: str, limit: str) -> None:
    assert describe(schema, DEFS) == text
    assert limits(schema, DEFS) == limit
