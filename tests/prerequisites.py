"""What a machine may lack."""

from __future__ import annotations

from typing import NoReturn

import pytest
from tests.promises.form import FULL


def lacking(what: str) -> NoReturn:
    """Skip the test; in the full form of the promises fail it: what was not tried is not proven."""
    if FULL:
        pytest.fail(f"{what}: this promise cannot be proven here", pytrace=False)
    pytest.skip(what)
