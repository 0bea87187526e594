"""Functions that give, raise, print and log pickles which write down the process that unpickles them."""

import logging
import os
import pickle
import sys
from typing import Any

from dask_fleet import Service, progress

service = Service("canary")


def note_pid(path: str) -> str:
    """Return source that writes the pid of the process it runs in."""
    return f"import os; open({path!r}, 'a').write(str(os.getpid()) + '\\n')"


class Song:
    """Whatever loads a pickle of this runs `note_pid`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (note_pid(os.environ["CANARY"]),)


class Canary(Song, Exception):
    """The same, to be raised."""


def payload() -> bytes:
    """Return a pickle that runs when it is loaded."""
    return pickle.dumps(Song())  # of no exception: `distributed`, wherever it is imported, pickles those in another way


@service.endpoint
def echo(text: str) -> str:
    """Give a text back."""
    return text


@service.endpoint
def sing(times: int = 1) -> bytes:
    """Return a pickle as bytes; many, and it becomes a file."""
    return payload() * times


@service.endpoint
def give() -> Any:
    """Return an object that no codec takes, whose pickle would run."""
    return Canary("given")


@service.endpoint
def fail() -> int:
    """Raise an exception with a hostile pickle, and one in its arguments."""
    raise Canary(payload(), Canary("inner")) from Canary("cause")


@service.endpoint
def talk() -> int:
    """Tell a pickle in every way a function can tell things."""
    sys.stdout.write(payload().decode("latin-1") + "\n")
    logging.getLogger("canary").warning("a canary: %s", payload().decode("latin-1"), extra={"canary": Canary("extra")})
    progress(1, 2, payload().decode("latin-1"))
    return 1


@service.endpoint
def load(data: str) -> int:
    """Unpickle, as a function may: the control that shows the canary alive."""
    pickle.loads(bytes.fromhex(data))
    return os.getpid()
