"""Signatures as Go writes them, there and back."""

from __future__ import annotations

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.errors import SignatureError
from machine.wire import gotypes
from machine.wire.headers import ATTEMPT_HEADER, ON_CRASH_HEADER
from machine.wire.messages import decode_signature, encode_signature
from machine.wire.signature import Arg, Signature

GOLDEN = Path(__file__).parents[2] / "golden"
#: Files we write otherwise, on purpose: what Go wrote, and what we write instead.
REWRITTEN = {
    "signature_copied": (b'"OnSuccess":[],"OnError":[]', b'"OnSuccess":null,"OnError":null'),
    "signature_eta_zone": (b"2031-02-03T04:05:06+05:30", b"2031-02-02T22:35:06Z"),
    "signature_invalid_utf8": (b"a\\ufffdb", "a\ufffdb".encode()),
}
KEYS = [
    "UUID", "Name", "RoutingKey", "ETA", "GroupUUID", "GroupTaskCount", "Args", "Headers",
    "Priority", "Immutable", "RetryCount", "RetryTimeout", "OnSuccess", "OnError",
    "ChordCallback", "BrokerMessageGroupId", "SQSReceiptHandle", "StopTaskDeletionOnError",
    "IgnoreWhenTaskNotRegistered",
]  # fmt: skip


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes()


def names(prefix: str) -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob(f"{prefix}*.json"))


def refusal(sig: Signature) -> str:
    with pytest.raises(SignatureError) as caught:
        encode_signature(sig)
    return str(caught.value)


def nested(depth: int) -> Signature:
    sig = Signature(name="last")
    for _ in range(depth):
        sig = Signature(name="outer", on_success=[sig])
    return sig


@pytest.mark.parametrize("name", names("signature"))
def test_a_message_of_machinery_is_written_again_byte_for_byte(name: str) -> None:
    raw = golden(name)

    again = encode_signature(decode_signature(raw))

    theirs, ours = REWRITTEN.get(name, (b"", b""))
    assert theirs in raw
    assert again == raw.replace(theirs, ours)


@pytest.mark.parametrize("name", ["high", "low"])
def test_each_of_the_29_types_arrives_at_its_limits(name: str) -> None:
    sig = decode_signature(golden(f"signature_types_{name}"))

    values = {arg.type: gotypes.decode(arg.type, arg.value) for arg in sig.args}

    assert values.keys() == gotypes.TYPES
    if name == "high":
        assert values["uint64"] == (1 << 64) - 1
        assert values["[]byte"] == b"hi\xff\x00~"
        assert values["float32"] == struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]
        assert math.copysign(1, values["[]float64"][21]) == -1  # Go wrote it as -0
    else:
        assert (values["int64"], values["float64"]) == (-(1 << 63), 5e-324)
        assert all(not value for kind, value in values.items() if kind.startswith("[]"))


def test_a_message_has_the_19_keys_in_order_and_none_is_omitted() -> None:
    raw = encode_signature(Signature(name="add"))

    found = json.loads(raw)

    assert list(found) == KEYS
    assert [found[key] for key in ("Args", "Headers", "OnSuccess", "ETA")] == [None] * 4


def test_the_plain_and_the_full_form_of_a_message_agree() -> None:
    plain = Signature(name="add", uuid="task_1", args=[Arg("int64", 1)], headers={})

    raw = encode_signature(plain)
    full = encode_signature(plain.replace(retry_count=1))

    assert full == raw.replace(b'"RetryCount":0', b'"RetryCount":1')
    assert decode_signature(raw) == decode_signature(b" " + raw) == plain


def test_headers_are_null_empty_or_filled_as_given() -> None:
    for headers, text in ((None, b"null"), ({}, b"{}"), ({"b": 1, "a": "x"}, b'{"a":"x","b":1}')):
        raw = encode_signature(Signature(name="add", headers=headers))

        assert b'"Headers":' + text + b"," in raw
        assert decode_signature(raw).headers == headers


def test_html_and_line_separators_are_escaped_and_other_text_is_not() -> None:
    sig = Signature(name="a<b", args=[Arg("string", "<a&b>\u2028\u2029é\x7f\b")])

    raw = encode_signature(sig)

    assert rb'"Name":"a\u003cb"' in raw
    assert rb'"\u003ca\u0026b\u003e\u2028\u2029' + "é\x7f".encode() + rb'\b"' in raw
    assert decode_signature(raw) == sig


def test_text_reads_the_same_escaped_or_raw() -> None:
    found = [
        decode_signature(b'{"Name":"n","Args":[{"Type":"string","Value":"%s"}]}' % text)
        for text in ("<a&b>\u2028😀".encode(), rb"\u003ca\u0026b\u003e\u2028\ud83d\ude00")
    ]

    assert found[0].args == found[1].args == [Arg("string", "<a&b>\u2028😀")]


