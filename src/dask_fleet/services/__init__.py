"""What an author of a service writes, and how a signature becomes a schema.

Importing this costs nothing: pydantic is loaded when a signature is first looked at.
"""

from dask_fleet.services.context import cancelled, get_client, progress
from dask_fleet.services.service import Service

__all__ = ["Service", "cancelled", "get_client", "progress"]
