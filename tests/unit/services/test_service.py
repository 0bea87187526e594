import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta

import pytest

from dask_fleet.model.errors import ServiceDefinitionError
from dask_fleet.model.jobs import Policy
from dask_fleet.model.placement import Placement, PlacementMode
from dask_fleet.services import Service


def add(a: int, b: int = 2) -> int:
    """Add."""
    return a + b


def test_functions_stay_plain_functions() -> None:
    service = Service("math")
    assert service.endpoint(add) is add
    assert service.endpoint("sum", retries=1)(add) is add
    assert service.endpoint()(multiply) is multiply
    assert add(1) == 3
    assert list(service.endpoints) == ["add", "sum", "multiply"]
    assert service.endpoints["add"].function is add
    assert service.endpoints["add"].doc == "Add."
    assert repr(service) == "Service('math', endpoints=[add, sum, multiply])"


def multiply(a: int) -> int:
    return a


def test_policies() -> None:
    service = Service("math")
    service.endpoint(add)
    assert service.endpoints["add"].policy == Policy(
        cache_s=86_400, timeout_s=3_600, retries=0, pure=True, max_result_bytes=2 << 30
    )
    service.endpoint("other", cache="30d", timeout=timedelta(minutes=2), retries=2, pure=False, max_result="1MiB")(add)
    assert service.endpoints["other"].policy == Policy(
        cache_s=30 * 86_400, timeout_s=120, retries=2, pure=False, max_result_bytes=1 << 20
    )


@pytest.mark.parametrize("name", ["", "Flights", "1a", "a b", "a/b", "-a", "a" * 64, "é", "a.b", "..", None, 5])
def test_names_that_are_no_path_segment_are_refused(name: str) -> None:
    with pytest.raises(ServiceDefinitionError, match="lower-case letters"):
        Service(name)
    if name:
        with pytest.raises(ServiceDefinitionError, match=r"test_service\.py:\d+: .*lower-case"):
            Service("ok").endpoint(name)(add)


@pytest.mark.parametrize("name", ["jobs", "services", "status", "agents"])
def test_names_that_the_api_uses_are_refused(name: str) -> None:
    with pytest.raises(ServiceDefinitionError, match="choose another name"):
        Service(name)


def test_names_that_are_fine() -> None:
    for name in ("a", "flights-2013", "a_b", "a" * 63):
        assert Service(name).name == name


def test_one_name_is_one_endpoint() -> None:
    service = Service("math")
    service.endpoint(add)
    with pytest.raises(ServiceDefinitionError, match=r"has an endpoint 'add' already, at .*test_service\.py:\d+.*another"):
        service.endpoint("add")(multiply)


def test_a_lambda_needs_a_name() -> None:
    square: Callable[[int], int] = lambda n: n * n  # noqa: E731
    with pytest.raises(ServiceDefinitionError, match="<lambda>"):
        Service("math").endpoint(square)
    service = Service("math")
    service.endpoint("square")(square)
    assert list(service.endpoints) == ["square"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": "soon"}, "cache='soon' is no duration.*'90d'"),
        ({"timeout": 0}, "timeout must be more than 0"),
        ({"timeout": -1}, "timeout=-1 is no duration"),
        ({"retries": -1}, "retries must be a whole number from 0 to 100"),
        ({"retries": True}, "retries"),
        ({"retries": 101}, "retries"),
        ({"pure": "no"}, "pure must be True or False"),
        ({"max_result": "much"}, "max_result='much' is no size.*2GiB"),
    ],
)
def test_options_that_say_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ServiceDefinitionError, match=rf"test_service\.py:\d+: .*{message}"):
        Service("math").endpoint(**options)(add)  # type: ignore[call-overload]


def test_a_declared_version_is_checked() -> None:
    assert Service("a", version="2024.1-rc_1").version == "2024.1-rc_1"
    for version in ("1+2", "a b", "x" * 65, "é"):
        with pytest.raises(ServiceDefinitionError, match="version"):
            Service("a", version=version)


def test_importing_it_is_light() -> None:
    code = (
        "import sys; from dask_fleet import Service, progress, cancelled\n"
        "service = Service('a')\n"
        "@service.endpoint\n"
        "def f(n: int) -> int: return n\n"
        "heavy = {'pydantic', 'pandas', 'numpy', 'pyarrow', 'dask', 'distributed', 'starlette', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_placements() -> None:
    service = Service("math")
    service.endpoint(add)
    assert service.endpoints["add"].placement == Placement()
    assert service.endpoints["add"].placement.mode is PlacementMode.AUTO
    service.endpoint("big", placement="cluster", workers=4, threads_per_worker=2, resources={"GPU": 1}, local_tasks=0)(add)
    assert service.endpoints["big"].manifest().placement == Placement(
        mode=PlacementMode.CLUSTER, local_tasks=0, workers=4, threads_per_worker=2, resources={"GPU": 1.0}
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"placement": "moon"}, "'auto', 'worker', 'cluster'"),
        ({"workers": 0}, "workers must be a whole number, 1 or more"),
        ({"workers": True}, "workers must be"),
        ({"threads_per_worker": -1}, "threads_per_worker must be"),
        ({"local_tasks": -1}, "local_tasks must be"),
        ({"resources": {"GPU": "one"}}, "resources must give a number"),
        ({"resources": {"GPU": 0}}, "resources must give a number"),
        ({"resources": ["GPU"]}, "resources must give a number"),
        ({"placement": "worker", "workers": 2}, "placement='worker' has no cluster"),
    ],
)
def test_impossible_placements(options: dict[str, object], told: str) -> None:
    with pytest.raises(ServiceDefinitionError, match=re.escape(told)):
        Service("math").endpoint("f", **options)(add)
