"""
Every Redis key: its name, its type and who owns it.

Machinery's keys are bare (list ``machinery_tasks``, string ``task_…``); ours
are ``{queue}:…``. A bare name and the same name in braces hash to one cluster
slot, so a queue and all that belongs to it live together. `docs/redis.md` is
the same table for people.
"""

from __future__ import annotations

import hashlib
import re

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def hop(queue: str) -> str:
    """LIST: where a blocking move lands; owned by nobody, the next claim takes from it first."""
    return f"{{{queue}}}:hop"


def workers(queue: str) -> str:
    """ZSET: worker id -> lease deadline in ms of Redis's clock (the worker's *stamp*)."""
    return f"{{{queue}}}:workers"


def held(queue: str, worker_id: str) -> str:
    """HASH: claim id -> raw message. A field here *is* the ownership of that message."""
    return f"{{{queue}}}:w:{worker_id}"


def sequence(queue: str) -> str:
    """STRING: last fence given out; never behind Redis's clock in µs."""
    return f"{{{queue}}}:seq"


def redelivered(queue: str) -> str:
    """HASH: sha1 of a message -> how many workers died holding it."""
    return f"{{{queue}}}:redel"


def parked(queue: str) -> str:
    """HASH: sha1 of a message nobody knew the task of -> how often it was put back."""
    return f"{{{queue}}}:parked"


def dead(queue: str) -> str:
    """HASH: dead letter id -> envelope."""
    return f"{{{queue}}}:dlq"


def dead_index(queue: str) -> str:
    """ZSET: dead letter id -> ms when it was buried."""
    return f"{{{queue}}}:dlq:ix"


def chords(queue: str) -> str:
    """HASH: group uuid -> callback signature; armed and not yet fired."""
    return f"{{{queue}}}:chords"


def group_done(queue: str, group_uuid: str) -> str:
    """SET with TTL: ids of the members that ended."""
    return f"{{{queue}}}:g:{group_uuid}"


def canceled(queue: str) -> str:
    """ZSET: id of a canceled task that has not ended -> Unix ms until which the mark is kept."""
    return f"{{{queue}}}:canceled"


def unique(queue: str, key: str) -> str:
    """STRING: id of the last task sent with this key; one key's name is its digest if not plain."""
    if _PLAIN_KEY.fullmatch(key) is None:
        key = f"#{hashlib.sha256(key.encode()).hexdigest()}"
    return f"{{{queue}}}:u:{key}"


def periodic(queue: str) -> str:
    """HASH: entry of the timetable -> mark: the times last served and last sent for, Unix ms."""
    return f"{{{queue}}}:periodic"


def periodic_off(queue: str) -> str:
    """HASH: entry of the timetable that is canceled -> Unix ms when that was done."""
    return f"{{{queue}}}:periodic:off"
