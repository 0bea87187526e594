from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import dask.dataframe as dd
import matplotlib.figure
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest
from dask.delayed import Delayed
from pydantic import BaseModel
from typing_extensions import TypedDict

from dask_fleet.services.returns import describe_result

if TYPE_CHECKING:
    import polars as pl  # type: ignore[import-not-found]


class Summary(BaseModel):
    mean: float


class Row(TypedDict):
    a: int


class Odd:
    pass


def check(annotation: Any) -> tuple[str, dict[str, Any] | None]:
    def function() -> Any: ...

    function.__annotations__["return"] = annotation
    return describe_result(function)


@pytest.mark.parametrize(
    ("annotation", "word"),
    [
        (pd.DataFrame, "table"), (pd.Series, "table"), (pd.DatetimeIndex, "table"), (pa.Table, "table"),
        (pa.RecordBatch, "table"), (np.ndarray, "array"), (npt.NDArray[np.float64], "array"), (np.ma.MaskedArray, "array"),
        (matplotlib.figure.Figure, "figure"), (Delayed, "dask"), (dd.DataFrame, "dask"), (bytes, "bytes"),
        (bytearray, "bytes"), (str, "text"), (int, "json"), (dict[str, float], "json"), (Summary, "json"), (Row, "json"),
        (Summary | None, "json"), (pd.DataFrame | None, "table"), (Annotated[pd.DataFrame, "of delays"], "table"),
        (Any, "any"), (Odd, "any"), (None, "json"), (str | int, "json"), (pd.DataFrame | int, "any"),
        ("pd.DataFrame", "table"), ("pl.DataFrame", "table"), ("dd.DataFrame", "dask"), ("Nowhere", "any"),
    ],
)  # fmt: skip
def test_words(annotation: Any, word: str) -> None:
    assert check(annotation)[0] == word


def test_schemas_of_results() -> None:
    assert check(int)[1] == {"type": "integer"}
    assert check(str)[1] == {"type": "string"}
    assert check(Summary)[1]["properties"]["mean"]["type"] == "number"  # type: ignore[index]
    assert check(pd.DataFrame)[1] is None
    assert check(Odd)[1] is None


def test_no_annotation_is_any() -> None:
    def function():  # type: ignore[no-untyped-def]
        ...

    assert describe_result(function) == ("any", None)


def polars() -> pl.DataFrame: ...


def test_names_for_type_checkers_only_are_known_by_their_text() -> None:
    assert describe_result(polars) == ("table", None)
