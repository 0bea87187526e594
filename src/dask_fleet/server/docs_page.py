"""``/docs``: the API for people, made from the manifest. One page of our own: no other host is asked for anything."""

from __future__ import annotations

import base64
import json
import secrets
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from starlette.responses import HTMLResponse

from dask_fleet.model.manifest import EndpointManifest, Manifest, ServiceManifest
from dask_fleet.server.banner import example_parameters
from dask_fleet.server.doc_text import doc_html, inline_html
from dask_fleet.server.openapi import duration
from dask_fleet.server.openapi_pages import FIXED_PATHS
from dask_fleet.server.schema_text import describe, limits

_RETURNS = {
    "table": "a table (JSON records, or an Arrow stream)",
    "array": "an array (JSON lists, or NPY)",
    "json": "JSON",
    "text": "text",
    "bytes": "bytes",
    "figure": "a figure (PNG)",
    "dask": "a Dask graph, computed on the worker",
    "any": "whatever the function gives back",
}


def docs_page(manifest: Manifest, *, version: str) -> HTMLResponse:
    """Return the reference of what this server serves, with a form to call each endpoint."""
    nonce = _nonce()
    links = "".join(
        f"<li><span>{escape(service.name)}</span><ul>"
        + "".join(
            f'<li><a href="#{_anchor(service, endpoint)}">{escape(endpoint.name)}</a></li>' for endpoint in service.endpoints
        )
        + "</ul></li>"
        for service in manifest.services
    )
    body = f"""
<nav aria-label="Contents">
  <a class="brand" href="#top">Dask Fleet</a><small>{escape(version)}</small>
  <ul>{links}<li><span>API</span><ul><li><a href="#pages">jobs and server</a></li>
  <li><a href="/openapi.json">openapi.json</a></li></ul></li></ul>
</nav>
<main id="top">
  {"".join(_service(service) for service in manifest.services)}
  {_pages()}
</main>
<script nonce="{nonce}">{_asset("docs.js")}</script>"""
    return _html("Dask Fleet: API", body, nonce=nonce, status_code=200)


def signin_page(*, status_code: int) -> HTMLResponse:
    """Return the page for a browser that is not signed in, or whose link is used up or unknown: it does not say which."""
    nonce = _nonce()
    body = """
<main class="narrow">
  <h1>Sign in</h1>
  <p>This link does not work, or you are not signed in. A sign-in link works once, within 10 minutes.</p>
  <p>The server prints one when it starts. For another, ask with the token from the server's data folder:</p>
  <pre>curl -X POST -H "Authorization: Bearer $(cat .fleet/token)" <span data-origin>http://127.0.0.1:8000</span>/v1/signin</pre>
  <p>and open the address it answers with.</p>
</main>"""
    script = "document.querySelector('[data-origin]').textContent = location.origin;"
    page = _html("Sign in", f'{body}<script nonce="{nonce}">{script}</script>', nonce=nonce, status_code=status_code)
    if status_code == 401:
        page.headers["WWW-Authenticate"] = 'Bearer realm="dask-fleet"'
    return page


def signed_in_page() -> HTMLResponse:
    """Return the page that leads on to the docs for a browser that came here from another site.

    A ``SameSite=Strict`` cookie is not sent along when such a visit is redirected; from a page of ours it is.
    """
    nonce = _nonce()
    body = '<main class="narrow"><h1>Signed in</h1><p><a href="/docs">Go on to the API</a></p></main>'
    script = "location.replace('/docs');"
    return _html("Signed in", f'{body}<script nonce="{nonce}">{script}</script>', nonce=nonce, status_code=200)


def _service(service: ServiceManifest) -> str:
    return f"""<section class="service"><h1>{escape(service.name)} <small>version {escape(service.version)}</small></h1>
{doc_html(service.doc)}
{"".join(_endpoint(service, endpoint) for endpoint in service.endpoints)}</section>"""


