import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dask_fleet.codecs.encode import decode, encode
from dask_fleet.codecs.json_text import read_json
from dask_fleet.codecs.render import main, render

MANY = 1 << 30

VALUES = {
    "json": {"a": [1, 2]},
    "text": 'é"\n\U0001f600' * 50_000,
    "bytes": bytes(range(256)) * 2_000,
    "table": pd.DataFrame({"a": range(150_000), "b": ["x"] * 150_000}),
    "empty table": pd.DataFrame({"a": pd.Series([], dtype="int64")}),
    "long array": np.arange(100_000.0),
    "wide array": np.arange(60_000).reshape(2, 30_000),
    "deep array": np.arange(120_000).reshape(3, 20, 2000),
    "scalar": np.array(5),
    "empty array": np.zeros((3, 0)),
}


@pytest.mark.parametrize("name", VALUES)
def test_the_rendering_in_pieces_is_the_rendering_in_one(name: str, tmp_path: Path) -> None:
    value = VALUES[name]
    encoded = encode(value, max_bytes=MANY, json_max=MANY)
    file = tmp_path / "stored"
    file.write_bytes(encoded.data)
    pieces = list(render(encoded.media_type, file))
    assert b"".join(pieces) == (encoded.json if encoded.json is not None else encoded.data)
    assert max(map(len, pieces), default=0) < 1 << 20


def test_large_integers_pass(tmp_path: Path) -> None:
    encoded = encode([7**10_000], max_bytes=MANY)
    file = tmp_path / "stored"
    file.write_bytes(encoded.data)
    assert read_json(b"".join(render(encoded.media_type, file))) == [7**10_000]


def test_the_process_reads_standard_input() -> None:
    encoded = encode(VALUES["table"], max_bytes=MANY, json_max=1)
    assert encoded.json is None
    command = [sys.executable, "-m", "dask_fleet.codecs.render", encoded.media_type]
    done = subprocess.run(command, input=encoded.data, capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout) == decode(encoded.media_type, encoded.data).to_dict("records")
    assert done.stderr == b""


@pytest.mark.parametrize("media_type", ["application/vnd.apache.arrow.stream", "application/x-npy", "image/gif"])
def test_damaged_bytes_are_one_line_and_exit_code_1(
    media_type: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)  # not for this process
    file = tmp_path / "stored"
    file.write_bytes(b"garbage")
    assert main([media_type, str(file)]) == 1
    error = capsysbinary.readouterr().err.decode()
    assert error.startswith(f"cannot render {media_type}:")
    assert error.count("\n") == 1


def test_pickles_are_not_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    file = tmp_path / "stored"
    file.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"pickle|Python objects"):
        list(render("application/x-npy", file))


def test_bytes_of_any_length_are_proper_base64(tmp_path: Path) -> None:
    for length in (0, 1, 2, 3, (3 << 16) + 1):
        file = tmp_path / "stored"
        file.write_bytes(b"\xff" * length)
        found = json.loads(b"".join(render("application/octet-stream", file)))
        assert base64.b64decode(found["$bytes"], validate=True) == b"\xff" * length
