"""Moves of claimed messages, and fired chords, as calls of scripts; verdicts from their answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from machine.ports.moves import (
    ChordShot,
    Claim,
    Exchange,
    Finish,
    Member,
    Message,
    Move,
    Park,
    Release,
    Retry,
    Start,
    Verdict,
)
from machine.redis import keys
from machine.redis.link import Command, script
from machine.wire.limits import CHORD_MUTEX

#: Moves in one script call: a bound on how long the server is busy with it (about 5 ms).
MOST_MOVES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptContext:
    """
    What every call needs to know.

    Attributes:
        delayed_key: The database's delayed set.
        kept_s: Seconds a final state lives.
        pending_s: Seconds a state that is not final lives.
        created: ``"CreatedAt":"…"`` for a state whose first form is gone.
        canceled_key: The set of canceled tasks' marks.
    """

    delayed_key: str
    kept_s: int
    pending_s: int
    created: str
    canceled_key: str


def digest_of(message: bytes) -> str:
    """Return the name under which the scripts count for these bytes."""
    return hashlib.sha1(message, usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class Call:
    """One script call, and which of the moves it carries, in order."""

    command: Command
    positions: list[int]


def message_words(messages: Iterable[Message]) -> tuple[list[Any], list[Any]]:
    """Return the KEYS (state, ready) and ARGV (payload, pending, due) of messages."""
    names: list[Any] = []
    args: list[Any] = []
    for message in messages:
        names += (message.uuid if message.pending else message.queue, message.queue)
        args += (message.payload, message.pending, message.due_ns)
    return names, args


def build_calls(moves: Sequence[Move], context: ScriptContext) -> list[Call]:
    """Return the script calls that carry out these moves."""
    batches: dict[tuple[type, str, str], list[int]] = {}
    for position, move in enumerate(moves):
        claim = move.claim
        batches.setdefault((type(move), claim.worker_id, claim.queue), []).append(position)
    built = []
    for (kind, worker_id, queue), positions in batches.items():
        build = _BUILDERS[kind]
        for start in range(0, len(positions), MOST_MOVES):
            some = positions[start : start + MOST_MOVES]
            held = keys.held(queue, worker_id)
            command = build([moves[i] for i in some], queue, held, context)
            built.append(Call(command, some))
    return built


def read_verdicts(built: Sequence[Call], answers: Sequence[Any], count: int) -> list[Verdict]:
    """Return one verdict for each of ``count`` moves, in the order they were given."""
    verdicts = [Verdict.FENCED] * count
    for call, answer in zip(built, answers, strict=True):
        for position, code in zip(call.positions, answer, strict=True):
            verdicts[position] = _VERDICTS[code]
    return verdicts


def read_claims(
    reply: list[Any], worker_id: str, queues: Sequence[str], nonce: str, exchange: Exchange
) -> None:
    """Add what ``claim.lua`` returned to the exchange."""
    exchange.marks = reply[1]
    for queue, (held, fence, payloads, counts) in zip(queues, reply[2:], strict=True):
        exchange.held[queue] = None if held < 0 else held
        first = int(fence) + 1
        exchange.claims += [
            Claim(f"{first + i}.{nonce}", worker_id, queue, payload, count)
            for i, (payload, count) in enumerate(zip(payloads, counts, strict=True))
        ]


def _starts(moves: Sequence[Start], _queue: str, held: str, context: ScriptContext) -> Command:
    args: list[Any] = [context.pending_s, context.created]
    for move in moves:
        args += (move.claim.id, move.state)
    return script("start").call([held, *(m.state_key for m in moves)], args)


def _finishes(moves: Sequence[Finish], queue: str, held: str, context: ScriptContext) -> Command:
    names: list[Any] = [
        held,
        keys.redelivered(queue),
        keys.dead(queue),
        keys.dead_index(queue),
        context.delayed_key,
        context.canceled_key,
        *[m.state_key or held for m in moves],
    ]
    args: list[Any] = [len(moves), context.kept_s, context.created, context.pending_s]
    args += [m.claim.id for m in moves]
    args += [m.state if m.state_key else b"" for m in moves]
    for number, move in enumerate(moves, start=1):
        if move.follow_ups or move.members or move.fallen or move.letter:
            _extras(number, move, names, args)
    return script("finish").call(names, args)


def _extras(number: int, move: Finish, names: list[Any], args: list[Any]) -> None:
    extras = [
        *follow_up_extras(move.follow_ups),
        *fallen_extras(move.fallen),
        *member_extras(move.members),
    ]
    for kind, its_keys, words in extras:
        names += its_keys
        args += (kind, number, *words)
    if move.letter:
        args += ("L", number, *move.letter)


#: A part of a script call: its kind, its KEYS, its ARGV behind the kind.
Extra = tuple[str, Sequence[Any], Sequence[Any]]


def follow_up_extras(messages: Iterable[Message]) -> list[Extra]:
    """Return the parts that queue messages."""
    return [("F", *message_words([message])) for message in messages]


def fallen_extras(fallen: Iterable[tuple[str, bytes]]) -> list[Extra]:
    """Return the parts that record tasks which will never run."""
    return [("S", (uuid,), (state,)) for uuid, state in fallen]


def member_extras(members: Iterable[Member]) -> list[Extra]:
    """Return the parts that count members of chords."""
    return [
        (
            "M",
            (
                keys.group_done(member.home, member.group_uuid),
                keys.chords(member.armed_in or member.home),
                member.group_uuid,
            ),
            (member.group_uuid, member.uuid, member.size, member.callback),
        )
        for member in members
    ]


def _retries(moves: Sequence[Retry], queue: str, held: str, context: ScriptContext) -> Command:
    names: list[Any] = [held, keys.redelivered(queue), context.delayed_key, context.canceled_key]
    args: list[Any] = [context.pending_s, context.created]
    for move in moves:
        names += (move.state_key or held, move.queue)
        head = move.state if move.state_key else b""
        args += (move.claim.id, head, move.payload, move.due_ns, move.attempt)
    return script("retry").call(names, args)


def _releases(moves: Sequence[Release], queue: str, held: str, _terms: ScriptContext) -> Command:
    # Oldest first, whatever the order asked for: the script puts the oldest at the head.
    return script("release").call([held, queue], [m.claim.id for m in moves])


def _parks(moves: Sequence[Park], queue: str, held: str, context: ScriptContext) -> Command:
    names = [held, keys.parked(queue), context.delayed_key]
    return script("park").call(names, [m.claim.id for m in moves])


_BUILDERS: dict[type, Callable[[Any, str, str, ScriptContext], Command]] = {
    Start: _starts,
    Finish: _finishes,
    Retry: _retries,
    Release: _releases,
    Park: _parks,
}
_VERDICTS = {int(v): v for v in Verdict}


def shot_command(shot: ChordShot, context: ScriptContext) -> Command:
    """Return the call of ``fire_chord.lua`` that fires this chord."""
    chords = keys.chords(shot.home)
    mutex = CHORD_MUTEX if shot.shared else chords
    names: list[Any] = [chords, shot.group_uuid, context.delayed_key, mutex]
    failed = int(bool(shot.fallen))
    args: list[Any] = [shot.group_uuid, context.kept_s, context.pending_s, shot.meta, failed]
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
