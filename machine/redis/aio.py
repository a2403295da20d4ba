"""
The same links for asyncio, one set for each event loop.

Only what a caller needs: run commands, and read pushes. Addresses, errors and
scripts are those of `connections`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis
import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from machine.errors import BrokerUnavailable, MachineError
from machine.redis.connections import Connections, next_pause_s
from machine.redis.errors import error_of
from machine.redis.link import (
    TRACK,
    Command,
    Push,
    accepts_tracking,
    raise_first_error,
    resend_plan,
)

T = TypeVar("T")


async def _push(message: list[Any]) -> Push:
    return Push.of(message)


class AsyncLink:
    """One open connection of one event loop; see `Link`."""

    def __init__(self, connections: Connections, *, waits: bool = False, protocol: int = 2) -> None:
        self._connections = connections
        self._answer_s = None if waits else connections.limits.answer_s
        self._protocol = protocol
        self._where = connections.where
        self._open: Any = None

    async def connection(self) -> Any:
        """Return the connected redis-py connection."""
        if self._open is None:
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
            try:
                await opened.connect()
            except (redis.RedisError, OSError) as error:
                raise error_of(error, self._where) from error
            except BaseException:
                await opened.disconnect(nowait=True)  # cancelled half way through the greeting
                raise
            self._open = opened
        return self._open

    async def send(self, commands: Sequence[Command]) -> None:
        """Send commands without reading their answers; opens the connection if need be."""
        connection = await self.connection()
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
        except (redis.RedisError, OSError) as error:
            await self.close()
            raise error_of(error, self._where) from error
        except BaseException:
            await self.close()  # half a command may be under way
            raise

    async def receive(self, *, push: bool = False) -> Any:
        """Read one answer, or with ``push`` one `Push`; error replies are returned."""
        connection = self._open
        if connection is None:  # a new one would never answer what was sent on the old one
            message = f"The connection to Redis at {self._where} was lost."
            raise BrokerUnavailable(message)
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

    async def track(self) -> bool:
        """Ask the server to tell when keys read here change; see `Link.track`."""
        await self.send([TRACK])
        return accepts_tracking(await self.receive(), self._where)

    async def execute(self, commands: Sequence[Command]) -> list[Any]:
        """Send all commands, then read all answers; see `Link.execute`."""
        await self.send(commands)
        answers = [await self.receive() for _ in commands]
        again, missed = resend_plan(commands, answers)
        if missed:
            await self.send(again)
            fresh = [await self.receive() for _ in again]
            raise_first_error(fresh[: -len(missed)], self._where)
            for i, answer in zip(missed, fresh[-len(missed) :], strict=True):
                answers[i] = answer
        return raise_first_error(answers, self._where)

    async def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened.disconnect(nowait=True)


class AsyncLinks:
    """
    The idle links of one event loop.

    A task of ours sleeps until the loop ends: `asyncio.run` cancels it, which
    closes them.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._idle: list[AsyncLink] = []
        self._keeper: asyncio.Task[None] | None = None

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
                await self._close_idle()  # what idles is as old; see `Connections.execute`
                if time.monotonic() + pause_s > deadline:
                    raise
            except MachineError:
                await self._put_back(link)
                raise
            else:
                await self._put_back(link)
                return answers
            await asyncio.sleep(pause_s)
            pause_s = next_pause_s(pause_s)

    async def close(self) -> None:
        """Close the idle links."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
        await self._close_idle()

    async def _put_back(self, link: AsyncLink) -> None:
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        if self._keeper.done():
            await link.close()  # the loop is about to end
        else:
            self._idle.append(link)

    async def _keep(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await self._close_idle()

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()


def of_loop(connections: Connections, kind: Callable[[Connections], T]) -> T:
    """Return what the running event loop has of this kind, made at its first use."""
    loops = connections.loops
    for loop in list(loops):
        if loop.is_closed():  # it took its connections with it
            loops.pop(loop, None)
    mine = loops.setdefault(asyncio.get_running_loop(), {})
    if kind not in mine:
        mine[kind] = kind(connections)
    made: T = mine[kind]
    return made


def links_of(connections: Connections) -> AsyncLinks:
    """Return the running event loop's links to this server."""
    return of_loop(connections, AsyncLinks)
