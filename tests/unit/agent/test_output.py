"""What attempts write: whose it is, how much of it is kept, and that it costs next to nothing."""

from __future__ import annotations

import contextvars
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from dask_fleet.agent.capture import JobStream
from dask_fleet.agent.output import STDERR, STDOUT, AttemptOutput, Recorder, current
from dask_fleet.model.logs import MAX_LOG_BYTES, LogStream, log_path, parse_log_name, whole_characters


class Bench:
    """A recorder, and a stand-in for ``sys.stdout``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.grown: list[tuple[int, int]] = []
        self.recorder = Recorder(folder, lambda output: self.grown.append((output.seq, output.attempt)))
        self.outer = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        self.stream = JobStream(STDOUT, self.outer)

    def text(self, seq: int, attempt: int = 1, stream: LogStream = LogStream.STDOUT) -> str:
        path = self.folder / log_path(seq, attempt, stream)
        return path.read_text() if path.exists() else ""

    def own(self) -> str:
        self.outer.flush()
        assert isinstance(self.outer.buffer, io.BytesIO)
        return self.outer.buffer.getvalue().decode()

    def until(self, seq: int, text: str) -> None:
        deadline = time.monotonic() + 20
        while self.text(seq) != text:
            assert time.monotonic() < deadline, self.text(seq)
            time.sleep(0.005)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    token = current.set(None)
    yield Bench(tmp_path / "logs")
    current.reset(token)


def begin(bench: Bench, seq: int) -> AttemptOutput:
    output = bench.recorder.output(seq, 1, 1)
    output.enter()
    return output


def test_nothing_written_leaves_nothing(bench: Bench) -> None:
    threads = threading.active_count()
    output = begin(bench, 1)
    bench.stream.write("")
    output.close()
    assert not bench.folder.exists()
    assert threading.active_count() == threads
    assert bench.grown == []


def test_text_is_in_its_file_soon_and_all_of_it_at_the_end(bench: Bench) -> None:
    output = begin(bench, 1)
    print("one", file=bench.stream)
    bench.until(1, "one\n")  # a killed process would leave this
    print("two", end="", file=bench.stream, flush=True)
    output.close()
    assert bench.text(1) == "one\ntwo"
    assert bench.grown[0] == (1, 1)
    assert len(bench.grown) >= 2
    print("late", file=bench.stream)
    assert bench.text(1) == "one\ntwo"
    assert bench.own() == "late\n"
    path = bench.folder / log_path(1, 1, LogStream.STDOUT)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_what_is_of_no_attempt_goes_where_it_went(bench: Bench) -> None:
    print("import time", file=bench.stream)
    bench.stream.buffer.write(b"raw\n")
    bench.stream.flush()
    assert bench.own() == "import time\nraw\n"


def test_each_context_has_its_own_attempt(bench: Bench) -> None:
    contexts = {seq: contextvars.copy_context() for seq in (1, 2)}
    outputs = {seq: context.run(begin, bench, seq) for seq, context in contexts.items()}
    for n in range(3):
        for seq, context in contexts.items():
            context.run(print, seq, n, file=bench.stream)
    for output in outputs.values():
        output.close()
    assert {seq: bench.text(seq) for seq in (1, 2)} == {seq: "".join(f"{seq} {n}\n" for n in range(3)) for seq in (1, 2)}


def test_it_is_a_text_stream_as_programs_want_one(bench: Bench) -> None:
    output = begin(bench, 1)
    stream = bench.stream
    assert stream.writelines(["a\n", "b\n"]) is None
    assert stream.write("ä😀\udc80") == 3
    assert stream.buffer.write(b"\xff") == 1
    assert (stream.encoding, stream.isatty(), stream.writable(), stream.readable()) == ("utf-8", False, True, False)
    assert (stream.name, stream.buffer.name, stream.closed) == ("<stdout>", "<stdout>", False)
    stream.reconfigure(line_buffering=True, encoding="latin-1")
    stream.close()
    with pytest.raises(TypeError, match="must be str, not bytes"):
        stream.write(b"bytes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be str, not NoneType"):
        stream.write(None)  # type: ignore[arg-type]
    with pytest.raises(io.UnsupportedOperation):
        stream.read()
    output.close()
    data = (bench.folder / log_path(1, 1, LogStream.STDOUT)).read_bytes()
    assert data == "a\nb\nä😀".encode() + b"\\udc80\xff"


def test_the_descriptor_is_the_processs_own(tmp_path: Path) -> None:
    with (tmp_path / "own").open("w") as own:
        stream = JobStream(STDERR, own)
        assert stream.fileno() == own.fileno()
        assert stream.buffer.fileno() == own.fileno()


def test_progress_bars_draw_into_a_log(bench: Bench) -> None:
    output = begin(bench, 1)
    with Progress(console=Console(file=bench.stream, width=80)) as progress:
        progress.advance(progress.add_task("steps", total=1))
    for n in range(3):  # as tqdm does
        bench.stream.write(f"\r{n}/3")
        bench.stream.flush()
    output.close()
    assert "steps" in bench.text(1)
    assert "100%" in bench.text(1)
    assert (bench.folder / log_path(1, 1, LogStream.STDOUT)).read_bytes().endswith(b"\r0/3\r1/3\r2/3")


@pytest.mark.parametrize("piece", ["x", "äöü\n" * 100, "😀" * 1000, "z" * (3 * MAX_LOG_BYTES)], ids=len)
def test_a_mebibyte_is_kept(bench: Bench, piece: str) -> None:
    output = begin(bench, 1)
    times = 2 * MAX_LOG_BYTES // len(piece.encode()) + 1
    for _ in range(times):
        bench.stream.write(piece)
    output.close()
    data = bench.text(1)
    assert MAX_LOG_BYTES - 200 < len(data.encode()) <= MAX_LOG_BYTES
    kept, _, note = data.rpartition("[")
    whole = piece * times
    if not whole.startswith(kept):  # it was cut within a line: that got an end
        kept = kept.removesuffix("\n")
    assert whole.startswith(kept)
    dropped = len(whole.encode()) - len(kept.encode())
    assert note == f"dask-fleet: only the first MiB of a stream is kept; {dropped} bytes were dropped]\n"


def test_a_disk_that_refuses_fails_no_job(bench: Bench) -> None:
    bench.folder.parent.joinpath("logs").write_text("a file where the folder should be")
    output = begin(bench, 1)
    bench.stream.write("lost\n")
    output.close()
    assert bench.folder.is_file()


def test_a_finalizer_that_prints_while_we_write_does_not_hang(bench: Bench) -> None:
    class Loud:
        def __del__(self) -> None:
            print("gone", file=bench.stream)

    output = begin(bench, 1)
    for _ in range(20_000):
        bench.stream.write(f"{id(Loud())}\n")
    output.close()
    assert bench.text(1).count("gone\n") == 20_000


def test_many_threads_lose_nothing(bench: Bench) -> None:
    output = begin(bench, 1)

    def write(name: str) -> None:
        output.enter()
        for n in range(5_000):
            bench.stream.write(f"{name}-{n}\n")

    threads = [threading.Thread(target=write, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    output.close()
    assert sorted(bench.text(1).split()) == sorted(f"{name}-{n}" for name in range(4) for n in range(5_000))


def run_script(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run what changes a whole process in one of its own."""
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def test_a_forked_child_writes_nothing_of_its_parents(bench: Bench, tmp_path: Path) -> None:
    script = """
import contextvars, os, sys, threading
from pathlib import Path
from dask_fleet.agent import capture
from dask_fleet.agent.output import Recorder

recorder = Recorder(Path(sys.argv[1]), lambda output: None)
capture.install()
output = recorder.output(1, 1, 1)
output.enter()
print("parent first")
pid = os.fork()
if pid == 0:
    print("child", flush=True)
    print("child error", file=sys.stderr, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print("parent second")
output.close()
sys.stdout.flush()
"""
    done = run_script(script, tmp_path)
    assert (tmp_path / log_path(1, 1, LogStream.STDOUT)).read_text() == "parent first\nparent second\n"
    assert (done.stdout, done.stderr) == ("child\n", "child error\n")