def test_a_whole_float_stays_one_where_no_type_says_so() -> None:
    untyped = {"a": 1.0, "b": [-0.0, 1e16, 2]}
    sig = Signature(
        name="add", args=[Arg("float64", 1.0), Arg("[]float64", [2.0])], headers=untyped
    )

    raw = encode_signature(sig)

    assert b'"Value":1},' in raw
    assert b'"Value":[2]}' in raw
    assert b'"Headers":{"a":1.0,"b":[-0,10000000000000000.0,2]}' in raw
    assert repr(decode_signature(raw).headers) == repr(untyped)


def test_fields_of_a_newer_peer_are_kept_behind_the_known_ones() -> None:
    raw = encode_signature(Signature(name="add"))[:-1] + b',"Zone":{"b":[1.5],"a":null}}'

    sig = decode_signature(raw)

    assert sig.extra == {"Zone": {"b": [1.5], "a": None}}
    assert encode_signature(sig) == raw.replace(b'{"b":[1.5],"a":null}', b'{"a":null,"b":[1.5]}')


@pytest.mark.parametrize("empty", ["null", "absent"])
def test_a_field_that_is_null_or_absent_has_its_default(empty: str) -> None:
    fields = {} if empty == "absent" else dict.fromkeys(KEYS)
    fields["Name"] = "add"

    assert decode_signature(json.dumps(fields).encode()) == Signature(name="add")


def test_keys_match_in_any_case() -> None:
    raw = b'\n{"name": "add", "ARGS": [{"type": "int64", "value": 1, "new": 2}], "uuid": "task_1"}'

    found = decode_signature(raw)

    assert found == Signature(name="add", uuid="task_1", args=[Arg("int64", 1)])


def test_a_message_of_2016_decodes_with_defaults() -> None:
    raw = (
        b'{"UUID":"task_1","Name":"add","RoutingKey":"","GroupUUID":"","GroupTaskCount":0,'
        b'"Args":[{"Type":"int64","Value":1}],"Headers":null,"Immutable":false,"OnSuccess":[],'
        b'"OnError":[{"Name":"log","Args":[]}],"ChordCallback":null}'
    )

    found = decode_signature(raw)

    expected = Signature(name="add", uuid="task_1", args=[Arg("int64", 1)])
    assert found == expected.replace(on_error=[Signature(name="log")])


def test_what_follows_the_first_value_is_ignored() -> None:
    raw = golden("signature_add")

    assert decode_signature(raw + b'{"Name":1} x') == decode_signature(raw)


def test_a_null_name_or_type_of_an_argument_is_an_empty_one() -> None:
    raw = b'{"Name":"add","Args":[{"Name":null,"Type":null,"Value":1},{"Type":"string"}]}'

    assert decode_signature(raw).args == [Arg("", 1), Arg("string", None)]


@pytest.mark.parametrize("text", [b"185135722552891243", b"9223372036854775808", b"-0", b"-0.5"])
def test_numbers_survive_a_hop_exactly(text: bytes) -> None:
    raw = golden("signature_add").replace(b'"Value":1}', b'"Value":' + text + b"}")

    assert encode_signature(decode_signature(raw)) == raw


def test_fifty_nested_callbacks_are_accepted_and_so_are_64() -> None:
    for depth in (50, 64):
        sig = nested(depth)

        assert decode_signature(encode_signature(sig)) == sig


def test_a_message_received_with_all_it_may_have_can_be_sent_again_for_a_retry() -> None:
    sig = Signature(
        name="add",
        headers={f"h{n}": "" for n in range(64)},
        retry_count=100,
        retry_timeout=39_088_169,
    )
    received = decode_signature(encode_signature(sig))

    received.headers = {**(received.headers or {}), ATTEMPT_HEADER: "2", ON_CRASH_HEADER: "fail"}
    received.retry_timeout = 63_245_986

    assert ATTEMPT_HEADER.encode() in encode_signature(received)


@pytest.mark.parametrize(
    ("sig", "expected"),
    [
        (Signature(name=""), "task '': Name is ''; expected 1 to 256 printable characters"),
        (
            Signature(name="a\x1b[31m"),
            r"task 'a\x1b[31m': Name is 'a\x1b[31m'; expected 1 to 256 printable characters",
        ),
        (Signature(name="add", priority=256), "task 'add': Priority is 256; expected 0 to 255"),
        (
            Signature(name="add", retry_count=101),
            "task 'add': RetryCount is 101; expected 0 to 100",
        ),
        (
            Signature(name="add", args=[Arg("string", "\ud800")]),
            (
                r"task 'add': the signature holds the lone surrogate '\ud800'; "
                "send text that UTF-8 can hold"
            ),
        ),
        (
            Signature(name="add", args=[Arg("float64", math.nan)]),
            "task 'add': nan cannot be written as JSON; send a finite number",
        ),
        (
            Signature(name="add", args=[Arg("string", b"x")]),
            "task 'add': a bytes is not a JSON value; see gotypes for what can be sent",
        ),
        (
            Signature(name="add", extra={"uuid": 1}),
            "task 'add': extra field 'uuid' is one of the 19 fields; set that one",
        ),
        (
            Signature(name="add", eta_ns=1 << 90),
            (
                "task 'add': 1237940039285380274 s since 1970 is not in the years 1 to 9999; "
                "choose one that is"
            ),
        ),
        (
            Signature(name="add", args=[Arg("int64", 1)] * 100_001),
            "task 'add': 100001 arguments; at most 100000 fit, send lists instead",
        ),
        (
            nested(65),
            (
                "task 'outer': too many callbacks; expected 64 below each other and 1000 in all at "
                "most. Send some of them from a task instead"
            ),
        ),
        (
            Signature(name="add", on_error=[Signature(name="x")] * 1000),
            (
                "task 'add': too many callbacks; expected 64 below each other and 1000 in all at "
                "most. Send some of them from a task instead"
            ),
        ),
    ],
)
def test_a_signature_no_worker_would_take_is_not_written(sig: Signature, expected: str) -> None:
    assert refusal(sig) == expected


