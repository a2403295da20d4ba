"""
From a Redis URL to answered commands.

This room opens connections (single server, unix socket, TLS, Sentinel), runs
our Lua scripts, and turns redis-py's errors into ours, once. redis-py's own
retries stay off: it would repeat an RPUSH whose reply was lost. We repeat
scripts only, and every script may be sent twice.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthorizationError, NoPermissionError, NoScriptError
from redis.retry import Retry
from redis.sentinel import Sentinel

from machine.errors import BrokerRefused, BrokerUnavailable, ConfigError, MachineError, QueueFull

if TYPE_CHECKING:
    from redis.connection import Connection

    from machine.redis_url import RedisAddress

#: One command, as the words that go to the server.
Command = tuple[Any, ...]

#: First words of error replies that pass by themselves: a failover, a start, a full disk, a script.
_PASSING = frozenset(
    {
        *("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"),
        *("NOREPLICAS", "MISCONF", "BUSY", "UNBLOCKED"),
    }
)


class Script:
    """
    One Lua file of ``broker/lua``, sent by its digest.

    Args:
        name: File name without ``.lua``.
    """

    def __init__(self, name: str) -> None:
        path = resources.files("machine.broker").joinpath("lua", f"{name}.lua")
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


def error_of(error: Exception, where: str) -> MachineError:
    """
    Translate a redis-py error.

    A server that is away, starting or failing over gives `BrokerUnavailable`;
    one that is out of memory `QueueFull`; anything it refuses for good
    (password, permission, wrong type) `BrokerRefused`.
    """
    text = str(error)
    if isinstance(error, redis.OutOfMemoryError) or text.startswith("OOM"):
        return QueueFull(f"Redis at {where} is out of memory: {text}. Raise maxmemory.")
    if isinstance(error, redis.AuthenticationError | AuthorizationError):
        return BrokerRefused(
            f"Redis at {where} refused the login: {text}. Check user and password."
        )
    word = getattr(error, "status_code", None) or text.partition(" ")[0]
    passing = isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError)
    if passing or word in _PASSING:
        return BrokerUnavailable(f"Redis at {where} did not answer: {text}")
    if isinstance(error, NoPermissionError):
        return BrokerRefused(f"Redis at {where}: {text}. Grant it to this user's ACL.")
    return BrokerRefused(
        f"Redis at {where} refused a command: {word} {text}".replace(f"{word} {word}", word)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds to wait for the server, and how long a caller keeps trying."""

    connect_s: float = 2.0
    answer_s: float = 5.0
    #: How long a command is tried again after the server went away; 0 = once.
    retry_s: float = 30.0


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
            except (redis.RedisError, OSError) as error:
                raise error_of(error, self._where) from error
            self._connection = connection
        return self._connection

    def _opened(self) -> Connection:
        """Return the connection that was sent something; another one would never answer."""
        if self._connection is None:
            message = f"The connection to Redis at {self._where} was lost."
            raise BrokerUnavailable(message)
        return self._connection

    def send(self, commands: Sequence[Command]) -> None:
        """Send commands without reading their answers; opens the connection if need be."""
        connection = self.connection()
        try:
            packed = connection.pack_commands(commands)  # type: ignore[no-untyped-call]
            # One write: each would wake the server, which would then find half a script call.
            whole = [b"".join(packed)] if len(packed) > 1 else packed
            connection.send_packed_command(whole)  # type: ignore[no-untyped-call]
        except (redis.RedisError, OSError) as error:
            self.close()
            raise error_of(error, self._where) from error

    def receive(self) -> Any:
        """Read one answer. Error replies are returned as exceptions, not raised."""
        connection = self._opened()
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
        self.send([("CLIENT", "TRACKING", "ON")])
        return not isinstance(self.receive(), Exception)

    def receive_push(self, timeout_s: float) -> Any:
        """
        Read one answer or one `Push`, whichever comes first.

        Raises:
            TimeoutError: Nothing came within ``timeout_s`` seconds.
        """
        connection = self._opened()
        try:
            there = connection.can_read(timeout_s)
            answer = connection.read_response(push_request=True) if there else None
        except redis.ResponseError as error:
            return error
        except (redis.RedisError, OSError) as error:
            self.close()
            raise error_of(error, self._where) from error
        if not there:
            raise TimeoutError
        return answer

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
        again, missed = forgotten(commands, answers)
        if missed:
            self.send(again)
            fresh = [self.receive() for _ in again][-len(missed) :]
            for i, answer in zip(missed, fresh, strict=True):
                answers[i] = answer
        return checked(answers, self._where)

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        return int(self._opened()._sock.fileno())  # type: ignore[attr-defined]  # noqa: SLF001 - no public way

    def can_read(self) -> bool:
        """Say whether an answer (or the end of the connection) is there."""
        try:
            return bool(self._opened().can_read(0))
        except (redis.RedisError, OSError, BrokerUnavailable):
            return True

    def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()  # type: ignore[no-untyped-call]


def forgotten(
    commands: Sequence[Command], answers: Sequence[Any]
) -> tuple[list[Command], list[int]]:
    """
    Return what to send again, after every script, and the places of those answers.

    Every script, so that no server ever knows a claim and not the finish before it: sent again
    alone, that finish would come after the claim.
    """
    missed = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    return (loads() if missed else []) + [commands[i] for i in missed], missed