def test_logging_goes_to_the_job_and_the_users_setting_up_still_works(tmp_path: Path) -> None:
    script = """
import logging, sys
from pathlib import Path
from dask_fleet.agent import capture
from dask_fleet.agent.output import Recorder
from dask_fleet.observability import logs

logs.configure()
recorder = Recorder(Path(sys.argv[1]), lambda output: None)
capture.install()
logging.getLogger("nobody").info("info of nobody")
logging.getLogger("nobody").warning("warning of nobody")
output = recorder.output(1, 1, 1)
output.enter()
log = logging.getLogger("mine")
log.info("info %d", 1)
log.debug("debug 1")
log.setLevel("DEBUG")
log.debug("debug 2")
log.info("%d", "no number")
logging.getLogger("dask_fleet.agent").warning("of the platform")
output.close()
log.warning("after the end")
output = recorder.output(2, 1, 1)
output.enter()
logging.basicConfig(level="INFO", format="user: %(message)s", force=True)
log.info("configured")
output.close()
"""
    done = run_script(script, tmp_path)
    logged = (tmp_path / log_path(1, 1, LogStream.LOG)).read_text()
    assert [line.split(" ", 1)[1] for line in logged.splitlines()] == ["INFO    mine: info 1", "DEBUG   mine: debug 2"]
    assert "TypeError" in (tmp_path / log_path(1, 1, LogStream.STDERR)).read_text()  # what logging says of a bad record
    own = [line for line in done.stderr.splitlines() if line]
    assert [line.split(" ", 1)[1].strip() for line in own] == [
        "WARNING nobody: warning of nobody",
        "WARNING dask_fleet.agent: of the platform",
        "WARNING mine: after the end",
    ]
    assert (tmp_path / log_path(2, 1, LogStream.STDERR)).read_text() == "user: configured\n"


