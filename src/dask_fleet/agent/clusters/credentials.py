"""What a member of a cluster shows and trusts. Apart from `authority`: members need not import what makes certificates."""

from __future__ import annotations

import msgspec


class Credentials(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The authority's certificate, the member's own, and the key to it, in PEM. The key is a secret."""

    ca: str
    certificate: str
    key: str
    expires_us: int
    """After this no new connection is accepted; those that are open stay."""

    def __repr__(self) -> str:
        return f"Credentials(expires_us={self.expires_us})"
