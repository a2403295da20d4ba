"""
From a Redis URL to answered commands.

This room finds the server (address, unix socket, TLS, Sentinel), lends links to
any number of threads, and is patient. redis-py's own retries stay off: it would
repeat an RPUSH whose reply was lost. We repeat scripts only, and every script
may be sent twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from machine.errors import BrokerRefused, BrokerUnavailable, ConfigError, MachineError
from machine.redis.link import Command, Link, Push

if TYPE_CHECKING:
    from redis.connection import Connection

    from machine.config.redis_url import RedisAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds to wait for the server, and how long a caller keeps trying."""

    connect_s: float = 2.0
    answer_s: float = 5.0
    #: How long a command is tried again after the server went away; 0 = once.
    retry_s: float = 30.0


class Connections:
    """
    Links to one server, lent to any number of threads.

    Nothing connects before the first command, and a fork must not carry open
    links over: make a new Connections in each process.

    Args:
        address: Where the server is (`redis_url.parse_address`).
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
        self.where += " (TLS)" if address.tls else ""
        self._client_name = client_name
        self._master_name = master_name
        self._sentinel_password = sentinel_password
        self._tls = tls or {}
        self._sentinels = address.hosts
        self._idle: list[Link] = []
        #: Event loop -> what belongs to it alone; kept here, so that it goes when we go.
        self.loops: dict[Any, dict[Any, Any]] = {}

    def settings(self, *, answer_s: float | None, protocol: int = 2) -> dict[str, Any]:
        """Return redis-py's connection arguments for this address (sync and asyncio alike)."""
        settings: dict[str, Any] = {
            **self._common(answer_s),
            "db": self.address.db,
            "username": self.address.username or None,
            "password": self.address.password or None,
            "client_name": self._client_name or None,
            "protocol": protocol,
        }
        if self.address.kind == "socket":
            return settings | {"path": self.address.path}
        host, port = self._master() if self.address.kind == "sentinel" else self.address.hosts[0]
        return settings | self._tcp(host, port)

    def _common(self, answer_s: float | None) -> dict[str, Any]:
        return {
            "socket_connect_timeout": self.limits.connect_s,
            "socket_timeout": answer_s,
            # CLIENT SETINFO is unknown to Redis 7.0 and not in our ACLs.
            "driver_info": None,
        }

    def _tcp(self, host: str, port: int) -> dict[str, Any]:
        settings = {"host": host, "port": port, "socket_keepalive": True}
        return settings | (self._tls if self.address.tls else {})

    def _master(self) -> tuple[str, int]:
        """Ask the sentinels who is master now; the one that knew it last comes first."""
        refusal: BrokerRefused | None = None
        silence: BrokerUnavailable | None = None
        for sentinel in self._sentinels:
            link = Link(partial(self._sentinel, *sentinel), "{}:{}".format(*sentinel))
            try:
                [found] = link.execute([("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master_name)])
            except BrokerUnavailable as error:
                silence = error
            except MachineError as error:
                refusal = BrokerRefused(f"{error} For a sentinel it is redis.sentinel_password.")
            else:
                if found is not None:
                    others = (other for other in self._sentinels if other != sentinel)
                    self._sentinels = (sentinel, *others)
                    return found[0].decode(), int(found[1])
                refusal = refusal or BrokerRefused(
                    f"The sentinels at {self.where} know no master '{self._master_name}'. "
                    "Check redis.master_name."
                )
            finally:
                link.close()
        raise refusal or silence or BrokerUnavailable(f"There are no sentinels at '{self.where}'.")

    def _sentinel(self, host: str, port: int) -> Connection:
        settings = self._common(self.limits.connect_s) | self._tcp(host, port)
        settings |= {"password": self._sentinel_password or None, "retry": Retry(NoBackoff(), 0)}
        kind: Any = redis.SSLConnection if self.address.tls else redis.Connection
        connection: Connection = kind(**settings, protocol=2)
        return connection

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
                self.close()  # what idles is as old: tried one by one, it would eat up the time
                if not retry or time.monotonic() + pause_s > deadline:
                    raise
            except MachineError:
                self._idle.append(link)
                raise
            else:
                self._idle.append(link)
                return answers
            time.sleep(pause_s)  # the server is away, and nothing tells when it is back
            pause_s = next_pause_s(pause_s)

    def close(self) -> None:
        """Close the idle links; borrowed ones close when they come back."""
        while self._idle:
            self._idle.pop().close()


def next_pause_s(pause_s: float) -> float:
    """Return the next pause after this one: 10 ms to 1 s, spread so that clients do not march."""
    return min(1.0, random.uniform(0.01, pause_s * 3))  # noqa: S311 - jitter, not a secret
