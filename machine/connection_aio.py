"""
The same links for asyncio, one set for each event loop.

Only what a caller needs: run commands, and read pushes. Addresses, errors and
scripts are those of `connection`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import redis
import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from machine.connection import (
    Command,
    Connections,
    Push,
    checked,
    error_of,
    forgotten,
    next_pause_s,
)
from machine.errors import BrokerUnavailable, MachineError


async def _push(message: list[Any]) -> Push:
    return Push.of(message)


class AsyncLink:
    """One open connection of one event loop; see `connection.Link`."""

    def __init__(self, connections: Connections, *, waits: bool = False, protocol: int = 2) -> None:
        self._connections = connections
        self._answer_s = None if waits else connections.limits.answer_s
        self._protocol = protocol
        self._where = connections.where
        self._open: Any = None

    async def connection(self) -> Any:
        """Return the connected redis-py connection."""
        if self._open is None:
            try:
                # Asking sentinels blocks; everything else here is arithmetic.
                settings = await asyncio.to_thread(
                    self._connections.settings, answer_s=self._answer_s, protocol=self._protocol
                )
                settings["retry"] = Retry(NoBackoff(), 0)
                kind: Any = aioredis.Connection
                if self._connections.address.kind == "socket":
                    kind = aioredis.UnixDomainSocketConnection
                elif self._connections.address.tls:
                    kind = aioredis.SSLConnection
                opened = kind(**settings)
                opened._parser.set_invalidation_push_handler(_push)  # noqa: SLF001 - no public way
                await opened.connect()
            except (redis.RedisError, OSError) as error:
                raise error_of(error, self._where) from error
            self._open = opened
        return self._open

    async def send(self, commands: Sequence[Command]) -> None:
        """Send commands without reading their answers."""
        connection = await self.connection()
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
        except (redis.RedisError, OSError) as error:
            await self.close()
            raise error_of(error, self._where) from error

    async def receive(self, *, push: bool = False) -> Any:
        """Read one answer, or with ``push`` one `Push`; error replies are returned."""
        connection = await self.connection()
        try:
            return await connection.read_response(push_request=push)
        except redis.ResponseError as error:
            return error
        except (redis.RedisError, OSError) as error:
            await self.close()
            raise error_of(error, self._where) from error
        except BaseException:
            await self.close()  # a cancelled read would answer the next command
            raise

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Send all commands, then read all answers; see `connection.Link.execute`."""
        await self.send(commands)
        answers = [await self.receive() for _ in commands]
        again, missed = forgotten(commands, answers)
        if missed:
            await self.send(again)
            fresh = [await self.receive() for _ in again][-len(missed) :]
            for i, answer in zip(missed, fresh, strict=True):
                answers[i] = answer
        return checked(answers, self._where)

    async def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened.disconnect(nowait=True)


class AsyncLinks:
    """The idle links of one event loop."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._idle: list[AsyncLink] = []

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands that may run twice, in one round trip; see `Connections.execute`."""
        deadline = time.monotonic() + self._connections.limits.retry_s
        pause_s = 0.01
        while True:
            link = self._idle.pop() if self._idle else AsyncLink(self._connections)
            try:
                answers = await link.execute(commands)
            except BrokerUnavailable:
                await link.close()
                if time.monotonic() + pause_s > deadline:
                    raise
            except MachineError:
                self._idle.append(link)
                raise
            else:
                self._idle.append(link)
                return answers
            await asyncio.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    async def close(self) -> None:
        """Close the idle links."""
        while self._idle:
            await self._idle.pop().close()


_links: WeakKeyDictionary[Connections, WeakKeyDictionary[Any, AsyncLinks]] = WeakKeyDictionary()


def links_of(connections: Connections) -> AsyncLinks:
    """Return the running event loop's links to this server."""
    of_loops = _links.setdefault(connections, WeakKeyDictionary())
    loop = asyncio.get_running_loop()
    return of_loops.setdefault(loop, AsyncLinks(connections))
