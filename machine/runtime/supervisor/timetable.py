"""
How a child tells its supervisor which tasks are periodic.

The supervisor imports no task, so that no code of yours can stall its
heartbeat. Each child has imported them; it reports its timetable over a pipe.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple, get_args

from machine.periodic.entries import CatchUp, Entry, Kind, Outline, PlannedGroup
from machine.wire.messages import decode_signature, encode_signature
from machine.wire.signature import Signature

_SEP, _MOST_BYTES = "\x1f", 2**29


# -- between processes -------------------------------------------------------------------------
def written(entries: Iterable[Entry]) -> bytes:
    """Return entries as lines of text that `read` understands; the last line is ``end``."""
    lines: list[bytes] = []
    for entry in entries:
        words = (entry.kind, entry.name, entry.spec, entry.tz, entry.catch_up)
        head = _SEP.join(("entry", *words, "1" if entry.overlap else ""))
        lines.append(head.encode())
        lines += [b"signature" + _SEP.encode() + encode_signature(s) for s in entry.signatures]
        if entry.callback is not None:
            lines.append(b"callback" + _SEP.encode() + encode_signature(entry.callback))
        if entry.outline is not None:
            lines.append(_SEP.join(("tasks", *entry.outline.uuids)).encode())
            lines += [
                _SEP.join(("group", "1" if at_once else "", uuid, *members)).encode()
                for uuid, members, at_once in entry.outline.groups
            ]
    return b"\n".join([*lines, b"end\n"])


def read(text: bytes) -> list[Entry]:
    """Return the entries of which `written` made this text."""
    drafts: list[_Draft] = []
    for line in text.splitlines():
        word, _, rest = line.partition(_SEP.encode())
        if word == b"entry":
            drafts.append(_Draft(rest.decode().split(_SEP), [], [], [], []))
        elif word == b"signature":
            drafts[-1].signatures.append(decode_signature(rest, most_bytes=_MOST_BYTES))
        elif word == b"callback":
            drafts[-1].callbacks.append(decode_signature(rest, most_bytes=_MOST_BYTES))
        elif word == b"tasks":
            drafts[-1].uuids.extend(rest.decode().split(_SEP))
        elif word == b"group":
            at_once, uuid, *members = rest.decode().split(_SEP)
            drafts[-1].groups.append(PlannedGroup(uuid, tuple(members), bool(at_once)))
    return [draft.entry() for draft in drafts]


class _Draft(NamedTuple):
    """An entry whose lines are still being read."""

    words: list[str]
    signatures: list[Signature]
    callbacks: list[Signature]
    uuids: list[str]
    groups: list[PlannedGroup]

    def entry(self) -> Entry:
        kind, name, spec, tz, catch_up, overlap = self.words
        return Entry(
            name=name,
            spec=spec,
            signatures=tuple(self.signatures),
            kind=next(k for k in get_args(Kind) if k == kind),
            callback=self.callbacks[0] if self.callbacks else None,
            catch_up=next(c for c in get_args(CatchUp) if c == catch_up),
            overlap=bool(overlap),
            tz=tz,
            outline=Outline(tuple(self.uuids), tuple(self.groups)) if self.uuids else None,
        )


#: What a whole report ends with.
_REPORT_END = b"end\n"


class Inbox:
    """
    Timetables that children report, each over a pipe of its own; the latest one counts.

    A supervisor imports no task, so that nothing of yours can stall its heartbeat; a child has
    imported them anyway. A report that ends in the middle is no report.
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
        """Return the timetable, with what has come in since."""
        for end in list(self._unread):
            self._read(end)
        return self._entries

    def _read(self, end: int) -> None:
        try:
            while data := os.read(end, 65_536):
                self._unread[end] += data
        except BlockingIOError:
            if not self._unread[end].endswith(_REPORT_END):
                return
        os.close(end)
        report = self._unread.pop(end)
        if report.endswith(_REPORT_END):
            self._entries = read(bytes(report))

    def close(self) -> None:
        """Close what is still open."""
        while self._unread:
            os.close(self._unread.popitem()[0])


def report(out: int, entries: Sequence[Entry]) -> None:
    """Write a timetable to a descriptor of `Inbox.open`, and close it; for the child."""
    with contextlib.suppress(BrokenPipeError), os.fdopen(out, "wb") as pipe:
        pipe.write(written(entries))
