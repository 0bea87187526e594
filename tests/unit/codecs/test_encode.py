import base64
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from dask_fleet.codecs.encode import (
    ResultNotSerializable,
    ResultTooLarge,
    codec_for,
    codecs,
    decode,
    encode,
)
from dask_fleet.plugins.codec import Codec

MANY = 1 << 30


@pytest.mark.parametrize(
    ("value", "media_type"),
    [
        (None, "application/json"),
        (True, "application/json"),
        (5, "application/json"),
        (1.5, "application/json"),
        ([1], "application/json"),
        ((1,), "application/json"),
        ({"a": 1}, "application/json"),
        ("text", "text/plain; charset=utf-8"),
        (b"bytes", "application/octet-stream"),
        (bytearray(b"bytes"), "application/octet-stream"),
        (pd.DataFrame({"a": [1]}), "application/vnd.apache.arrow.stream"),
        (np.arange(3), "application/x-npy"),
        (np.float64(1.5), "application/json"),
    ],
)
def test_the_codec_of_each_kind(value: object, media_type: str) -> None:
    encoded = encode(value, max_bytes=MANY)
    assert encoded.media_type == media_type
    assert (encoded.json is None) == (media_type == "application/json")


def test_renderings_beside_the_stored_form() -> None:
    assert encode('say "é"', max_bytes=MANY).json == '"say \\"é\\""'.encode()
    rendering = json.loads(encode(b"\x00\xff", max_bytes=MANY).json or b"")
    assert rendering == {"$bytes": base64.b64encode(b"\x00\xff").decode(), "media_type": "application/octet-stream"}
    assert json.loads(encode(np.array([[1, 2], [3, 4]]), max_bytes=MANY).json or b"") == [[1, 2], [3, 4]]


@pytest.mark.parametrize("value", ["x" * 1000, b"x" * 1000, np.arange(1000), pd.DataFrame({"a": range(1000)}), '"' * 600])
def test_no_rendering_above_its_limit(value: object) -> None:
    assert encode(value, max_bytes=MANY, json_max=1000).json is None
    assert encode(value, max_bytes=MANY, json_max=100_000).json is not None


def test_a_result_above_its_limit_is_refused_with_both_sizes() -> None:
    with pytest.raises(ResultTooLarge, match=r"1,002 bytes as application/json.*max_result of 1,001"):
        encode(["x" * 998], max_bytes=1001)
    assert encode(["x" * 998], max_bytes=1002).data


def test_other_errors_of_a_codec_become_one_that_names_the_type() -> None:
    class Odd(dict):  # type: ignore[type-arg]
        def items(self):  # type: ignore[no-untyped-def]
            raise ValueError("no items today")

    with pytest.raises(ResultNotSerializable, match=r"Odd cannot be kept as application/json: no items today"):
        encode(Odd(), max_bytes=MANY)


def test_decode_goes_by_media_type_alone() -> None:
    assert decode("Text/Plain", "é".encode()) == "é"
    assert decode("application/json; charset=utf-8", b"[1]") == [1]
    with pytest.raises(ValueError, match=r"no installed codec reads 'image/gif'.*application/json"):
        decode("image/gif", b"")


def test_every_entry_point_loads_and_json_is_asked_last() -> None:
    assert {codec.name for codec in codecs()} >= {"json", "arrow", "npy", "png", "text", "bytes"}
    assert codecs()[-1].name == "json"
    for codec in codecs():
        assert isinstance(codec, Codec)
        assert codec_for(codec.media_type) is codec


def test_nothing_heavy_is_imported_for_plain_values() -> None:
    code = (
        "import sys; from dask_fleet.codecs.encode import codecs, decode, encode\n"
        "class Own: pass\n"
        "codecs(); encode({'a': 1}, max_bytes=99); decode('application/json', b'1')\n"
        "try: encode(Own(), max_bytes=99)\n"
        "except TypeError: pass\n"
        "print([name for name in ('numpy', 'pandas', 'pyarrow', 'matplotlib', 'dask', 'pickle5') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
