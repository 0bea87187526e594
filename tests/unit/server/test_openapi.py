"""The OpenAPI document: complete, its references whole, its schemas compilable, user data left alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from tests.unit.server.rig import MANIFEST, Rig, run

from dask_fleet.model.manifest import EndpointManifest, Manifest, ServiceManifest
from dask_fleet.server.json_schemas import Components
from dask_fleet.server.openapi import duration, openapi_document

POINT = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "next": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "null"}]}},
}
SHAPES = {
    "$defs": {"Point": POINT, "Square[int]": {"type": "object", "properties": {"kind": {"const": "sq"}}}},
    "type": "object",
    "properties": {
        "point": {"$ref": "#/$defs/Point"},
        "shape": {
            "oneOf": [{"$ref": "#/$defs/Square[int]"}, {"$ref": "#/$defs/Point"}],
            "discriminator": {"propertyName": "kind", "mapping": {"sq": "#/$defs/Square[int]"}},
        },
        "raw": {"type": "object", "default": {"$ref": "#/$defs/Point"}, "examples": [{"$ref": "x"}]},
        "$ref": {"type": "string"},
        "points": {"type": "array", "items": {"$ref": "#/$defs/Point"}},
    },
}


def endpoint(name: str, parameters: dict[str, Any], **rest: Any) -> EndpointManifest:
    return EndpointManifest(name=name, doc="Doc.", parameters=parameters, order=(), returns="json", **rest)


TWO = Manifest(
    services=(
        ServiceManifest(
            name="geo",
            doc="",
            version="1",
            target="geo.py",
            endpoints=(
                endpoint("area", SHAPES, result_schema=POINT | {"$defs": {"Point": POINT}}),
                endpoint("length", SHAPES),
            ),
        ),
    )
)


def references(value: Any) -> Iterator[str]:
    """Yield the references of a document, wherever a schema or component stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref" and isinstance(inner, str):
                yield inner
            elif key not in {"default", "examples"}:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(document: Any, reference: str) -> Any:
    assert reference.startswith("#/"), reference
    for part in reference[2:].split("/"):
        document = document[part]
    return document


@pytest.mark.parametrize("manifest", [MANIFEST, TWO, Manifest(services=())], ids=["one", "two", "none"])
def test_all_references_lead_somewhere(manifest: Manifest) -> None:
    document = msgspec.json.decode(msgspec.json.encode(openapi_document(manifest, version="1")))
    found = set(references(document))
    assert found or not manifest.services
    for reference in found:
        resolve(document, reference)
    assert "$defs" not in document["components"]["schemas"]


def test_definitions_of_two_endpoints_do_not_meet() -> None:
    schemas = openapi_document(TWO, version="1")["components"]["schemas"]
    assert {"geo.area.Parameters", "geo.area.Parameters.Point", "geo.length.Parameters.Point", "geo.area.Result"} <= set(
        schemas
    )
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for name in schemas)


def test_references_move_and_data_stays() -> None:
    components = Components({"geo.Parameters": {}})
    assert components.add("geo.Parameters", SHAPES) == {"$ref": "#/components/schemas/geo.Parameters_2"}
    moved = components.schemas["geo.Parameters_2"]["properties"]
    assert moved["point"] == {"$ref": "#/components/schemas/geo.Parameters.Point"}
    assert moved["points"]["items"] == moved["point"]
    assert moved["shape"]["discriminator"]["mapping"] == {"sq": "#/components/schemas/geo.Parameters.Square_int_"}
    assert moved["raw"] == SHAPES["properties"]["raw"]  # type: ignore[index]
    assert moved["$ref"] == {"type": "string"}
    point = components.schemas["geo.Parameters.Point"]["properties"]["next"]["anyOf"][0]
    assert point == {"$ref": "#/components/schemas/geo.Parameters.Point"}


def test_schemas_compile_and_numbers_of_results_may_be_nan() -> None:
    document = openapi_document(TWO, version="1")
    for name in document["components"]["schemas"]:
        jsonschema_rs.Draft202012Validator({**document, "$ref": f"#/components/schemas/{name}"})
    validator = jsonschema_rs.Draft202012Validator({**document, "$ref": "#/components/schemas/geo.area.Result"})
    assert validator.is_valid({"x": 1.5, "next": {"x": {"$float": "NaN"}, "next": None}})
    assert not validator.is_valid({"x": {"$float": "nan"}})
    parameters = jsonschema_rs.Draft202012Validator({**document, "$ref": "#/components/schemas/geo.area.Parameters.Point"})
    assert not parameters.is_valid({"x": {"$float": "NaN"}})


def test_every_operation_says_how_it_fails_and_has_an_id() -> None:
    document = openapi_document(TWO, version="1")
    operations = [(path, op) for path, ops in document["paths"].items() for op in ops.values()]
    for path, operation in operations:
        assert operation["summary"], path
        if operation.get("security") != []:
            assert {"401", "403", "421"} <= set(operation["responses"]), path
    calls = [op for path, op in operations if path.startswith("/v1/geo/")]
    assert {op["operationId"] for op in calls} == {
        "geo_area", "geo_area_batch", "geo_length", "geo_length_batch"}
    for call in calls:
        own = set() if call["operationId"].endswith("_batch") else {"422"}  # which is told of a set of a batch, not of it
        assert {"200", "202", "400", "413", "415", "429", "503"} | own <= set(call["responses"])


def test_real_job_documents_fit_the_document() -> None:
    async def main() -> None:
        async with Rig() as rig:
            document = (await rig.http.get("/openapi.json")).json()
            validator = jsonschema_rs.Draft202012Validator({**document, "$ref": "#/components/schemas/Job"})
            finished = await rig.finished(1, body=b"2.5")
            for job_id in (finished, await rig.submit(2)):
                validator.validate((await rig.http.get(f"/v1/jobs/{job_id}")).json())
            problem = jsonschema_rs.Draft202012Validator({**document, "$ref": "#/components/schemas/Problem"})
            problem.validate((await rig.http.get("/v1/jobs/x")).json())

    run(main())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.5, "1.5 s"), (90, "90 s"), (120, "2 min"), (5400, "90 min"), (86_400, "1 d"), (30 * 86_400, "30 d")],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