def test_printing_costs_little_more_than_into_a_file(bench: Bench, tmp_path: Path) -> None:
    """Usually half a microsecond a line, of this thread's own time; some of many tries find a busy machine's cores free."""

    def per_print(file: object) -> float:
        begun = time.thread_time()
        for n in range(10_000):
            print(n, file=file)  # type: ignore[call-overload]
        return (time.thread_time() - begun) / 10_000

    found: list[float] = []
    while len(found) < 50 and (not found or min(found) >= 3e-6):
        with (tmp_path / "plain").open("w") as plain:
            base = per_print(plain)
        output = begin(bench, len(found) + 1)
        found.append(per_print(bench.stream) - base)
        output.close()
    assert min(found) < 3e-6, found


def test_names_of_files() -> None:
    assert log_path(0x1234, 7, LogStream.STDERR) == "34/4660-7.stderr"
    assert parse_log_name("4660-7.stderr") == (0x1234, 7, LogStream.STDERR)
    for name in ("4660-7.core", "4660.stderr", "../1-1.log", "1-1.log\n", "1-1.log.new", "٣-1.log"):
        assert parse_log_name(name) is None, name


@pytest.mark.parametrize("text", ["", "a", "ä", "€", "😀", "aä", "€😀"])
def test_characters_are_not_cut(text: str) -> None:
    data = text.encode()
    assert whole_characters(data) == len(data)
    for cut in range(len(data)):
        kept = whole_characters(data[:cut])
        assert text.startswith(data[:kept].decode())
        assert kept == cut or not _decodes(data[:cut])
    assert whole_characters(b"\xff") in {0, 1}
    assert whole_characters(b"\x80" * 5) == 5


def _decodes(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
