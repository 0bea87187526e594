import base64
import json
import weakref

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from dask_fleet.codecs.encode import decode, encode
from dask_fleet.codecs.png import PNGCodec, PNGImage

MAGIC = b"\x89PNG\r\n\x1a\n"


def figure() -> Figure:
    drawn = Figure(figsize=(1, 1), dpi=40)
    drawn.subplots().plot([1, 2])
    return drawn


def test_a_figure_and_its_axes_are_the_same_picture() -> None:
    one = figure()
    encoded = encode(one, max_bytes=1 << 20)
    assert encoded.media_type == "image/png"
    assert bytes(encoded.data).startswith(MAGIC)
    assert PNGCodec().encode(one.axes[0]) == encoded.data
    assert PNGCodec().encode(figure()) == encoded.data, "equal figures must be equal bytes"
    rendering = json.loads(encoded.json or b"")
    assert rendering == {"$bytes": base64.b64encode(encoded.data).decode(), "media_type": "image/png"}
    assert PNGCodec().to_json(figure(), max_bytes=1 << 20) == encoded.json


def test_the_picture_shows_itself_in_notebooks() -> None:
    found = decode("image/png", MAGIC)
    assert isinstance(found, PNGImage)
    assert found == MAGIC
    assert found._repr_png_() == MAGIC
    assert len(repr(found)) < 50


def test_figures_of_pyplot_are_closed_also_if_drawing_fails() -> None:
    mpl.use("agg")
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(figsize=(1, 1), dpi=40)
    encode(axes, max_bytes=1 << 20)
    assert plt.get_fignums() == []

    broken, axes = plt.subplots(figsize=(1, 1), dpi=40)
    axes.set_title(r"$\nosuchcommand{$")
    with pytest.raises(TypeError, match=r"Figure cannot be kept as image/png"):
        encode(broken, max_bytes=1 << 20)
    assert plt.get_fignums() == []
    gone = weakref.ref(drawn)
    assert gone() is drawn, "closed for pyplot; the author's own name still holds it"


def test_other_values_are_no_figures() -> None:
    assert not any(PNGCodec().takes(value) for value in (1, "figure", None, [figure()]))
