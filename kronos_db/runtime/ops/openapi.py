"""Describes the endpoints of the ops port by OpenAPI, with the messages of the contract as JSON has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, MethodDescriptor

import kronos_db
from kronos_db.runtime.ops.gateway import LONGEST_TIMEOUT, Endpoint
from kronos_db.runtime.ops.http import BODY_LIMIT, Response, Route

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
# 64 bits do not fit into the numbers of all readers of JSON: they are texts there.
_LONG = {"type": "string", "format": "int64"}
_INTEGER = {"type": "integer", "format": "int32"}
_SCALARS: Mapping[int, Mapping[str, str]] = {
    FieldDescriptor.TYPE_DOUBLE: _NUMBER,
    FieldDescriptor.TYPE_FLOAT: _NUMBER,
    FieldDescriptor.TYPE_INT64: _LONG,
    FieldDescriptor.TYPE_UINT64: _LONG,
    FieldDescriptor.TYPE_SINT64: _LONG,
    FieldDescriptor.TYPE_FIXED64: _LONG,
    FieldDescriptor.TYPE_SFIXED64: _LONG,
    FieldDescriptor.TYPE_INT32: _INTEGER,
    FieldDescriptor.TYPE_UINT32: _INTEGER,
    FieldDescriptor.TYPE_SINT32: _INTEGER,
    FieldDescriptor.TYPE_FIXED32: _INTEGER,
    FieldDescriptor.TYPE_SFIXED32: _INTEGER,
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: _TEXT,
    FieldDescriptor.TYPE_BYTES: {"type": "string", "format": "byte"},
}
# What protobuf's own types are in JSON.
_WELL_KNOWN: Mapping[str, Mapping[str, Any]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.FieldMask": _TEXT,
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
}
_PROBLEM = {
    "type": "object",
    "required": ["title", "status", "detail"],
    "properties": {
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": {**_TEXT, "description": "One sentence."},
        "code": {**_TEXT, "description": "The canonical status code by name."},
        "reason": {**_TEXT, "description": "What it is, in UPPER_SNAKE; docs/errors.md has all."},
        "domain": _TEXT,
        "metadata": {"type": "object", "additionalProperties": _TEXT},
        "violations": {
            "type": "array",
            "items": {"type": "object", "properties": {"field": _TEXT, "description": _TEXT}},
        },
        "request_id": {**_TEXT, "description": "Names the call in the log of the server."},
    },
}
_REFUSALS: Mapping[HTTPStatus, str] = {
    HTTPStatus.BAD_REQUEST: "The body or the query is not what the method takes.",
    HTTPStatus.UNAUTHORIZED: "There is no valid bearer token.",
    HTTPStatus.FORBIDDEN: "The access policy does not let this caller call the method.",
    HTTPStatus.CONFLICT: "What is asked for does not go with the state that there is.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: f"The body is longer than {BODY_LIMIT} bytes, or than the method takes.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "The request breaks a rule of the contract.",
    HTTPStatus.TOO_MANY_REQUESTS: "A limit of the server is reached.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The server failed; its log has the detail.",
    HTTPStatus.SERVICE_UNAVAILABLE: "A part that the call needs is away, or the port is at its limit.",
    HTTPStatus.GATEWAY_TIMEOUT: "There was no answer within the time given.",
}


def description(endpoints: Sequence[Endpoint]) -> Route:
    """Return /openapi.json, which anybody may read."""
    return Route("GET", "/openapi.json", lambda _request: Response.of_json(describe(endpoints)))


def describe(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """Return the OpenAPI document (3.1) of `endpoints`."""
    pool = descriptor_pool.Default()
    schemas: dict[str, Any] = {"Problem": _PROBLEM}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        service, _, name = endpoint.rpc.partition("/")
        method = pool.FindServiceByName(service).methods_by_name[name]
        paths.setdefault(endpoint.path, {})[endpoint.verb.lower()] = _operation(endpoint, method, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kronos-db: the platform's HTTP endpoints",
            "version": kronos_db.__version__,
            "description": "Methods of the gRPC contract, with the same identities and the same access policy.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
        "security": [{"bearer": []}],
    }


def _operation(endpoint: Endpoint, method: MethodDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": method.name,
        "summary": endpoint.summary,
        "description": f"As {endpoint.rpc} by gRPC.",
        "parameters": [_header("Request-Timeout", _timeout(endpoint)), _header("X-Request-Id", _TEXT)],
        "responses": {
            "200": _content("What the method answers.", endpoint.answer or _reference(method.output_type, schemas)),
            **{
                str(status.value): _content(meaning, _to("Problem"), "application/problem+json")
                for status, meaning in _REFUSALS.items()
            },
        },
    }
    if endpoint.verb == "GET":
        operation["parameters"] += [
            {"name": field.json_name, "in": "query", "schema": _field(field, schemas)}
            for field in method.input_type.fields
        ]
    else:
        operation["requestBody"] = _content("What is asked for.", _reference(method.input_type, schemas))
    return operation


def _timeout(endpoint: Endpoint) -> dict[str, Any]:
    return {**_NUMBER, "exclusiveMinimum": 0, "maximum": LONGEST_TIMEOUT, "default": endpoint.timeout}


def _header(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "schema": schema}


def _content(meaning: str, schema: Mapping[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"description": meaning, "content": {kind: {"schema": schema}}}


def _to(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _reference(kind: Descriptor | EnumDescriptor, schemas: dict[str, Any]) -> Mapping[str, Any]:
    """Return a reference to the schema of a type, which is added to `schemas` with all that it needs."""
    known = _WELL_KNOWN.get(kind.full_name)
    if known is not None:
        return known
    if kind.full_name not in schemas:
        # Known before it is filled, because a recursive type finds itself here.
        schema = schemas[kind.full_name] = {}
        schema.update(_enum(kind) if isinstance(kind, EnumDescriptor) else _message(kind, schemas))
    return _to(kind.full_name)


def _enum(kind: EnumDescriptor) -> dict[str, Any]:
    return {"type": "string", "enum": [value.name for value in kind.values]}


def _message(kind: Descriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {field.json_name: _field(field, schemas) for field in kind.fields}}


def _field(field: FieldDescriptor, schemas: dict[str, Any]) -> Mapping[str, Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        return {"type": "object", "additionalProperties": _field(value, schemas)}
    inner = field.message_type or field.enum_type
    one = _reference(inner, schemas) if inner is not None else _SCALARS[field.type]
    return {"type": "array", "items": one} if field.is_repeated else one
