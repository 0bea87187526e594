"""The loader process against real files: what it finds, what it says when it cannot, and that both processes agree."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from tests.alive import shown

from dask_fleet.model.errors import ServiceDefinitionError, ServiceImportError, SetupError
from dask_fleet.model.manifest import Manifest
from dask_fleet.services.loader import load_manifest

SERVICE = """
    "Small sums."
    from dask_fleet import Service

    service = Service("{name}")

    @service.endpoint(cache="30d", timeout="2m", retries=2)
    def add(a: int, b: int = 2) -> int:
        "Add two numbers."
        return a + b
"""

WORKER = """
    import json, sys
    from dask_fleet.services.loading import load_target, service_version
    versions = {}
    for target in sys.argv[1:]:
        for service in load_target(target):
            versions[service.name] = service_version(service)
    print(json.dumps(versions))
"""


def write(path: Path, text: str = SERVICE, **names: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = textwrap.dedent(text)
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", value)
    path.write_text(text)
    return str(path)


def load(*targets: str, timeout_s: float = 60) -> Manifest:
    return asyncio.run(load_manifest(targets, timeout_s=timeout_s))


def version(target: str) -> str:
    return load(target).services[0].version


def test_the_manifest_of_a_file_without_importing_it_here(tmp_path: Path) -> None:
    target = write(tmp_path / "sums.py", name="sums")
    (service,) = load(target).services
    assert (service.name, service.doc, service.target) == ("sums", "Small sums.", target)
    (endpoint,) = service.endpoints
    assert (endpoint.name, endpoint.doc, endpoint.order, endpoint.returns) == ("add", "Add two numbers.", ("a", "b"), "json")
    assert endpoint.parameters["properties"] == {"a": {"type": "integer"}, "b": {"type": "integer", "default": 2}}
    assert endpoint.result_schema == {"type": "integer"}
    assert (endpoint.policy.cache_s, endpoint.policy.timeout_s, endpoint.policy.retries) == (2_592_000, 120, 2)
    assert not [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == target]


def test_large_integers_in_a_schema_arrive_exactly(tmp_path: Path) -> None:
    text = SERVICE.replace("b: int = 2", f"b: int = {10**40}")
    manifest = load(write(tmp_path / "sums.py", text, name="sums"))
    assert manifest.services[0].endpoints[0].parameters["properties"]["b"]["default"] == 10**40


def test_loader_and_worker_come_to_the_same_version(tmp_path: Path) -> None:
    write(tmp_path / "a" / "helper.py", "X = 1")
    targets = [
        write(tmp_path / "a" / "service.py", "import helper\n" + textwrap.dedent(SERVICE), name="first"),
        write(tmp_path / "b" / "service.py", name="second"),
    ]
    found = {service.name: service.version for service in load(*targets).services}
    command = [sys.executable, "-c", textwrap.dedent(WORKER), *targets]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    assert json.loads(done.stdout) == found
    assert found["first"] != found["second"]
    assert {service.name: service.version for service in load(*reversed(targets)).services} == found


def test_modules_are_targets_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "pack" / "__init__.py", "")
    write(tmp_path / "pack" / "constants.py", "TWO = 2")
    write(tmp_path / "pack" / "api.py", "from .constants import TWO\n" + textwrap.dedent(SERVICE), name="packed")
    monkeypatch.chdir(tmp_path)
    as_module = load("pack.api").services[0]
    assert as_module.name == "packed"
    # A file inside a package is loaded as the part of the package that it is, so its relative imports work.
    assert version(str(tmp_path / "pack" / "api.py")) == as_module.version
    write(tmp_path / "pack" / "constants.py", "TWO = 3")
    assert version("pack.api") != as_module.version


def test_the_version_follows_own_files_and_nothing_else(tmp_path: Path) -> None:
    body = """
        from dask_fleet import Service
        import beside
        from inner import deep
        service = Service("own")

        @service.endpoint
        def f() -> int:
            import late
            return late.X
    """
    target = write(tmp_path / "service.py", body)
    write(tmp_path / "beside.py", "X = 1")
    write(tmp_path / "late.py", "X = 1")
    write(tmp_path / "unused.py", "X = 1")
    write(tmp_path / "inner" / "__init__.py", "import importlib; importlib.import_module('inner.by_name')")
    write(tmp_path / "inner" / "deep.py", "X = 1")
    write(tmp_path / "inner" / "by_name.py", "X = 1")
    write(tmp_path / "lib" / "site-packages" / "other.py", "X = 1")
    first = version(target)
    assert len(first) == 16
    os.utime(target)
    assert version(target) == first
    for untouched in ("unused.py", "lib/site-packages/other.py"):
        write(tmp_path / untouched, "X = 2")
        assert version(target) == first, untouched
    seen = {first}
    for own in ("beside.py", "late.py", "inner/deep.py", "inner/by_name.py"):
        write(tmp_path / own, "X = 2")
        seen.add(version(target))
    assert len(seen) == 5, "each own file counts, also one imported late or by name"
    write(target_path := tmp_path / "service.py", body.replace('"own"', '"own", version="7"'))
    declared = version(str(target_path))
    assert declared.startswith("7+")
    assert declared[2:] not in seen


def test_the_version_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a" / "service.py", name="x"), write(tmp_path / "b" / "service.py", name="x")
    assert version(one) == version(other)


def fails(error: type[SetupError], message: str, *targets: str, timeout_s: float = 60) -> str:
    with pytest.raises(error, match=message) as caught:
        load(*targets, timeout_s=timeout_s)
    assert type(caught.value) is error
    assert len(caught.value.detail) < 1_500
    assert "\n" not in caught.value.detail
    return caught.value.detail


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nosuchmodule", r"service\.py:1: ModuleNotFoundError: No module named 'nosuchmodule'; install it for "),
        ("\n\n1 / 0", r"service\.py:3: ZeroDivisionError: division by zero"),
        ("\ndef f(:", r"service\.py:2: SyntaxError: "),
        ("import json\n\njson.loads('{')", r"service\.py:3: JSONDecodeError"),
        ("import sys\nsys.exit(3)", r"service\.py:2: SystemExit: 3; .*__main__"),
        ("import helper", r"helper\.py:2: ValueError: from the helper"),
        ("raise ValueError('x' * 5000)", r"service\.py:1: ValueError: xxx"),
    ],
)
def test_an_import_error_is_one_line_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "helper.py", "\nraise ValueError('from the helper')")
    fails(ServiceImportError, message, write(tmp_path / "service.py", text))


def test_targets_that_are_not_there(tmp_path: Path) -> None:
    fails(ServiceImportError, r"there is no file .*missing\.py", str(tmp_path / "missing.py"))
    fails(ServiceImportError, r"there is no module no\.such\.module: look at its spelling", "no.such.module")


def test_services_that_say_too_little_or_too_much(tmp_path: Path) -> None:
    fails(
        ServiceDefinitionError,
        r"service\.py defines no service: write  service = Service",
        write(tmp_path / "service.py", ""),
    )
    empty = write(tmp_path / "empty.py", "from dask_fleet import Service\ns = Service('a')")
    fails(ServiceDefinitionError, r"the service 'a' has no endpoints: decorate", empty)
    untyped = write(tmp_path / "untyped.py", SERVICE.replace("a: int", "a"), name="sums")
    fails(ServiceDefinitionError, r"untyped\.py:7: add\(\), parameter 'a': it has no annotation", untyped)
    twice = [write(tmp_path / "one.py", name="same"), write(tmp_path / "two.py", name="same")]
    fails(ServiceDefinitionError, r"both .*one\.py and .*two\.py define a service 'same'", *twice)


def test_two_folders_with_a_module_of_one_name(tmp_path: Path) -> None:
    targets = []
    for folder in ("a", "b"):
        write(tmp_path / folder / "helper.py", f"X = '{folder}'")
        targets.append(write(tmp_path / folder / "service.py", "import helper\n" + textwrap.dedent(SERVICE), name=folder))
    fails(ServiceDefinitionError, r"would be one module 'helper' to Python: rename one", *targets)


def test_what_a_module_prints_does_not_disturb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = "import os\nprint('{\"code\": 1}')\nos.system('echo from a child')\nos.write(1, b'raw')\n"
    assert version(write(tmp_path / "service.py", noise + textwrap.dedent(SERVICE), name="loud"))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "from a child" in captured.err
    assert "raw" in captured.err


def wait_until_ended(pid: int) -> None:
    """Killed with the loader; at most a zombie is left until init takes note of it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        deadline = time.monotonic() + 10
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"process {pid} outlived the loader"
            time.sleep(0.01)


