"""
Reports the timetable from the children of a worker to their supervisor.

The supervisor imports no task, so that none of your code can stall its
heartbeat. Its children have imported them all: each child writes the entries
that it found to a pipe, a line of JSON for each, and a last line ``end``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

from machine.periodic.entries import Entry, Outline, PlannedGroup
from machine.wire.messages import decode_signature, encode_signature
from machine.wire.signature import Signature
from machine.wire.text import format_value, parse_json

#: Entries may be larger than messages: a workflow carries all that follows.
_MOST_BYTES = 2**29
_END = b"end\n"
#: Fields of an entry that stand in its line as they are.
_PLAIN = ("name", "spec", "kind", "catch_up", "overlap", "tz")


def encode_timetable(entries: Iterable[Entry]) -> bytes:
    """Return entries as bytes for `decode_timetable`."""
    return b"".join([*(_encode(entry) + b"\n" for entry in entries), _END])


def decode_timetable(report: bytes) -> list[Entry]:
    """Return the entries of a whole report of `encode_timetable`."""
    return [_decode(line) for line in report.removesuffix(_END).splitlines()]


def _encode(entry: Entry) -> bytes:
    fields: dict[str, Any] = {name: getattr(entry, name) for name in _PLAIN}
    fields["signatures"] = [encode_signature(one).decode() for one in entry.signatures]
    fields["callback"] = entry.callback and encode_signature(entry.callback).decode()
    fields["outline"] = entry.outline and [
        list(entry.outline.uuids),
        [[group_uuid, list(uuids), at_once] for group_uuid, uuids, at_once in entry.outline.groups],
    ]
    return format_value(fields).encode()


def _decode(line: bytes) -> Entry:
    fields = parse_json(line, "an entry of the timetable")
    signatures = [_decode_signature(text) for text in fields["signatures"]]
    callback = fields["callback"] and _decode_signature(fields["callback"])
    outline = None
    if fields["outline"]:
        uuids, groups = fields["outline"]
        planned = [PlannedGroup(uuid, tuple(members), at_once) for uuid, members, at_once in groups]
        outline = Outline(tuple(uuids), tuple(planned))
    return Entry(
        **fields | {"signatures": tuple(signatures), "callback": callback, "outline": outline}
    )


def _decode_signature(text: str) -> Signature:
    return decode_signature(text.encode(), most_bytes=_MOST_BYTES)


class TimetableInbox:
    """
    The supervisor's end of the pipes: the timetable of the child that reported last.

    A child may die while it writes. A report without its last line is ignored.
    """

    def __init__(self) -> None:
        self._unread: dict[int, bytearray] = {}
        self._entries: list[Entry] = []

    def open(self) -> int:
        """Return the descriptor that a child to be forked writes its report to."""
        end, out = os.pipe()
        os.set_blocking(end, False)
        self._unread[end] = bytearray()
        return out

    def entries(self) -> list[Entry]:
        """Read what has come in, without waiting, and return the timetable."""
        for end in list(self._unread):
            self._read(end)
        return self._entries

    def _read(self, end: int) -> None:
        try:
            while data := os.read(end, 65_536):
                self._unread[end] += data
        except BlockingIOError:
            if not self._unread[end].endswith(_END):
                return
        os.close(end)
        report = self._unread.pop(end)
        if report.endswith(_END):
            self._entries = decode_timetable(bytes(report))

    def close(self) -> None:
        while self._unread:
            os.close(self._unread.popitem()[0])


def send_timetable(out: int, entries: Sequence[Entry]) -> None:
    """Write a report to a descriptor of `TimetableInbox.open`, and close it; for the child."""
    # The supervisor may be gone; then this process ends too.
    with contextlib.suppress(BrokenPipeError), os.fdopen(out, "wb") as pipe:
        pipe.write(encode_timetable(entries))
