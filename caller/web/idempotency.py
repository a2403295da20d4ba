"""
``Idempotency-Key``: a request with a known key is not sent again, by any replica.

All ids of a request are derived from its key, its client and its body, and Redis
queues nothing twice under one id. A group record keeps which body a key belongs
to: the first write wins, so no lock is needed.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
import uuid as uuids
from typing import Any, Final

from caller.web.problems import Problem
from caller.web.responses import json_bytes
from machine.ports.backend import Backend
from machine.wire.signature import GroupMeta
from machine.wire.text import format_time, parse_time, shorten

_SPACE: Final = uuids.UUID("5f0f3ad6-3b70-5f6b-8e0f-6a3f6e3f2a11")
_KEY: Final = re.compile(r"[!-~]{1,255}")


def check_key(text: str) -> str:
    """Return a key as it is, without the quotes it may stand in; refuse what is none."""
    key = text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' else text
    if _KEY.fullmatch(key) is None:
        raise Problem(
            "bad-header",
            f"Idempotency-Key is {shorten(text)}; give 1 to 255 printable ASCII characters without "
            "spaces, new ones for each request.",
        )
    return key


def seed_of(key: str, subject: str, path: str, body: Any) -> uuids.UUID:
    """Return what the ids of a request are made of."""
    content = hashlib.sha256(json_bytes([path, body])).hexdigest()
    return uuids.uuid5(_SPACE, f"{subject} {content} {key}")


class IdempotencyKeys:
    """
    Records of which request each key belongs to.

    Args:
        backend: Where the records are.
        kept_s: Seconds that final states are kept.
    """

    def __init__(self, backend: Backend, kept_s: int) -> None:
        self._backend = backend
        self._kept_s = kept_s

    async def record(self, key: str, subject: str, seed: uuids.UUID, first: str) -> None:
        """
        Record that a key belongs to the request of this seed, before it is sent.

        Args:
            key: The client's key.
            subject: Who the client is.
            seed: What the request's ids are made of.
            first: Id of a task that is sent at once.

        Raises:
            Problem: It belongs to another request; or to this one, of which nothing is
                kept any more, so that nobody could say whether it ran.
        """
        name = f"group_{uuids.uuid5(_SPACE, f'{subject} key {key}')}"
        now_ns = time.time_ns()
        mine = GroupMeta(
            group_uuid=name, task_uuids=[str(seed)], created_at=format_time(now_ns), nested=True
        )
        await self._backend.arecord_group(mine)
        found = await asyncio.to_thread(self._backend.read_group, name)
        if found is None or found == mine:
            return
        if found.task_uuids != mine.task_uuids:
            raise Problem(
                "key-reused",
                f"Idempotency-Key {key!r} was sent with another body or to another path; give "
                "each request a key of its own.",
            )
        age_s = (now_ns - parse_time(found.created_at)) / 1e9
        if age_s >= self._kept_s and (await self._backend.aread([first]))[0] is None:
            raise Problem(
                "key-expired",
                f"Idempotency-Key {key!r} was first sent at {found.created_at}, and results are "
                f"kept for {self._kept_s} s. Use a new key if it is to run again.",
            )
