# ruff: noqa: E501 - lists of what is sent, many to a line
"""Hostile requests, made from a seed: broken HTTP, JSON, parameters, headers, ids, methods, tokens.

Each connection carries a few requests that are well-formed as HTTP, and ends with one that is not or that asks to close.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

HOST = "127.0.0.1"
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "SEARCH", "PURGE"]
_PATHS = [
    "/", "/docs", "/openapi.json", "/healthz", "/readyz", "/signin", "/v1/signin", "/v1/jobs", "/v1/status", "/v1/services",
    "/v1/tokens", "/v1/agents", "/v1/agents/spool/x", "/v1/tiny/double", "/v1/tiny/double:batch", "/v1/tiny/none", "/v1/none/x",
    "/v1/jobs/{id}", "/v1/jobs/{id}/result", "/v1/jobs/{id}/events", "/v1/jobs/{id}/attempts", "/v1/jobs/{id}/logs",
    "/v1/clusters/{id}", "/v1/clusters/{id}/logs", "/v1/clusters/{id}/certificate", "/v1/clusters?limit=NaN",
    "/v1/jobs/{id}:retry", "/v1/jobs/{id}:cancel", "/../etc/passwd", "/v1/../../x", "/v1//jobs", "/.%2e/x", "/%00", "/static/x",
]  # fmt: skip
_IDS = [
    "x", "0", "-1", "%00", "%0d%0aX:y", "..%2f..%2fetc%2fpasswd", "'; drop table jobs; --", "a" * 3_000, "%ff%fe", "%F0%9F%92%A9",
    "job_" + "0" * 26, "{id}", "*", "null", "1e999", "${jndi:x}", "<script>", "%25%32%35",
]  # fmt: skip
_TEXTS = ["", "\x7f", "\xff\xfe", "a" * 5_000, "0" * 30, "-1", "1e999", "NaN", "true", "=", ",", ";", "\t", '"', "é", "{}", "*/*;q=x"]
_HEADERS = [
    "Accept", "Accept-Encoding", "Authorization", "Cookie", "Content-Type", "Content-Encoding", "Prefer", "Idempotency-Key",
    "Fleet-Priority", "Fleet-Tags", "Fleet-Deadline", "Range", "If-Range", "If-Match", "If-None-Match", "Last-Event-ID", "Origin",
    "Sec-Fetch-Site", "X-Forwarded-For", "X-Forwarded-Host", "X-HTTP-Method-Override", "Referer", "Expect", "TE", "Via",
]  # fmt: skip
_QUERIES = [
    "", "?", "?wait=99999999", "?wait=-1", "?limit=0", "?limit=1e9", "?cursor=%00", "?after=-1", "?%ff", "?=", "?&&&", "?a=b&a=c",
    "?status=x", "?tag=%F0", "?user=" + "x" * 2_000, "?" + "&".join(f"a{n}=b" for n in range(200)), "?code=x", "?refresh=maybe",
]  # fmt: skip
_BODIES = [
    b"", b"{", b"[", b"]", b"null", b"1", b'"n"', b"{}", b'{"n":null}', b'{"n":"5"}', b'{"n":1.5}', b'{"n":true}', b'{"n":[1]}',
    b'{"n":1,"n":2}', b'{"n":1,"m":2}', b'{"N":1}', b'{"n":NaN}', b'{"n":Infinity}', b'{"n":1e400}', b'{"n":' + b"9" * 5_000 + b"}",
    b"[" * 5_000, b"[" * 70 + b"]" * 70, b'{"a":' * 80, b'{"n":"\\ud800"}', b'{"n":"\\u0000"}', b"\xef\xbb\xbf{}", b'{"n":1}\0',
    b"\xff\xfe{\0}\0", b'{"n":01}', b'{"n":1,}', b"{'n':1}", b'{"n":1}{"n":2}', b"\0" * 500, b"a=b&c=d", b'{"n":"' + b"x" * 20_000 + b'"}',
    b'{"__proto__":{"n":1}}', b'{"n":{"$ref":"#"}}', b"\x80\x04\x95.", b"<?xml version='1.0'?><!DOCTYPE a>", b"[[],[],{}]",
    b'{"n":1}\n{"n":x}\n', b'[{"n":1},{"n":"x"}]', b'{"n":' + b"1" * 400 + b"}", b'{"\\u006e":-1e-400}', b" " * 2_000, b"/*x*/{}",
]  # fmt: skip
_TYPES = [
    "application/json", "application/json; charset=utf-16", "text/plain", "application/x-ndjson", "multipart/form-data; boundary=x",
    "application/json, text/html", "", "a" * 300, "application/octet-stream", "application/x-www-form-urlencoded",
]  # fmt: skip
_BROKEN: list[bytes] = [
    b"GET /\r\n\r\n", b"\0\0\0\0\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", b"GET http://evil/ HTTP/1.1\r\nHost: x\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nA\0: b\r\n\r\n", b"EHLO x\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: " + b"a" * 60_000 + b"\r\n\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: \x01\r\n\r\n",
]  # fmt: skip


@dataclass(frozen=True)
class Volley:
    """What is sent on one connection."""

    data: bytes
    requests: int


class Hostility:
    """An endless supply, the same for the same seed."""

    def __init__(self, seed: int, token: str) -> None:
        self._random = random.Random(seed)
        self._token = token
        self._kinds: list[Callable[[], bytes]] = [self._body, self._body, self._page, self._page, self._header, self._token_, self._host]

    def volley(self, size: int) -> Volley:
        """Return some requests, of which the last one ends the connection."""
        count = self._random.randint(1, size)
        parts = [self._random.choice(self._kinds)() for _ in range(count - 1)]
        parts.append(self._last())
        return Volley(b"".join(parts), count)

    # ------------------------------------------------------------------ kinds

    def _last(self) -> bytes:
        kind = self._random.random()
        if kind < 0.35:
            return self._random.choice(_BROKEN)
        if kind < 0.5:
            return self._mutated()
        if kind < 0.6:
            return self._request("GET", self._path(), ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                                                       f"Sec-WebSocket-Key: {self._any(_TEXTS)}"], close=False)  # fmt: skip
        return self._request(self._any(_METHODS), self._path(), [self._header_line()], close=True)

    def _mutated(self) -> bytes:
        """Return a sound request with some bytes changed, ended by something that is none."""
        data = bytearray(self._request("POST", "/v1/tiny/double", ["Content-Type: application/json"], body=b'{"n":"x"}'))
        for _ in range(self._random.randint(1, 6)):
            data[self._random.randrange(len(data))] = self._random.randrange(256)
        return bytes(data) + b"\r\n\r\n\0\r\n\r\n"

    def _body(self) -> bytes:
        path = self._any(["/v1/tiny/double", "/v1/tiny/double:batch", "/v1/tokens", "/v1/tiny/once"])
        kind = "application/json" if self._random.random() < 0.7 else self._any(_TYPES)
        body = self._random.choice(_BODIES)
        if path == "/v1/tiny/once" and body == b'{"n":1}':
            body = b"{"
        return self._request("POST", path, [f"Content-Type: {kind}"], body=body)

    def _page(self) -> bytes:
        return self._request(self._any(_METHODS), self._path(), [])

    def _header(self) -> bytes:
        lines = [self._header_line() for _ in range(self._random.randint(1, 8))]
        return self._request(self._any(["GET", "DELETE", "HEAD"]), self._path(), lines)

    def _token_(self) -> bytes:
        wrong = self._any(["", "Bearer", "Bearer x", "Basic Og==", "Bearer " + "a" * 4_000, f"bearer  {self._token}x", self._token, "\xff"])
        return self._request("GET", self._path(), [f"Authorization: {wrong}"], token=False)

    def _host(self) -> bytes:
        host = self._any(["evil.example", "127.0.0.1.evil.example", "", "[::1", "a" * 500, "localhost:99999999", "\xff", "localhost/x"])
        return f"GET {self._path()} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")

    # ------------------------------------------------------------------ parts

    def _any(self, of: list[str]) -> str:
        return self._random.choice(of)

    def _path(self) -> str:
        path = self._any(_PATHS).replace("{id}", self._any(_IDS).replace(" ", "%20")) + self._any(_QUERIES)
        return path.replace("<", "%3C").replace(">", "%3E")

    def _header_line(self) -> str:
        name = self._any(_HEADERS)
        if name == "Expect":
            return "Expect: 100-continue"
        return f"{name}: {self._any(_TEXTS).replace(chr(127), '')}"

    def _request(
        self, method: str, path: str, lines: list[str], *, body: bytes = b"", token: bool = True, close: bool = False
    ) -> bytes:
        if token and not any(line.startswith("Authorization") for line in lines):
            lines = [*lines, f"Authorization: Bearer {self._token}"]
        if body or method in {"POST", "PUT", "PATCH"}:
            lines = [*lines, f"Content-Length: {len(body)}"]
        if close:
            lines = [*lines, "Connection: close"]
        return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {HOST}", *lines, "", ""]).encode("latin-1") + body
