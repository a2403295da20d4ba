"""Shots of chords -> script calls. Pure: nothing is sent here."""

from __future__ import annotations

from typing import Any

from machine import keys
from machine.broker.redis_moves import (
    Terms,
    fallen_extras,
    follow_up_extras,
    member_extras,
)
from machine.connection_link import Command, script
from machine.ports.moves import ChordShot
from machine.wire.limits import CHORD_MUTEX


def shot_command(shot: ChordShot, terms: Terms) -> Command:
    """Return the call of ``fire_chord.lua`` that fires this chord."""
    chords = keys.chords(shot.home)
    mutex = CHORD_MUTEX if shot.shared else chords
    names: list[Any] = [chords, shot.group_uuid, terms.delayed_key, mutex]
    failed = int(bool(shot.fallen))
    args: list[Any] = [shot.group_uuid, terms.kept_s, terms.pending_s, shot.meta, failed]
    args.append(int(shot.shared))
    extras = [
        *follow_up_extras(shot.messages),
        *fallen_extras(shot.fallen),
        *member_extras(shot.members),
    ]
    for kind, its_keys, words in extras:
        names += its_keys
        args += (kind, *words)
    return script("fire_chord").call(names, args)
