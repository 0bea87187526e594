"""The receiving side of a socket pair: a stream of bytes cut into frames, each with its length in front."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

F = TypeVar("F")

RECEIVE_BYTES = 1 << 16
"""How much to receive at once: less than the size (128 KiB) from which malloc asks the kernel for each buffer anew, which is
three system calls a frame.
"""
_PREFIX_BYTES = 4


class FrameBuffer(Generic[F]):
    """Cuts a stream of bytes into frames, the counterpart of `protocol.frames.encode_prefixed`."""

    def __init__(self, decode: Callable[[bytearray], F]) -> None:
        self._decode = decode
        self._received = bytearray()

    def take(self, data: bytes) -> Iterator[F]:
        """Yield the frames that `data` completes. If the caller stops in between, the rest comes with the next call.

        Raises
        ------
        msgspec.MsgspecError
            At a frame that is none; what came before it has been given out.
        """
        received = self._received
        received += data
        while len(received) >= _PREFIX_BYTES:
            end = _PREFIX_BYTES + int.from_bytes(received[:_PREFIX_BYTES], "big")
            if end > len(received):
                return
            body = received[_PREFIX_BYTES:end]
            del received[:end]
            yield self._decode(body)