def _endpoint(service: ServiceManifest, endpoint: EndpointManifest) -> str:
    path = f"/v1/{service.name}/{endpoint.name}"
    summary, _, rest = endpoint.doc.strip().partition("\n")
    example = json.dumps(example_parameters(endpoint.parameters), ensure_ascii=False)
    identifier = _anchor(service, endpoint)
    return f"""<article id="{identifier}">
  <h2><b>POST</b> <code>{escape(path)}</code></h2>
  <p class="summary">{inline_html(summary)}</p>{doc_html(rest)}
  {_parameters(endpoint)}
  <p class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in _facts(endpoint))}</p>
  <form class="try" data-path="{escape(path)}">
    <label for="{identifier}-body">Parameters (JSON)</label>
    <textarea id="{identifier}-body" rows="2" spellcheck="false">{escape(example)}</textarea>
    <div class="bar"><button>Call</button><button type="button" data-cancel hidden>Cancel</button>
    <output aria-live="polite"></output></div>
    <div class="result" hidden></div>
  </form>
</article>"""


def _parameters(endpoint: EndpointManifest) -> str:
    properties: dict[str, Any] = endpoint.parameters.get("properties", {})
    if not properties:
        return "<p>It takes no parameters.</p>"
    required = set(endpoint.parameters.get("required", ()))
    definitions: dict[str, Any] = endpoint.parameters.get("$defs", {})
    rows = []
    for name in endpoint.order or tuple(properties):
        schema = properties.get(name, {})
        if name in required:
            default = "<em>required</em>"
        else:
            default = f"<code>{escape(json.dumps(schema.get('default'), ensure_ascii=False))}</code>"
        notes = "; ".join(part for part in (schema.get("description", ""), limits(schema, definitions)) if part)
        rows.append(
            f"<tr><th scope=row><code>{escape(name)}</code></th>"
            f"<td><code>{escape(describe(schema, definitions))}</code></td>"
            f"<td>{default}</td><td>{inline_html(notes)}</td></tr>"
        )
    head = "<tr><th scope=col>parameter<th scope=col>type<th scope=col>default<th scope=col>meaning</tr>"
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _facts(endpoint: EndpointManifest) -> list[str]:
    policy = endpoint.policy
    facts = [f"returns {_RETURNS.get(endpoint.returns, endpoint.returns)}", f"time-out {duration(policy.timeout_s)}"]
    facts.append(f"result kept {duration(policy.cache_s)}" if policy.pure else "not pure: each call is a job of its own")
    if policy.retries:
        facts.append(f"up to {policy.retries} retries")
    return facts


def _pages() -> str:
    rows = "".join(
        f"<tr><td><b>{method.upper()}</b></td><td><code>{escape(path)}</code></td><td>{escape(operation['summary'])}</td></tr>"
        for path, operations in FIXED_PATHS.items()
        for method, operation in operations.items()
    )
    return f"""<section id="pages"><h1>Jobs and server</h1>
<p>A call answers with a job document; <code>Prefer: wait=10</code> holds the answer until the job ends.
Programs send <code>Authorization: Bearer TOKEN</code>. Details stand in <a href="/openapi.json">openapi.json</a>.</p>
<div class="wide"><table><thead><tr><th scope=col>method<th scope=col>path<th scope=col>what for</tr></thead>
<tbody>{rows}</tbody></table></div></section>"""


def _html(title: str, body: str, *, nonce: str, status_code: int) -> HTMLResponse:
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style nonce="{nonce}">{_asset("docs.css")}</style></head><body>{body}</body></html>"""
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self';"
        " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    return HTMLResponse(page, status_code=status_code, headers=headers)


def _anchor(service: ServiceManifest, endpoint: EndpointManifest) -> str:
    return escape(f"{service.name}.{endpoint.name}")


def _nonce() -> str:
    return base64.b64encode(secrets.token_bytes(16)).decode("ascii")


@cache
def _asset(name: str) -> str:
    return (files("dask_fleet.server") / "assets" / name).read_text("utf-8")
