import asyncio
import hashlib
import os
import threading
from io import BytesIO
from pathlib import Path

import pytest

from dask_fleet.model.errors import ProtocolError
from dask_fleet.results.files import FileResultStore

DIGEST = hashlib.sha256(b"data").hexdigest()


def store_in(folder: Path) -> FileResultStore:
    store = FileResultStore(folder / "results", folder / "spool")
    asyncio.run(store.open())
    return store


@pytest.mark.parametrize("name", ["../secret", "sub/secret", "..", ".hidden", "", "a b", "a\n", "ä", "x" * 201])
def test_a_spool_name_of_an_agent_is_a_plain_name(tmp_path: Path, name: str) -> None:
    store = store_in(tmp_path)
    (tmp_path / "secret").write_bytes(b"data")
    (tmp_path / "spool" / "sub").mkdir()
    (tmp_path / "spool" / "sub" / "secret").write_bytes(b"data")
    with pytest.raises(ProtocolError):
        asyncio.run(store.adopt(tmp_path / "spool" / name, digest=DIGEST, size=4))
    assert (tmp_path / "secret").read_bytes() == b"data"
    assert (tmp_path / "spool" / "sub" / "secret").exists()


def test_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    (tmp_path / "secret").write_bytes(b"data")
    with pytest.raises(ProtocolError):
        asyncio.run(store.adopt(tmp_path / "secret", digest=DIGEST, size=4))
    assert (tmp_path / "secret").exists()


def test_links_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    (tmp_path / "secret").write_bytes(b"data")
    (tmp_path / "spool" / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "spool" / "pipe")
    (tmp_path / "spool" / "folder").mkdir()
    for name in ("link", "pipe", "folder"):
        with pytest.raises(ProtocolError):
            asyncio.run(store.adopt(tmp_path / "spool" / name, digest=DIGEST, size=4))
    assert (tmp_path / "secret").read_bytes() == b"data"


def test_a_digest_names_no_path(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    (tmp_path / "spool" / "a").write_bytes(b"data")
    with pytest.raises(ProtocolError):
        asyncio.run(store.adopt(tmp_path / "spool" / "a", digest="../" * 21 + "a", size=4))


def test_results_are_their_owners(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    spooled = tmp_path / "spool" / "a"
    spooled.write_bytes(b"data")
    spooled.chmod(0o666)
    location = asyncio.run(store.adopt(spooled, digest=DIGEST, size=4))
    path = tmp_path / "results" / location
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "results").stat().st_mode & 0o777 == 0o700


def test_a_full_store_leaves_the_spool_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path)
    spooled = tmp_path / "spool" / "a"
    spooled.write_bytes(b"data")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", full)
        with pytest.raises(OSError, match="No space"):
            asyncio.run(store.adopt(spooled, digest=DIGEST, size=4))
    assert spooled.read_bytes() == b"data"
    assert asyncio.run(store.adopt(spooled, digest=DIGEST, size=4))


def test_of_many_readers_at_a_time_two_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that are read together are sent together, and whoever asks for something else waits for all of them."""
    store = store_in(tmp_path)
    begun, gate = threading.Semaphore(0), threading.Event()

    class Gated(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            begun.release()
            assert gate.wait(20)
            return super().read(size)

    monkeypatch.setattr(store, "_open_at", lambda _location, _start: Gated(b"data"))

    async def read() -> bytes:
        return b"".join([piece async for piece in store.read("anywhere", stop=4)])

    async def main() -> None:
        readers = [asyncio.create_task(read()) for _ in range(5)]  # fewer than there are threads for them
        try:
            for _ in range(2):
                assert await asyncio.to_thread(begun.acquire, timeout=20)
            # All files are open: a third one would be in its thread soon, if it were let.
            assert not await asyncio.to_thread(begun.acquire, timeout=0.2)
        finally:
            gate.set()
        assert await asyncio.gather(*readers) == [b"data"] * 5

    asyncio.run(main())
