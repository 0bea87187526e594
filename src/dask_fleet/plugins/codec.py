"""The codec port: values of user code to bytes and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar


class Codec(ABC):
    """One stored form. ``encode`` runs in worker processes, ``decode`` in the SDK: never in the server.

    Modules of codecs import heavy libraries (pandas, numpy, pyarrow, matplotlib) only inside their methods, and `takes` must
    not import what is not already imported: a value of a type whose library is not in ``sys.modules`` cannot exist.
    No codec may ever use pickle.
    """

    name: ClassVar[str]
    media_type: ClassVar[str]
    order: ClassVar[int] = 100
    """Codecs are asked in ascending order; JSON comes last."""

    @abstractmethod
    def takes(self, value: Any) -> bool:
        """Whether this codec stores `value`."""

    @abstractmethod
    def encode(self, value: Any) -> bytes | memoryview:
        """Return the stored form.

        Raises
        ------
        TypeError, ValueError
            If something inside `value` cannot be stored; the message names its type or place.
        """

    @abstractmethod
    def decode(self, data: bytes | memoryview) -> Any:
        """Return the value; the inverse of `encode` up to the documented losses."""

    @abstractmethod
    def to_json(self, value: Any, *, max_bytes: int) -> bytes | None:
        """Return a JSON rendering for callers without Python, or ``None`` if it would be larger than `max_bytes` (tell that
        cheaply, before building it) or if JSON *is* the stored form.
        """
