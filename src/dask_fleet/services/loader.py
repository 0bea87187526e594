"""The loader process: imports users' modules so that the server need not, and hands over what it found.

``python -m dask_fleet.services.loader TARGET…`` writes one line of JSON: a manifest, or ``{"code",
"message"}``. What the modules print goes to standard error.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from dask_fleet.config.secret import without_secrets
from dask_fleet.model.errors import ServiceDefinitionError, ServiceImportError, SetupError, error_classes
from dask_fleet.model.manifest import Manifest, ServiceManifest

LOAD_TIMEOUT_S = 60.0
MAX_MANIFEST_BYTES = 64 << 20
MAX_OUTPUT_BYTES = 1 << 20
"""Of what modules print while they are imported: as much is shown, the rest is dropped."""
_MAX_MESSAGE_CHARS = 4_000
_OUTPUT_TIMEOUT_S = 1.0
_PIECE_BYTES = 1 << 16
_MODULE = "dask_fleet.services.loader"


def describe(targets: Sequence[str]) -> Manifest:
    """Import `targets` into this process and describe their services.

    Raises
    ------
    SetupError
        If one cannot be imported or described, or two services share a name.
    """
    from dask_fleet.services.loading import load_target, service_doc, service_version

    services: dict[str, ServiceManifest] = {}
    for target in dict.fromkeys(targets):
        for service in load_target(target):
            if (other := services.get(service.name)) is not None:
                raise ServiceDefinitionError(
                    f"both {other.target} and {target} define a service {service.name!r}: give one of them another name"
                )
            services[service.name] = ServiceManifest(
                name=service.name,
                doc=service_doc(service),
                version=service_version(service),
                target=target,
                endpoints=tuple(endpoint.manifest() for endpoint in service.endpoints.values()),
            )
    return Manifest(services=tuple(services.values()))


async def load_manifest(
    targets: Sequence[str], *, python: str = sys.executable, timeout_s: float = LOAD_TIMEOUT_S
) -> Manifest:
    """Have a loader process describe `targets`; the modules are not imported here.

    Parameters
    ----------
    targets
        Files or modules; none make an empty manifest.
    python
        The interpreter to run it with.
    timeout_s
        How long the imports may take.

    Raises
    ------
    SetupError
        What the loader found wrong (`ServiceImportError`, `ServiceDefinitionError`), or that it ended or
        hung.
    """
    if not targets:
        return Manifest(services=())
    process = await asyncio.create_subprocess_exec(
        python,
        "-P",  # nothing in the working folder may stand in for a module of ours
        "-m",
        _MODULE,
        *targets,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=MAX_MANIFEST_BYTES,
        env=without_secrets(os.environ),
        start_new_session=True,  # so that what a module starts while it is imported ends with the loader
    )
    assert process.stdout is not None
    assert process.stderr is not None
    relay = asyncio.create_task(_show(process.stderr), name="loader-output")
    try:
        async with asyncio.timeout(timeout_s):
            # One line, not end of file: a process that a module left behind may hold the pipe open.
            line = await process.stdout.readline()
            code = await process.wait() if not line else 0
    except ValueError:
        raise ServiceImportError(
            f"the description of {', '.join(targets)} is larger than {MAX_MANIFEST_BYTES >> 20} MiB: shorten its schemas"
        ) from None
    except TimeoutError:
        raise ServiceImportError(
            f"importing {', '.join(targets)} took more than {timeout_s:g} s: move long work out of the module's top level,"
            " into functions"
        ) from None
    finally:
        await _end(process)
        # What it printed before it ended is in the pipe; a process that escaped may hold it open.
        await asyncio.wait([relay], timeout=_OUTPUT_TIMEOUT_S)
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
        # Without this the pipes' transports would live until a process that inherited them ends.
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio offers no other way
    if not line:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise ServiceImportError(
            f"the process that imported {', '.join(targets)} ended ({how}) before it could describe them"
        )
    return _parse(line)


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(process.wait())


async def _show(output: asyncio.StreamReader) -> None:
    """Pass on what modules print, to a limit; read the rest all the same, or they would wait for ever."""
    left = MAX_OUTPUT_BYTES
    while piece := await output.read(_PIECE_BYTES):
        if left > 0:
            _print(piece[:left])
            left -= len(piece)
            if left <= 0:
                _print(f"\n[more than {MAX_OUTPUT_BYTES >> 20} MiB printed while importing: the rest is dropped]\n".encode())


def _print(data: bytes) -> None:
    with suppress(OSError, ValueError):  # nobody reads our standard error: no reason to fail
        sys.stderr.flush()
        os.write(2, data)


def _parse(line: bytes) -> Manifest:
    try:
        document = json.loads(line)  # exact for integers of any size, which msgspec's reader is not
        if isinstance(document, dict) and "code" in document:
            cls = error_classes().get(str(document["code"]), SetupError)
            raise (cls if issubclass(cls, SetupError) else SetupError)(str(document["message"])[:_MAX_MESSAGE_CHARS])
        return msgspec.convert(document, Manifest)
    except (ValueError, KeyError, RecursionError):  # also msgspec's
        raise ServiceImportError(
            "the loader's answer is no manifest: a module that is imported writes to file descriptors that are not its own"
        ) from None


def main(argv: Sequence[str]) -> int:
    """Describe the targets on a private copy of standard output; return the exit code."""
    answer = os.dup(1)
    os.dup2(2, 1)  # also what C code prints
    sys.stdout = sys.stderr
    try:
        document: dict[str, Any] = msgspec.to_builtins(describe(argv))
        code = 0
    except SetupError as exc:
        document = {"code": exc.code, "message": exc.detail}
        code = 1
    with os.fdopen(answer, "wb") as out:
        out.write(json.dumps(document, allow_nan=False).encode("utf-8") + b"\n")
    return code


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(exit_code)  # threads that a module started must not hold the answer back
