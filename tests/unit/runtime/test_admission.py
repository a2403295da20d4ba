"""Intake: which claimed messages run, and which end without."""

from __future__ import annotations

from typing import Any

from machine.execution import Failed
from machine.ports.moves import Claim
from machine.registry.task import task
from machine.runtime.child.admission import split_expired
from machine.runtime.child.pool import Job
from machine.wire.signature import Signature

NOON_NS = 1_795_176_000 * 1_000_000_000
NOON = "2026-11-20T12:00:00Z"


@task
def note() -> None: ...


def job(number: int, **headers: Any) -> Job:
    claim = Claim(f"{number}.n", "w", "q", b"")
    return Job(claim, Signature(name="note", uuid=f"task_{number}", headers=headers), note)


def test_jobs_whose_time_has_passed_are_parted_from_the_others_in_order() -> None:
    jobs = [job(1), job(2, **{"x-expires-at": NOON}), job(3, **{"x-expires-at": "soon"}), job(4)]

    in_time, too_late = split_expired(jobs, NOON_NS)

    assert in_time == [jobs[0], jobs[2], jobs[3]]
    assert too_late == [(jobs[1], Failed(f"expired: it was to start before {NOON}"))]


def test_a_job_whose_time_has_not_come_runs() -> None:
    jobs = [job(1, **{"x-expires-at": NOON})]

    assert split_expired(jobs, NOON_NS - 1) == (jobs, [])
