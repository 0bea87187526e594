"""A disk without room as the kernel tells of it in other ways than SQLite's own name for it: each is ``ledger_full``.

The kernel itself refuses: a seccomp filter answers chosen system calls of a process of its own with an error number.
"""

from __future__ import annotations

import errno
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = {
    "x86_64": {"seccomp": 317, "pwrite64": 18, "fdatasync": 75},
    "aarch64": {"seccomp": 277, "pwrite64": 68, "fdatasync": 83},
}

PROGRAM = """
import asyncio, ctypes, json, os, pathlib, struct, sys
from dask_fleet.ledger.sqlite import SQLiteLedger
from dask_fleet.model.errors import LedgerUnavailable
from dask_fleet.testing.ledger_conformance import request

path, call, length, number, seccomp = sys.argv[1], *map(int, sys.argv[2:])

def refuse() -> None:
    "Let `call` (with a third argument of `length`, unless that is 0) fail with `number`, in all threads."
    load, jump, answer = 0x20, 0x15, 0x06
    program = [(load, 0, 0, 0), (jump, 0, 3 if length else 1, call)]
    if length:
        program += [(load, 0, 0, 32), (jump, 0, 1, length)]  # the low half of the third argument
    program += [(answer, 0, 0, 0x00050000 | number), (answer, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    whole = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.syscall(seccomp, 1, 1, whole):
        print(json.dumps(["no seccomp"])); os._exit(0)

async def main() -> None:
    ledger = SQLiteLedger(pathlib.Path(path))
    await ledger.open()
    await ledger.accept(request("before"))
    refuse()
    try:
        for n in range(40):  # far more than the index of the log has room for
            await ledger.accept(request(f"after-{n}", params=b'"' + b"x" * 900_000 + b'"'))
        found = ["accepted"]
    except LedgerUnavailable as exc:
        kept = await ledger.get("before")
        found = [exc.code, str(exc), ledger.refusing, type(exc.__cause__).__name__, kept is not None]
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # nothing can be closed in order any more

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("call", "length", "number", "code"),
    [
        pytest.param("pwrite64", 0, errno.EDQUOT, "ledger_full", id="a quota is used up"),
        pytest.param("pwrite64", 0, errno.ENOSPC, "ledger_full", id="no room in the log"),
        pytest.param("pwrite64", 1, errno.ENOSPC, "ledger_full", id="no room for the index of the log"),
        pytest.param("fdatasync", 0, errno.ENOSPC, "ledger_full", id="no room is noticed at the sync"),
        pytest.param("pwrite64", 0, errno.EIO, "ledger_unavailable", id="a broken disk is not a full one"),
    ],
)
def test_what_the_kernel_says_of_room(tmp_path: Path, call: str, length: int, number: int, code: str) -> None:
    numbers = CALLS.get(platform.machine())
    if numbers is None:
        pytest.skip("the numbers of system calls are not known here")
    given = [str(tmp_path / "ledger.db"), *map(str, (numbers[call], length, number, numbers["seccomp"]))]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *given], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(ended.stdout)
    if found == ["no seccomp"]:
        pytest.skip("this host lets nobody filter system calls")
    assert found[0] == code, (found, ended.stderr)
    assert found[4], "reads go on"
    if code == "ledger_full":
        assert "nothing was accepted; free space there" in found[1]
        assert found[2] == "the ledger's disk is full"
    if length == 1 or number != errno.ENOSPC:
        assert found[3] == "IOError"
