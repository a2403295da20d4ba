"""Messages somebody wrote to do harm: each is refused with a reason, and none is a crash."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.errors import WireError
from machine.wire.messages import decode_signature, encode_signature
from machine.wire.signature import Signature
from machine.wire.states import decode_group, decode_letter, decode_state
from machine.wire.text import ZERO_TIME, parse_time

GOLDEN = Path(__file__).parents[2] / "golden"
ADD = (GOLDEN / "signature_add.json").read_bytes()


def refusal(raw: bytes, **options: Any) -> str:
    with pytest.raises(WireError) as caught:
        decode_signature(raw, **options)
    return str(caught.value)


def outcome(raw: bytes) -> Signature | str:
    try:
        return decode_signature(raw)
    except WireError as error:
        return str(error)


def message(**fields: Any) -> bytes:
    return json.dumps({"Name": "add", **fields}).encode()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "not JSON at character 0: Expecting value"),
        (b"\x00", "not JSON at character 0: Expecting value"),
        (ADD[:100], "not JSON at character 96: Unterminated string starting at"),
        (b'\xef\xbb\xbf{"Name":"add"}', "not JSON at character 0: Expecting value"),
        ('{"Name":"add"}'.encode("utf-16-le"), ("not JSON at character 1: "
         "Expecting property name enclosed in double quotes")),
        ('{"Name":"add"}'.encode("utf-16"), "byte 0xff at 0; expected UTF-8"),
        (b'{"Name":"a\xc0\x80"}', "byte 0xc0 at 10; expected UTF-8"),
        (b'{"Name":"a\xed\xa0\x80"}', "byte 0xed at 10; expected UTF-8"),
        (b'{"Name":"a\nb"}', "not JSON at character 10: Invalid control character at"),
        (b'{"Name":"add","x":"\\ud800"}',
         "a lone surrogate in a string; expected text that UTF-8 can hold"),
        (b'{"Name":"add","x":"\\uDE00\\ud83d"}',
         "a lone surrogate in a string; expected text that UTF-8 can hold"),
        (b'{"Name":"add","x":NaN}', "NaN is not a JSON number"),
        (b'{"Name":"add","x":-Infinity}', "-Infinity is not a JSON number"),
        (b'{"Name":"add","x":' + b"9" * 4301 + b"}", "an integer of more than 4300 digits"),
        (b'{"Name":"add","Name":"drop"}', "key 'Name' appears twice; expected it once"),
        (b'{"Name":"add","Args":[{"Type":"int64","Value":1,"Value":2}]}',
         "key 'Value' appears twice; expected it once"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_bytes_that_are_not_clean_json_are_refused(raw: bytes, expected: str) -> None:
    assert refusal(raw) == f"signature: {expected}"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(b"null", "null"), (b"[]", "an array of 0"), (b"5", "5"), (b'"x"', "'x'"), (b"true", "true")],
)
def test_a_value_that_is_not_an_object_is_refused(raw: bytes, expected: str) -> None:
    assert refusal(raw) == f"signature is {expected}; expected an object"


def test_a_message_over_the_limit_is_not_even_read() -> None:
    assert refusal(b"[" * 1_048_577) == "signature has 1048577 bytes; expected 1048576 at most"
    assert refusal(ADD, most_bytes=400) == "signature has 469 bytes; expected 400 at most"


EXPECTED = {
    "an integer": ["GroupTaskCount", "Priority", "RetryCount", "RetryTimeout"],
    "a string": [
        "UUID", "Name", "RoutingKey", "ETA", "GroupUUID", "BrokerMessageGroupId",
        "SQSReceiptHandle",
    ],
    "true or false": ["Immutable", "StopTaskDeletionOnError", "IgnoreWhenTaskNotRegistered"],
    "an array": ["Args", "OnSuccess", "OnError"],
    "an object": ["Headers", "ChordCallback"],
}  # fmt: skip
VALUES = {
    "an integer": "7", "a string": "'x'", "true or false": "true", "an array": "an array of 0",
    "an object": "an object of 0", "1.0": "1.0",
}  # fmt: skip
SAMPLES: dict[str, Any] = {
    "an integer": 7, "a string": "x", "true or false": True, "an array": [], "an object": {},
    "1.0": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("given_kind", SAMPLES)
@pytest.mark.parametrize(
    ("field", "kind"), [(field, kind) for kind, fields in EXPECTED.items() for field in fields]
)
def test_every_field_has_one_type(field: str, kind: str, given_kind: str) -> None:
    raw = message(**{field: SAMPLES[given_kind]})

    if given_kind != kind:
        expected = f"signature field {field} is {VALUES[given_kind]}; expected {kind}"
        assert refusal(raw) == expected
    elif field == "ETA":
        assert refusal(raw).startswith("signature field ETA: time is 'x'; expected RFC 3339")
    elif field == "ChordCallback":
        assert refusal(raw).startswith(
            "signature field ChordCallback.Name is ''; expected 1 to 256"
        )
    else:
        assert isinstance(decode_signature(raw), Signature)


ID = "expected an id: 1 to 128 characters A-Z a-z 0-9 _ . : { } - that are no other key's name"
QUEUE = "expected a queue: up to 128 characters A-Z a-z 0-9 _ . : - that are no other key's name"


@pytest.mark.parametrize("field", ["UUID", "GroupUUID", "ChordCallback.UUID", "OnError[0].UUID"])
@pytest.mark.parametrize(
    "value",
    [
        "delayed_tasks", "TriggerChordMutex", "machinery_lock_x", "{machinery_tasks}:workers",
        "{machinery_tasks}:hop", "task 1", "task_\n", "task_é", "a" * 129, "x" * 10_000,
    ],
)  # fmt: skip
def test_an_id_cannot_name_another_kind_of_key(field: str, value: str) -> None:
    below = {"Name": "inner", "UUID": value}
    raw = {
        "ChordCallback.UUID": message(ChordCallback=below),
        "OnError[0].UUID": message(OnError=[below]),
    }.get(field) or message(**{field: value})

    text = refusal(raw)

    assert text.startswith(f"signature field {field} is '")
    assert text.endswith(f"; {ID}")
    assert len(text) < 250
    assert text.isprintable()


def test_an_id_cannot_name_the_configured_delayed_set() -> None:
    raw = message(UUID="my_delayed")

    assert decode_signature(raw).uuid == "my_delayed"
    assert refusal(raw, delayed_key="my_delayed") == f"signature field UUID is 'my_delayed'; {ID}"
    plain = ADD.replace(b'"RoutingKey":"machinery_tasks"', b'"RoutingKey":"my_delayed"')
    expected = f"signature field RoutingKey is 'my_delayed'; {QUEUE}"
    assert refusal(plain, delayed_key="my_delayed") == expected


@pytest.mark.parametrize(
    "value", ["delayed_tasks", "task_1", "group_1", "{q}:workers", "a b", "q\r\n", "q" * 129]
)
def test_a_routing_key_must_be_a_queue(value: str) -> None:
    text = refusal(message(RoutingKey=value))

    assert text == f"signature field RoutingKey is {wire_shown(value)}; {QUEUE}"


def wire_shown(value: str) -> str:
    return repr(value) if len(value) <= 80 else repr(value[:77] + "…")[:80]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"Name": "a\x1b[31m"}, r"Name is 'a\x1b[31m'; expected 1 to 256 printable characters"),
        ({"Name": "a\u202eb"}, r"Name is 'a\u202eb'; expected 1 to 256 printable characters"),
        ({"Name": ""}, "Name is ''; expected 1 to 256 printable characters"),
        ({"RetryCount": 101}, "RetryCount is 101; expected 0 to 100"),
        ({"RetryCount": 1 << 31}, "RetryCount is 2147483648; expected 0 to 100"),
        ({"RetryCount": -(1 << 64)}, "RetryCount is -18446744073709551616; expected 0 to 100"),
        ({"RetryTimeout": 1 << 62}, "RetryTimeout is 4611686018427387904; expected 0 to 39088169"),
        ({"GroupTaskCount": -1}, "GroupTaskCount is -1; expected 0 to 1000000"),
        ({"GroupTaskCount": 1 << 31}, "GroupTaskCount is 2147483648; expected 0 to 1000000"),
        ({"Priority": 256}, "Priority is 256; expected 0 to 255"),
        ({"Priority": 10**4000}, "Priority is an integer of 13288 bits; expected 0 to 255"),
        ({"Headers": dict.fromkeys(map(str, range(65)))},
         "Headers has 65 entries; expected 64 at most"),
        ({"Headers": {"k": "v" * 1025}},
         "Headers['k'] is 1025 characters long; expected 1024 at most"),
        ({"Headers": {"k" * 1025: ""}},
         "Headers has a key of 1025 characters; expected 1024 at most"),
        ({"Args": [{}] * 100_001}, "Args is an array of 100001; expected 100000 at most"),
        ({"Args": [5]}, "Args is 5; expected an array of objects"),
        ({"Args": [None]}, "Args is null; expected an array of objects"),
        ({"Args": [{"Type": 1}]}, "Args.Type is 1; expected a string"),
        ({"Args": [{"Type": "t", "Value": 1, "Name": []}]},
         "Args.Name is an array of 0; expected a string"),
        ({"Args": [{"Type": "t", "type": "u"}]},
         "Args.type appears twice in different cases; expected it once"),
        ({"name": "b"}, "name appears twice in different cases; expected it once"),
        ({"OnSuccess": [None]}, "OnSuccess[0] is null; expected an object"),
        ({"OnError": [{"Name": "x", "Args": [1]}]},
         "OnError[0].Args is 1; expected an array of objects"),
    ],
)  # fmt: skip
def test_a_field_out_of_bounds_is_named(fields: dict[str, Any], expected: str) -> None:
    assert refusal(message(**fields)) == f"signature field {expected}"


def deep(levels: int) -> Any:
    found: Any = 1.5
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (b'"Value":1}', b'"Value":1e999}',
         "Args.Value is inf; expected a number that fits 64 bits"),
        (b'"Value":1}', b'"Value":[-1e999]}',
         "Args.Value is -inf; expected a number that fits 64 bits"),
        (b'"Headers":{}', b'"Headers":{"a":[1e999]}',
         "Headers is inf; expected a number that fits 64 bits"),
        (b'"Priority":0', b'"Priority":0,"x\\u001b":{"y":1e999}',
         r"'x\x1b' is inf; expected a number that fits 64 bits"),
        (b'"Value":1}', b'"Value":%s}' % json.dumps(deep(65)).encode(),
         "Args.Value is nested too deeply; expected 64 levels at most"),
        (b'"Headers":{}', b'"Headers":{"a":%s}' % json.dumps(deep(64)).encode(),
         "Headers is nested too deeply; expected 64 levels at most"),
    ],
)  # fmt: skip
def test_values_are_bounded_wherever_they_stand(before: bytes, after: bytes, expected: str) -> None:
    assert refusal(ADD.replace(before, after, 1)) == f"signature field {expected}"


def test_an_eta_after_the_latest_is_refused_and_one_of_year_1_is_not() -> None:
    latest = parse_time("2027-01-01T00:00:00Z")
    far = message(ETA="9999-01-01T00:00:00Z")

    assert decode_signature(far).eta_ns == parse_time("9999-01-01T00:00:00Z")
    assert refusal(far, latest_eta_ns=latest) == (
        "signature field ETA is '9999-01-01T00:00:00Z'; expected 2027-01-01T00:00:00Z at the latest"
    )
    early = decode_signature(message(ETA=ZERO_TIME), latest_eta_ns=latest)
    assert early.eta_ns == parse_time(ZERO_TIME)


TOO_MANY = "too many callbacks; expected 64 below each other and 1000 in all at most"


def test_a_callback_tree_is_bounded_in_depth() -> None:
    found: dict[str, Any] = {"Name": "x"}
    for _ in range(65):
        found = {"Name": "x", "ChordCallback": found}

    text = refusal(message(**found))

    assert text.startswith("signature field ChordCallback.ChordCallback.")
    assert text.endswith(f": {TOO_MANY}")


def test_a_callback_chain_500_deep_is_refused() -> None:
    raw = b'{"Name":"x","OnSuccess":[' * 500 + b'{"Name":"x"}' + b"]}" * 500

    assert refusal(raw) in (
        "signature: nested too deeply",
        f"signature field {('OnSuccess[0].' * 65)[:60]}: {TOO_MANY}",
    )


def test_a_callback_tree_is_bounded_in_size() -> None:
    tree: dict[str, Any] = {"Name": "x", "OnError": [{"Name": "y"}] * 31}

    assert isinstance(decode_signature(message(OnSuccess=[tree] * 31)), Signature)
    assert refusal(message(OnSuccess=[tree] * 32)).endswith(f": {TOO_MANY}")


def mutants(rng: random.Random, raw: bytes) -> bytes:
    """Return the message with one thing wrong, or now and then right."""
    at, end = sorted((rng.randrange(len(raw)), rng.randrange(len(raw))))
    other = rng.choice(
        [b"null", b"1.0", b"{}", b"[]", b'"', b"\\", b"\x00", b"1e999", b"\xff", b'"x":']
    )
    return rng.choice(
        [
            raw[:at],
            raw[:at] + raw[end:],
            raw[:at] + other + raw[at:],
            raw[:at] + other + raw[end:],
            raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :],
            raw[:end] + raw[at:],
            rng.randbytes(at % 64),
        ]
    )


def test_five_thousand_broken_messages_are_read_or_refused_and_nothing_else() -> None:
    rng = random.Random(5_000)  # noqa: S311 - seeded, so that a failure comes back
    originals = [path.read_bytes() for path in sorted(GOLDEN.glob("signature_*.json"))]

    found = [outcome(mutants(rng, originals[n % len(originals)])) for n in range(5_000)]

    refused = [text for text in found if isinstance(text, str)]
    read = [sig for sig in found if isinstance(sig, Signature)]
    assert len(refused) > 3_000
    assert len(read) > 100
    odd = [
        t for t in refused if not t.startswith("signature") or len(t) > 400 or not t.isprintable()
    ]
    assert odd == []
    for sig in read:
        # What was let in can be written again: a retry of it cannot fail here.
        again = encode_signature(sig)
        assert encode_signature(decode_signature(again)) == again


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELD = st.sampled_from([name for fields in EXPECTED.values() for name in fields])


@given(st.dictionaries(FIELD, JSON_VALUE, max_size=6))
def test_any_fields_give_a_signature_or_a_wire_error(fields: dict[str, Any]) -> None:
    found = outcome(message(**fields))

    if isinstance(found, str):
        assert found.startswith("signature")
    else:
        again = encode_signature(found)
        assert encode_signature(decode_signature(again)) == again


@given(st.binary(max_size=60))
def test_any_bytes_give_a_signature_or_a_wire_error(raw: bytes) -> None:
    for read in (decode_signature, decode_state, decode_group, decode_letter):
        with pytest.raises(WireError):
            read(raw)
