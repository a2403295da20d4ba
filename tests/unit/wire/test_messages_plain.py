"""The short way to read a message agrees with the long one, whatever is done to the message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine.errors import WireError
from machine.wire.messages import decode_signature, encode_signature
from machine.wire.signature import Arg, Signature

ID = "0b1c2d3e-4f50-4a1b-8c2d-000000000001"
USUAL = Signature(
    name="add",
    uuid=f"task_{ID}",
    routing_key="q",
    args=[Arg("int64", 12), Arg("string", "x", "named")],
    headers={},
)
MEMBER = USUAL.replace(group_uuid=f"group_{ID}", group_task_count=3)


def read(raw: bytes) -> str:
    """Return what was read, so that 0 and -0.0 and 1 and True differ; "refused" for an error."""
    try:
        return repr(decode_signature(raw))
    except WireError:
        return "refused"


@given(
    raw=st.sampled_from([encode_signature(USUAL), encode_signature(MEMBER)]),
    at=st.integers(0, 330),
    length=st.integers(0, 12),
    text=st.text(alphabet='"\\{}[],:0123456789-.eE \ntrufalsnUaév', max_size=6),
)
def test_a_changed_message_is_read_the_same_both_ways(
    raw: bytes, at: int, length: int, text: str
) -> None:
    changed = raw[:at] + text.encode() + raw[at + length :]

    assert read(changed) == read(b" " + changed)


@pytest.mark.parametrize(
    "value",
    [
        *("0", "-0", "-1", "00", "1.0", "1e3", str(10**17), str(10**18), str(2**64), "true"),
        *("null", "[]", '""', '"é"', '"\\u00e9"', '"\\""', '1,"Value":2', "1 ", "1\n"),
    ],
)
def test_an_argument_of_any_kind_is_read_the_same_both_ways(value: str) -> None:
    changed = encode_signature(USUAL).replace(b'"Value":12', f'"Value":{value}'.encode())

    assert read(changed) == read(b" " + changed)


@pytest.mark.parametrize("count", ["0", "1", "1000000", "1000001", "01", "-1", "1.0", "1" * 19])
def test_the_size_of_a_group_is_read_the_same_both_ways(count: str) -> None:
    changed = encode_signature(MEMBER).replace(
        b'"GroupTaskCount":3', f'"GroupTaskCount":{count}'.encode()
    )

    assert read(changed) == read(b" " + changed)


@pytest.mark.parametrize("sig", [USUAL, MEMBER])
def test_the_usual_message_comes_back_as_it_was_sent(sig: Signature) -> None:
    assert decode_signature(encode_signature(sig)) == sig
