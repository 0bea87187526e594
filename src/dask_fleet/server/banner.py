"""What ``serve`` prints when it is ready: where it is, how to sign in, and a call to paste."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from dask_fleet.model.manifest import Manifest


def banner(
    manifest: Manifest,
    *,
    url: str,
    signin_code: str,
    token_file: Path,
    fingerprint: str | None = None,
    certificate: Path | None = None,
) -> str:
    """Return the lines to print. `certificate` is one that only those who are given it will trust."""
    names = ", ".join(f"{service.name} {service.version}" for service in manifest.services)
    lines = [
        f"Dask Fleet serves {names or 'Dask clusters'}",
        f"  API      {url}",
        f"  sign in  {url}/signin?code={signin_code}   (once, within 10 minutes)",
        f"  token    {token_file}",
    ]
    if fingerprint is not None:
        lines.append(f"  key      {fingerprint}   (for --fingerprint of agents and clients elsewhere)")
    call = example_call(manifest, url=url, token_file=token_file, certificate=certificate)
    if call:
        lines += ["  try", f"    {call}"]
    lines.append("Stop with Ctrl-C: running jobs may end, queued ones wait for the next start.")
    return "\n".join(lines)


def example_call(manifest: Manifest, *, url: str, token_file: Path, certificate: Path | None = None) -> str | None:
    """Return a curl line that calls the first endpoint with plausible parameters, or ``None`` if there is none."""
    trusting = "" if certificate is None else f" --cacert {shlex.quote(str(certificate))}"
    for service in manifest.services:
        for endpoint in service.endpoints:
            body = json.dumps(example_parameters(endpoint.parameters))
            return (
                f"curl -sS{trusting} {url}/v1/{service.name}/{endpoint.name}"
                f' -H "Authorization: Bearer $(cat {shlex.quote(str(token_file))})"'
                f" -H 'Content-Type: application/json' -H 'Prefer: wait=10' -d {shlex.quote(body)}"
            )
    return None


def example_parameters(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a value for each required property: its example, first choice, bound, or the simplest of its type."""
    definitions = schema.get("$defs", {})
    required = schema.get("required", ())
    return {name: _example(schema["properties"][name], definitions) for name in required}


def _example(schema: dict[str, Any], definitions: dict[str, Any], depth: int = 0) -> Any:
    if depth > 8:
        return None
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if "$ref" in schema:
        return _example(definitions.get(schema["$ref"].rpartition("/")[2], {}), definitions, depth + 1)
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _example(schema[key][0], definitions, depth + 1)
    match schema.get("type"):
        case "integer" | "number":
            low, high = schema.get("minimum"), schema.get("maximum")
            if low is None and "exclusiveMinimum" in schema:
                low = schema["exclusiveMinimum"] + 1
            return max(low, min(10, high if high is not None else 10)) if low is not None else min(1, high or 1)
        case "string":
            return "a" * max(1, schema.get("minLength", 1))
        case "boolean":
            return True
        case "array":
            return [_example(schema.get("items", {}), definitions, depth + 1)] * schema.get("minItems", 0)
        case "object":
            return {
                name: _example(schema["properties"][name], definitions, depth + 1) for name in schema.get("required", ())
            }
        case _:
            return None
