"""Every argument type, at its limits, in both directions and read back by its sender."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.interop.callers import Job, narrow
from tests.interop.crossing import GO_QUEUE, PY_QUEUE, Crossing

FLOAT32_MOST, FLOAT32_LEAST = narrow(3.4028234663852886e38), narrow(1e-45)
LIMITS: dict[str, list[Any]] = {
    "bool": [True, False],
    "int": [-(2**63), 2**63 - 1, 185135722552891243],
    "int8": [-(2**7), 2**7 - 1],
    "int16": [-(2**15), 2**15 - 1],
    "int32": [-(2**31), 2**31 - 1],
    "int64": [-(2**63), 2**63 - 1, 185135722552891243, 0],
    "uint": [0, 2**64 - 1],
    "uint8": [0, 2**8 - 1],
    "uint16": [0, 2**16 - 1],
    "uint32": [0, 2**32 - 1],
    "uint64": [0, 2**64 - 1, 9223372036854775808],
    "float32": [0.5, 1.0, narrow(0.1), FLOAT32_MOST, -FLOAT32_MOST, FLOAT32_LEAST],
    "float64": [0.1, 1.0, 1.7976931348623157e308, -5e-324, 1e21, 1e-7, 123456789.0],
    "string": ["", "<a&b>\u2028\u2029", 'quote " and \\', "\x00\n\t\x7f", "é€𝄞", "x" * 50_000],
}
SCALARS = list(LIMITS)
LIMITS |= {f"[]{kind}": [[], LIMITS[kind], LIMITS[kind][:1]] for kind in SCALARS}
# What no int64 holds has a test of its own.
LIMITS["[]uint"] = LIMITS["[]uint64"] = [[], [0, 2**63 - 1], [7]]
LIMITS["[]uint8"] = LIMITS["[]byte"] = [b"", b"hi\xff", bytes(range(256)) * 20]
LIMITS["[]string"] = [[], ["", "<&>", "é\u2028"], [""]]

CASES = [(kind, value) for kind, values in LIMITS.items() for value in values]
AT_LEAST = 1000


def jobs(queue: str) -> list[tuple[Job, Any]]:
    """Return at least a thousand jobs that give back what they take, with what that is."""
    rounds = -(-AT_LEAST // len(CASES))
    return [
        (Job(name=f"echo_{kind.replace('[]', 'slice_')}", args=[(kind, value)], queue=queue), value)
        for kind, value in itertools.chain.from_iterable(itertools.repeat(CASES, rounds))
    ]


def test_all_29_types_are_here() -> None:
    from machine.wire.gotypes import TYPES

    assert LIMITS.keys() == TYPES


@pytest.mark.parametrize("sender", ["go", "py"])
@pytest.mark.parametrize("queue", [GO_QUEUE, PY_QUEUE], ids=["to-go", "to-py"])
def test_every_type_goes_there_and_back(lively: Crossing, sender: str, queue: str) -> None:
    caller = lively.caller(sender)
    sent = jobs(queue)
    uuids = caller.send(*(job for job, _ in sent))

    answers = caller.get(uuids)

    wrong = [
        (job.args[0][0], str(value)[:60], answer)
        for (job, value), answer in zip(sent, answers, strict=True)
        if answer.values != [value]
    ]
    assert wrong[:3] == []
    assert len(answers) >= AT_LEAST


@pytest.mark.parametrize("kind", ["uint", "uint64"])
def test_go_reads_a_list_beyond_int64_that_python_returned(lively: Crossing, kind: str) -> None:
    value = [0, 9223372036854775808, 2**64 - 1]
    job = Job(name=f"echo_slice_{kind}", args=[(f"[]{kind}", value)], queue=PY_QUEUE)

    [answer] = lively.go.get(lively.go.send(job))

    assert answer.error == ""
    assert answer.values == [value]


@pytest.mark.parametrize("kind", ["uint", "uint64"])
@pytest.mark.parametrize("sender", ["go", "py"])
def test_python_reads_a_list_beyond_int64_that_go_returned(
    lively: Crossing, sender: str, kind: str
) -> None:
    value = [0, 9223372036854775808, 2**64 - 1]
    job = Job(name=f"echo_slice_{kind}", args=[(f"[]{kind}", value)], queue=GO_QUEUE)

    [answer] = lively.py.get(lively.caller(sender).send(job))

    assert answer.values == [value]
