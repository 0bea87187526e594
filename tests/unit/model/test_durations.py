from datetime import timedelta

import pytest

from dask_fleet.model.durations import parse_bytes, parse_duration_s


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30d", 2_592_000),
        ("2m", 120),
        ("90s", 90),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("1w", 604_800),
        (" 2 M ", 120),
        ("1d 12h", 129_600),
        ("45", 45),
        (45, 45),
        (0.5, 0.5),
        (0, 0),
        (timedelta(minutes=1), 60),
    ],
)
def test_durations(written: object, seconds: float) -> None:
    assert parse_duration_s(written) == seconds


@pytest.mark.parametrize(
    "written",
    [
        "",
        "soon",
        "1x",
        "-1s",
        "-5",
        -5,
        True,
        None,
        "1h-",
        "1h foo",
        "nan",
        "inf",
        float("nan"),
        float("inf"),
        10**400,
        timedelta(seconds=-1),
        "m",
        "1 2",
        "1..5s",
        [1],
    ],
)
def test_what_is_no_duration_is_refused_with_the_cure(written: object) -> None:
    with pytest.raises(ValueError, match="1h30m"):
        parse_duration_s(written)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("2GiB", 2 << 30),
        ("256 KiB", 256 << 10),
        ("500MB", 500_000_000),
        ("1.5kib", 1536),
        ("17", 17),
        (17, 17),
        ("0", 0),
        ("8b", 8),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes(written: object, size: int) -> None:
    assert parse_bytes(written) == size


@pytest.mark.parametrize("written", ["", "2 elephants", "-1", -1, True, None, 1.5, "1e3", "GiB"])
def test_what_is_no_size_is_refused_with_the_cure(written: object) -> None:
    with pytest.raises(ValueError, match="2GiB"):
        parse_bytes(written)
