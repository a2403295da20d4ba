"""
One open connection, and what is sent over it: commands, and our Lua scripts.

A link knows nothing of addresses: somebody else makes its connections. It
repeats nothing but scripts that the server has forgotten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import redis
from hiredis import pack_command
from redis.exceptions import NoScriptError

from machine.errors import BrokerUnavailable
from machine.redis.errors import error_of

if TYPE_CHECKING:
    from redis.connection import Connection

#: One command, as the words that go to the server.
Command = tuple[Any, ...]


class Script:
    """
    One Lua file of ``redis/lua``, sent by its digest.

    Args:
        name: File name without ``.lua``.
    """

    def __init__(self, name: str) -> None:
        path = resources.files("machine.redis").joinpath("lua", f"{name}.lua")
        self.name = name
        self.text = path.read_text(encoding="utf-8")
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[Any], args: Sequence[Any]) -> Command:
        """Return the command that runs this script."""
        return ("EVALSHA", self.digest, len(keys), *keys, *args)


@cache
def script(name: str) -> Script:
    """Return the script of this name, read once."""
    return Script(name)


class Push(list[bytes]):
    """Keys that changed since they were read on a tracking link; empty = all of them."""

    @classmethod
    def of(cls, message: list[Any]) -> Push:
        """Make one of the server's ``invalidate`` message."""
        return cls(message[1] or ())


class Link:
    """
    One open connection, for one thread at a time.

    An error of the transport closes it; the next use opens it again, asking
    Sentinel anew who is master.
    """

    def __init__(self, make: Callable[[], Connection], where: str) -> None:
        self._make = make
        self._where = where
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        """Return the connected redis-py connection."""
        if self._connection is None:
            try:
                connection = self._make()
                connection.connect()  # type: ignore[no-untyped-call]
            except BrokerUnavailable:
                raise  # of the sentinels; an OSError too, by its base
            except (redis.RedisError, OSError) as error:
                raise error_of(error, self._where) from error
            self._connection = connection
        return self._connection

    def _require_open(self) -> Connection:
        """Return the connection that was sent something; another one would never answer."""
        if self._connection is None:
            message = f"The connection to Redis at {self._where} was lost."
            raise BrokerUnavailable(message)
        return self._connection

    def send(self, commands: Sequence[Command]) -> None:
        """Send commands without reading their answers; opens the connection if need be."""
        connection = self.connection()
        try:
            # One write: each would wake the server, which would then find half a script call.
            whole = b"".join(map(pack_command, commands))
            connection.send_packed_command([whole])  # type: ignore[no-untyped-call]
        except (redis.RedisError, OSError) as error:
            self.close()
            raise error_of(error, self._where) from error

    def receive(self) -> Any:
        """Read one answer. Error replies are returned as exceptions, not raised."""
        connection = self._require_open()
        try:
            return connection.read_response()
        except redis.ResponseError as error:
            return error
        except (redis.RedisError, OSError) as error:
            self.close()
            raise error_of(error, self._where) from error
        except BaseException:
            self.close()  # an interrupted read would answer the next command
            raise

    def track(self) -> bool:
        """
        Ask the server to tell when keys read on this link change.

        Needs a link of protocol 3. False where the server (or a proxy, or this
        user's ACL) refuses: then somebody has to look again.
        """
        self.send([TRACK])
        return accepts_tracking(self.receive(), self._where)

    def receive_push(self, *, is_there: bool = False) -> Any:
        """
        Read one answer or one `Push`, whichever comes first.

        Args:
            is_there: Whether `can_read` has just said so.

        Raises:
            TimeoutError: Nothing is there.
        """
        connection = self._require_open()
        if not (is_there or self.can_read()):
            raise TimeoutError
        try:
            return connection.read_response(push_request=True)
        except redis.ResponseError as error:
            return error
        except (redis.RedisError, OSError) as error:
            self.close()
            raise error_of(error, self._where) from error
        except BaseException:
            self.close()  # as in `receive`
            raise

    def execute(self, commands: Sequence[Command]) -> list[Any]:
        """
        Send all commands, then read all answers: one round trip.

        Scripts the server has forgotten (restart, failover, SCRIPT FLUSH) are
        loaded, and the commands that missed them are sent again.

        Raises:
            MachineError: As `error_of`, for the first command that failed.
        """
        self.send(commands)
        answers = [self.receive() for _ in commands]
        again, missed = resend_plan(commands, answers)
        if missed:
            self.send(again)
            fresh = [self.receive() for _ in again]
            raise_first_error(fresh[: -len(missed)], self._where)
            for i, answer in zip(missed, fresh[-len(missed) :], strict=True):
                answers[i] = answer
        return raise_first_error(answers, self._where)

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return int(self._require_open()._sock.fileno())  # type: ignore[attr-defined]  # noqa: SLF001 - no public way

    def can_read(self, timeout_s: float = 0.0) -> bool:
        """
        Say whether an answer (or the end of the connection) is there, or comes in time.

        The one method that may be called while another thread uses the link.
        """
        try:
            return bool(self._require_open().can_read(timeout_s))
        except (redis.RedisError, OSError, BrokerUnavailable):
            return True
        except (TypeError, ValueError):
            return True  # closed by another thread: redis-py then looks at a socket that is None

    def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()  # type: ignore[no-untyped-call]


#: Asks for a `Push` whenever a key changes that was read on this connection.
TRACK: Command = ("CLIENT", "TRACKING", "ON")


def accepts_tracking(answer: Any, where: str) -> bool:
    """Say whether the server tracks; raise where it could not decide just now."""
    if isinstance(answer, Exception):
        error = error_of(answer, where)
        if isinstance(error, BrokerUnavailable):
            raise error from answer
    return not isinstance(answer, Exception)


def resend_plan(
    commands: Sequence[Command], answers: Sequence[Any]
) -> tuple[list[Command], list[int]]:
    """
    Return what to send again, after every script, and the places of those answers.

    Every script, so that no server ever knows a claim and not the finish before it: sent again
    alone, that finish would come after the claim.
    """
    missed = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    return (load_commands() if missed else []) + [commands[i] for i in missed], missed


def raise_first_error(answers: list[Any], where: str) -> list[Any]:
    """Return the answers, or raise the first error among them in our terms."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise error_of(answer, where) from answer
    return answers


def load_commands() -> list[Command]:
    """Return the commands that teach a server every script."""
    return [("SCRIPT", "LOAD", s.text) for s in _all_scripts()]


@cache
def _all_scripts() -> list[Script]:
    folder = resources.files("machine.redis").joinpath("lua")
    return [script(f.name[:-4]) for f in folder.iterdir() if f.name.endswith(".lua")]