def checked(answers: list[Any], where: str) -> list[Any]:
    """Return the answers, or raise the first error among them in our terms."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise error_of(answer, where) from answer
    return answers


def loads() -> list[Command]:
    """Return the commands that teach a server every script."""
    return [("SCRIPT", "LOAD", s.text) for s in _all_scripts()]


@cache
def _all_scripts() -> list[Script]:
    folder = resources.files("machine.broker").joinpath("lua")
    return [script(f.name[:-4]) for f in folder.iterdir() if f.name.endswith(".lua")]


class Connections:
    """
    Links to one server, lent to any number of threads.

    Nothing connects before the first command, and a fork must not carry open
    links over: make a new Connections in each process.

    Args:
        address: Where the server is (`redis_url.parse`).
        limits: Timeouts and how long callers keep trying.
        client_name: Shown by ``CLIENT LIST``.
        sentinel_password: For the sentinels themselves.
        tls: redis-py's ``ssl_*`` arguments, used when the address asks for TLS.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        limits: Limits | None = None,
        client_name: str = "",
        master_name: str = "",
        sentinel_password: str = "",
        tls: dict[str, Any] | None = None,
    ) -> None:
        if address.kind == "cluster":
            message = (
                "Redis Cluster is not supported: a queue and its tasks' results must be on one "
                "server. Name one address, or set redis.master_name for sentinels in this list."
            )
            raise ConfigError(message)
        self.address = address
        self.limits = limits or Limits()
        self.where = address.path or ",".join(f"{host}:{port}" for host, port in address.hosts)
        self._client_name = client_name
        self._master_name = master_name
        self._sentinel_password = sentinel_password
        self._tls = tls or {}
        self._idle: list[Link] = []

    def settings(self, *, answer_s: float | None, protocol: int = 2) -> dict[str, Any]:
        """Return redis-py's connection arguments for this address (sync and asyncio alike)."""
        settings: dict[str, Any] = {
            "db": self.address.db,
            "username": self.address.username or None,
            "password": self.address.password or None,
            "client_name": self._client_name or None,
            "socket_connect_timeout": self.limits.connect_s,
            "socket_timeout": answer_s,
            "protocol": protocol,
            # CLIENT SETINFO is unknown to Redis 7.0 and not in our ACLs.
            "driver_info": None,
        }
        if self.address.kind == "socket":
            return settings | {"path": self.address.path}
        host, port = self._master() if self.address.kind == "sentinel" else self.address.hosts[0]
        settings |= {"host": host, "port": port, "socket_keepalive": True}
        return settings | (self._tls if self.address.tls else {})

    def _master(self) -> tuple[str, int]:
        """Ask the sentinels who is master now."""
        extra = {"password": self._sentinel_password} if self._sentinel_password else {}
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            list(self.address.hosts),
            sentinel_kwargs=extra | {"socket_timeout": self.limits.connect_s},
        )
        host, port = sentinel.discover_master(self._master_name)  # type: ignore[no-untyped-call]
        return str(host), int(port)

    def _connection(self, answer_s: float | None, protocol: int) -> Connection:
        settings = self.settings(answer_s=answer_s, protocol=protocol)
        settings["retry"] = Retry(NoBackoff(), 0)
        kind: Any = redis.Connection
        if self.address.kind == "socket":
            kind = redis.UnixDomainSocketConnection
        elif self.address.tls:
            kind = redis.SSLConnection
        connection: Connection = kind(**settings)
        connection._parser.set_invalidation_push_handler(Push.of)  # noqa: SLF001 - no public way
        return connection

    def link(self, *, waits: bool = False, protocol: int = 2) -> Link:
        """
        Return a new link of the caller's own, not yet connected.

        ``waits`` is for blocking commands and pushes: no limit on an answer.
        """
        answer_s = None if waits else self.limits.answer_s
        return Link(lambda: self._connection(answer_s, protocol), self.where)

    def execute(self, commands: Sequence[Command], *, retry: bool = True) -> list[Any]:
        """
        Run commands in one round trip on a borrowed link.

        With ``retry`` the whole batch is sent again while the server is away,
        up to ``limits.retry_s``: only for commands that may run twice.
        """
        deadline = time.monotonic() + self.limits.retry_s
        pause_s = 0.01
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                link = self.link()
            try:
                answers = link.execute(commands)
            except BrokerUnavailable:
                link.close()  # also where it answered: after a failover this is no master any more
                if not retry or time.monotonic() + pause_s > deadline:
                    raise
            except MachineError:
                self._idle.append(link)
                raise
            else:
                self._idle.append(link)
                return answers
            time.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    def close(self) -> None:
        """Close the idle links; borrowed ones close when they come back."""
        while self._idle:
            self._idle.pop().close()


def next_pause_s(pause_s: float) -> float:
    """Return the next pause after this one: 10 ms to 1 s, spread so that clients do not march."""
    return min(1.0, random.uniform(0.01, pause_s * 3))  # noqa: S311 - jitter, not a secret