@pytest.mark.parametrize(
    "changes",
    [{"retry_count": "1"}, {"uuid": 7}, {"immutable": "x"}, {"args": [1]}, {"priority": 1.5}],
)
def test_a_field_of_the_wrong_type_is_refused(changes: dict[str, Any]) -> None:
    sig = Signature(name="add").replace(**changes)

    assert refusal(sig).startswith("task 'add': a field of the signature has the wrong type: ")


def test_a_value_that_holds_itself_is_refused() -> None:
    headers: dict[str, Any] = {}
    headers["self"] = headers

    expected = "task 'add': a value holds itself or is nested deeper than 64 levels"
    assert refusal(Signature(name="add", headers=headers)) == expected


#: The first and the last time that can be written, in Unix nanoseconds.
FIRST_NS, LAST_NS = -62_135_596_800_000_000_000, 253_402_300_799_999_999_999
TEXT = st.text(max_size=8)
ID = st.sampled_from(["", "task_1", "group_9", "chord_{q}1"])
SCALAR = st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | TEXT | st.none()
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
VALUE = st.recursive(
    SCALAR | FLOAT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
#: Go writes 1e16 as 10000000000000000, which is that float again only to who knows it is one.
ARG = st.builds(Arg, st.sampled_from(sorted(gotypes.TYPES)), VALUE, TEXT).filter(
    lambda arg: "float" not in arg.type
) | st.builds(Arg, st.just("float64"), st.floats(-(2.0**53), 2.0**53), TEXT)
SIGNATURE: st.SearchStrategy[Signature] = st.recursive(
    st.builds(
        Signature,
        name=st.text("abc.:_- é<", min_size=1, max_size=8),
        args=st.lists(ARG, max_size=3),
        uuid=ID,
        routing_key=st.sampled_from(["", "machinery_tasks", "q:1"]),
        eta_ns=st.none() | st.integers(FIRST_NS, LAST_NS),
        group_uuid=ID,
        group_task_count=st.integers(0, 1_000_000),
        headers=st.none() | st.dictionaries(TEXT, VALUE, max_size=3),
        priority=st.integers(0, 255),
        immutable=st.booleans(),
        retry_count=st.integers(0, 100),
        retry_timeout=st.integers(0, 100),
        broker_message_group_id=TEXT,
        ignore_when_task_not_registered=st.booleans(),
        extra=st.none() | st.dictionaries(st.text("xyz", min_size=1), VALUE, min_size=1),
    ),
    lambda inner: st.builds(
        Signature,
        name=st.just("outer"),
        on_success=st.lists(inner, max_size=2),
        on_error=st.lists(inner, max_size=2),
        chord_callback=st.none() | inner,
    ),
    max_leaves=5,
)  # fmt: skip


@given(SIGNATURE)
def test_a_signature_is_read_as_written(sig: Signature) -> None:
    raw = encode_signature(sig)

    found = decode_signature(raw)

    assert found == sig
    assert encode_signature(found) == raw


def test_ten_thousand_signatures_lose_no_bit_of_a_number() -> None:
    # Plain and fast, where the property above looks for odd shapes: 10,000 of the usual ones.
    rng = random.Random(20_261_120)  # noqa: S311 - seeded, so that a failure comes back
    for n in range(10_000):
        number = struct.unpack("<d", rng.randbytes(8))[0]
        number = number if math.isfinite(number) else -0.0
        whole = rng.randrange(-(1 << 63), 1 << 64) >> rng.randrange(64)
        sig = Signature(
            name=f"task{n % 7}",
            uuid=f"task_{n}",
            args=[
                Arg("float64", number),
                Arg("uint64", whole & ((1 << 64) - 1)),
                Arg("[]float64", [number, 0.1]),
            ],
            headers={} if n % 3 else {"n": whole},
            retry_count=n % 4,
            on_success=[Signature(name="next", args=[Arg("int64", whole)])] if n % 5 == 0 else [],
        )

        found = decode_signature(encode_signature(sig))

        back = [gotypes.decode(arg.type, arg.value) for arg in found.args]
        assert struct.pack("<d", back[0]) == struct.pack("<d", number)
        assert back == [number, whole & ((1 << 64) - 1), [number, 0.1]]
        assert found.replace(args=[]) == sig.replace(args=[])