def test_threads_and_children_of_a_module_do_not_hold_the_answer_back(tmp_path: Path) -> None:
    text = """
        import os, subprocess, sys, threading, time
        threading.Thread(target=time.sleep, args=(600,)).start()
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        forked = os.fork()
        if forked == 0:
            time.sleep(600)
        open(PIDS, "w").write(f"{child.pid} {forked}")
    """
    pids = tmp_path / "pids"
    text = textwrap.dedent(text).replace("PIDS", repr(str(pids))) + textwrap.dedent(SERVICE)
    assert version(write(tmp_path / "service.py", text, name="busy"))
    for pid in pids.read_text().split():
        wait_until_ended(int(pid))


def test_an_import_that_never_ends_is_ended(tmp_path: Path) -> None:
    target = write(tmp_path / "service.py", "import time\ntime.sleep(600)")
    fails(ServiceImportError, r"took more than 0\.5 s: move long work", target, timeout_s=0.5)
    left = [child.pid for child in psutil.Process().children() if target.encode() in shown(child.pid, "cmdline")]
    assert not left


def test_a_loader_that_is_killed_is_told(tmp_path: Path) -> None:
    target = write(tmp_path / "service.py", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    fails(ServiceImportError, r"ended \(SIGKILL\) before it could describe them", target)
    target = write(tmp_path / "service.py", "import os\nos._exit(7)")
    fails(ServiceImportError, r"ended \(exit code 7\)", target)


HOSTILE = {
    "writes megabytes where the manifest goes": (
        """
        import os
        for fd in range(3, 20):
            try:
                for _ in range(10):
                    os.write(fd, b"x" * (1 << 20))
            except OSError:
                pass
        """,
        r"larger than 4 MiB|no manifest|took more than|ended",
    ),
    "writes something else where the manifest goes": (
        """
        import os
        for fd in range(3, 20):
            try:
                os.write(fd, b'[[[]]]\\n')
            except OSError:
                pass
        """,
        r"the loader's answer is no manifest",
    ),
    "writes a deep document where the manifest goes": (
        """
        import os
        for fd in range(3, 20):
            try:
                os.write(fd, b'[' * 20_000 + b'\\n')
            except OSError:
                pass
        """,
        r"the loader's answer is no manifest",
    ),
    "leaves a fork behind in a session of its own and dies": (
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            time.sleep(3)
            os._exit(0)
        os._exit(9)
        """,
        r"ended \(exit code 9\)|took more than",
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_module_is_told_of_in_time(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_fleet.services.loader.MAX_MANIFEST_BYTES", 4 << 20)
    text, message = HOSTILE[name]
    began = time.monotonic()
    fails(ServiceImportError, message, write(tmp_path / "service.py", textwrap.dedent(text)), timeout_s=20)
    assert time.monotonic() - began < 40


def test_a_module_that_prints_without_end_fills_no_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = "import os\nfor _ in range(64):\n    os.write(2, b'noise ' * 100_000)\n" + textwrap.dedent(SERVICE)
    assert version(write(tmp_path / "service.py", text, name="noisy"))
    shown = capfd.readouterr().err
    assert len(shown) < (1 << 20) + 1_000
    assert "the rest is dropped" in shown
