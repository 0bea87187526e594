"""One served function: its policy, its parameters, and how a request becomes its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dask_fleet.model.errors import InvalidParameters
from dask_fleet.model.jobs import Policy
from dask_fleet.model.manifest import EndpointManifest
from dask_fleet.model.placement import Placement

if TYPE_CHECKING:
    from pydantic import ValidationError

    from dask_fleet.services.parameters import Parameters

MAX_ERRORS = 100
MAX_ERROR_CHARS = 500


class Endpoint:
    """A function under its endpoint's name.

    Parameters
    ----------
    name
        Second part of its path.
    function
        The author's function, as it is.
    policy
        How its jobs are run and kept.
    placement
        Where its Dask graphs run.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], policy: Policy, placement: Placement | None = None
    ) -> None:
        self.name = name
        self.function = function
        self.policy = policy
        self.placement = placement or Placement()

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r})"

    @property
    def doc(self) -> str:
        """The function's docstring, without its indentation."""
        return inspect.getdoc(self.function) or ""

    @cached_property
    def is_async(self) -> bool:
        """Whether calling the function gives an awaitable."""
        return inspect.iscoroutinefunction(inspect.unwrap(self.function))

    @cached_property
    def parameters(self) -> Parameters:
        """The compiled parameters; made once, when first asked for, so that names defined later in the module
        are known.

        Raises
        ------
        ServiceDefinitionError
            If the signature says what a manifest cannot express.
        """
        from dask_fleet.services.parameters import compile_parameters

        return compile_parameters(self.function)

    def call_arguments(self, params: bytes) -> dict[str, Any]:
        """Return the keyword arguments that `params` (JSON) stands for, defaults filled in, validators run.

        Raises
        ------
        InvalidParameters
            Naming each wrong parameter in ``extra["errors"]``.
        """
        from pydantic_core import ValidationError

        parameters = self.parameters
        try:
            values = parameters.validate_json(params).__dict__
        except ValidationError as exc:
            raise invalid_parameters(exc) from None
        return {name: values[field] for field, name in parameters.names}

    def manifest(self) -> EndpointManifest:
        """Return what the server knows of this endpoint.

        Raises
        ------
        ServiceDefinitionError
            See `parameters`.
        """
        from dask_fleet.services.returns import describe_result

        returns, result_schema = describe_result(self.function)
        parameters = self.parameters
        return EndpointManifest(
            name=self.name,
            doc=self.doc,
            parameters=parameters.schema,
            order=tuple(name for _, name in parameters.names),
            returns=returns,
            result_schema=result_schema,
            policy=self.policy,
            placement=self.placement,
        )


def invalid_parameters(error: ValidationError) -> InvalidParameters:
    """Translate what pydantic says, without echoing the values it was given (they may be large)."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    errors = [
        {"loc": list(one["loc"]), "msg": one["msg"][:MAX_ERROR_CHARS], "type": one["type"]} for one in found[:MAX_ERRORS]
    ]
    return InvalidParameters(summary_of(errors), errors=errors)


def summary_of(errors: list[dict[str, Any]]) -> str:
    """Return one line for people: the first wrong fields and how many more there are."""
    shown = "; ".join(f"{field_of(one['loc'])}: {one['msg']}" for one in errors[:3])
    return shown if len(errors) <= 3 else f"{shown}; and {len(errors) - 3} more"


def field_of(loc: list[Any]) -> str:
    """Return ``filter.months[3]`` of ``["filter", "months", 3]``."""
    text = ""
    for step in loc:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{str(step)[:100]}" if text else str(step)[:100]
    return text or "(the whole body)"
