"""
What the HTTP caller tells and checks of a task, from its annotations alone.
"""

# ruff: noqa: ARG001 - tasks whose signatures are the subject
from __future__ import annotations

import base64
from enum import StrEnum
from typing import Any

import pytest

from caller.web.bodies import SendOptions
from caller.web.openapi import openapi
from caller.web.problems import KINDS
from caller.web.task_schema import ANY, TaskSchema, task_schemas
from machine import SignatureError, task
from machine.wire.gotypes import json_schema

INT64 = {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1}


class Color(StrEnum):
    RED = "red"


@task
def typed(
    flag: bool,
    whole: int,
    real: float = 0.5,
    /,
    text: str = "a",
    *,
    data: bytes = b"",
    many: list[int] | None = None,
    color: Color = Color.RED,
) -> list[str]:
    """
    Take one of each,
    and return texts.

    More is not told.
    """
    return [text]


@task
def untyped(a, *rest):
    return a


@task
def greedy(*numbers: float) -> None:
    """Take any number."""


@task
def misspelled(value: Nowhere) -> None:  # noqa: F821 - annotations may be any expression
    """Say nothing that can be looked up."""


def properties(schema: TaskSchema) -> dict[str, Any]:
    found: dict[str, Any] = schema.body()["properties"]
    return found


def test_a_call_has_a_schema_for_each_place_and_name() -> None:
    found = properties(TaskSchema(typed))

    assert found["args"]["prefixItems"] == [
        {"type": "boolean"},
        INT64,
        {**json_schema("float64"), "default": 0.5},
        {"type": "string", "default": "a"},
    ]
    assert found["args"]["maxItems"] == 4
    assert found["kwargs"]["additionalProperties"] is False
    assert found["kwargs"]["properties"] == {
        "text": {"type": "string", "default": "a"},
        "data": {"type": "string", "contentEncoding": "base64", "default": ""},
        "many": ANY,
        "color": ANY,
    }


def test_what_is_not_annotated_may_be_anything_that_can_be_sent() -> None:
    found = properties(TaskSchema(untyped))

    assert found["args"]["prefixItems"] == [ANY]
    assert found["args"]["items"] == ANY
    assert "maxItems" not in found["args"]
    assert TaskSchema(untyped).result == {}


def test_what_cannot_be_looked_at_is_taken_as_it_comes() -> None:
    assert properties(TaskSchema(misspelled))["args"]["prefixItems"] == [ANY]
    assert TaskSchema(task(name="longest")(max)).rest is not None


def test_a_result_has_the_schema_of_its_annotation() -> None:
    assert TaskSchema(typed).result == {"type": "array", "items": {"type": "string"}}
    assert TaskSchema(greedy).result == {"type": "null"}


def test_the_list_of_parameters_says_how_each_may_be_given() -> None:
    kinds = {
        one.name: (one.kind.name.lower(), one.required) for one in TaskSchema(typed).parameters
    }

    assert kinds == {
        "flag": ("positional_only", True),
        "whole": ("positional_only", True),
        "real": ("positional_only", False),
        "text": ("positional_or_keyword", False),
        "data": ("keyword_only", False),
        "many": ("keyword_only", False),
        "color": ("keyword_only", False),
    }
    assert TaskSchema(greedy).parameters[0].required is False


def test_a_doc_is_told_up_to_its_first_empty_line() -> None:
    assert TaskSchema(typed).doc == "Take one of each, and return texts."
    assert TaskSchema(untyped).doc == ""


def test_numbers_of_json_become_what_the_annotation_asks_for() -> None:
    call = TaskSchema(typed).call([True, 3.0, 2], {"data": "/wA="}, partial=False)
    floats = TaskSchema(greedy).call([1, 2.5], {}, partial=False)

    assert [(arg.type, arg.value) for arg in call.args] == [
        ("bool", True),
        ("int64", 3),
        ("float64", 2.0),
        ("[]byte", base64.b64encode(b"\xff\x00").decode()),
    ]
    assert [arg.value for arg in floats.args] == [1.0, 2.5]


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ([True, 1.5], {}, "'whole' is a float"),
        ([1, 1], {}, "'flag' is an int"),
        ([True, 1], {"data": "no base64!"}, "kwargs.data is no base64"),
        ([True, 1], {"whole": 1}, "whole"),
        ([True, 10**400], {}, "out of range"),
        ([True, 1, 10**400], {}, "too large"),
    ],
)
def test_a_call_that_cannot_be_is_a_signature_error(
    args: list[Any], kwargs: dict[str, Any], text: str
) -> None:
    with pytest.raises(SignatureError, match=text):
        TaskSchema(typed).call(args, kwargs, partial=False)


def test_a_partial_call_may_leave_out_what_is_appended_later() -> None:
    assert TaskSchema(typed).call([], {}, partial=True).args == []
    with pytest.raises(SignatureError, match="missing a required argument"):
        TaskSchema(typed).call([], {}, partial=False)


def test_the_document_has_a_path_for_each_task_and_the_queues_that_may_be_named() -> None:
    document = openapi(task_schemas([untyped, typed]), ["q", "r"], title="T", needs_token=True)
    operation = document["paths"]["/tasks/typed"]["post"]

    assert document["openapi"] == "3.1.0"
    assert document["security"] == [{"token": []}]
    assert [p for p in document["paths"] if p.startswith("/tasks/")] == [
        "/tasks/typed",
        "/tasks/untyped",
    ]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["options"] == {"$ref": "#/components/schemas/SendOptions"}
    options = document["components"]["schemas"]["SendOptions"]
    assert options["properties"]["queue"]["enum"] == ["q", "r"]
    assert set(options["properties"]) == set(SendOptions.__struct_fields__)
    assert set(operation["responses"]) >= {"200", "202", "409", "422", "429", "503"}
    assert {p["name"] for p in operation["parameters"]} == {"Idempotency-Key", "Prefer"}


def references(found: Any) -> set[str]:
    if isinstance(found, dict):
        own = {found["$ref"]} if isinstance(found.get("$ref"), str) else set()
        return own.union(*map(references, found.values()))
    return set().union(*map(references, found)) if isinstance(found, list) else set()


def test_every_reference_of_the_document_leads_somewhere() -> None:
    document = openapi(task_schemas([typed]), ["q"], title="T", needs_token=False)

    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known
    assert "security" not in document


def test_every_kind_of_problem_has_a_status_and_a_title() -> None:
    assert all(400 <= kind.status < 600 and kind.title for kind in KINDS.values())
