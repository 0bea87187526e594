"""Text that must not be seen: it never prints, logs or pickles, and no user code inherits it."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any, NoReturn

SECRET_VARIABLES = ("FLEET_TOKEN", "FLEET_TOKEN_FILE")
"""Variables that hold a token or tell where one is: for this process, and for nothing that runs user code."""


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` as a process may have it that runs user code, or starts one that does."""
    return {name: value for name, value in environ.items() if name not in SECRET_VARIABLES}


class Secret:
    """A token. Shown as ``**********`` wherever it is printed; `reveal` is the one way to its text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself; call it only where it goes onto the wire."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('**********')"

    def __str__(self) -> str:
        return "**********"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret does not travel between processes")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self
