"""
A master, a replica, and three sentinels on loopback, hurried along.

Sentinel's own periods are seconds; ``SENTINEL DEBUG`` makes them tenths, so that
a failover takes about one.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from machine.embedded import HOST, EmbeddedServer

MASTER = "shop"
_PATIENCE_S = 20.0
# Not shorter, the publishing: four of its periods are how long a sentinel lets a replica that
# became a master be one, and the one that promoted it needs a second to notice.
_HURRY = (
    *("INFO-PERIOD", 200, "PING-PERIOD", 100, "ASK-PERIOD", 100, "PUBLISH-PERIOD", 500),
    *("SLAVE-RECONF-TIMEOUT", 1000, "MIN-LINK-RECONNECT-PERIOD", 200),
)
_SETTINGS = """
port {port}
bind {host}
dir {folder}
requirepass {password}
sentinel sentinel-pass {password}
sentinel monitor {master} {host} {monitored} 2
sentinel auth-pass {master} {secret}
sentinel down-after-milliseconds {master} 400
sentinel failover-timeout {master} 3000
"""


class Watched:
    """
    The whole arrangement; every server has a password, and the sentinels another.

    Attributes:
        servers: The first master, and its replica.
        sentinels: Their processes, in the order of ``ports``.
    """

    def __init__(self, folder: Path, *, secret: str, sentinel_password: str) -> None:
        self.secret, self.sentinel_password = secret, sentinel_password
        self._folder = folder
        self._guards = contextlib.ExitStack()
        self.ports: list[int] = []
        self.servers: list[EmbeddedServer] = []
        self.sentinels: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """Return the URL that names the sentinels."""
        hosts = ",".join(f"{HOST}:{port}" for port in self.ports)
        return f"redis://{self.secret}@{hosts}"

    def terms(self, **others: str) -> dict[str, Any]:
        """Return what `RedisConfig` needs to know of the sentinels."""
        return {"master_name": MASTER, "sentinel_password": self.sentinel_password} | others

    def client(self, server: EmbeddedServer) -> redis.Redis:
        """Return a plain client of one server."""
        made = redis.Redis(port=server.port, password=self.secret)
        self._guards.callback(made.close)
        return made

    def sentinel(self, index: int) -> redis.Redis:
        """Return a plain client of one sentinel."""
        made = redis.Redis(port=self.ports[index], password=self.sentinel_password)
        self._guards.callback(made.close)
        return made

    def start(self) -> None:
        """Start everything, and return when the sentinels know each other and the replica."""
        login = ("--requirepass", self.secret, "--masterauth", self.secret)
        hasty = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        master = self._guards.enter_context(EmbeddedServer(args=login + hasty))
        follows = ("--replicaof", f"{HOST} {master.port}")
        replica = self._guards.enter_context(EmbeddedServer(args=login + hasty + follows))
        self.servers = [master, replica]
        _wait(lambda: self.client(replica).info()["master_link_status"] == "up", "replica follows")
        for _ in range(3):
            self._start_sentinel(master)
        for index in range(3):
            _wait(lambda i=index: self._knows_all(i), "sentinels know each other")

    def is_master(self, server: EmbeddedServer) -> bool:
        """Say whether every sentinel takes this server for the master."""
        return all(
            int(self.sentinel(i).sentinel_get_master_addr_by_name(MASTER)[1]) == server.port
            for i in range(3)
        )

    def stop(self) -> None:
        """Stop everything."""
        self._guards.close()

    def _start_sentinel(self, master: EmbeddedServer) -> None:
        with socket.create_server((HOST, 0)) as probe:
            port = probe.getsockname()[1]
        settings = self._folder / f"{port}.conf"
        settings.write_text(
            _SETTINGS.format(
                port=port,
                host=HOST,
                folder=self._folder,
                master=MASTER,
                monitored=master.port,
                secret=self.secret,
                password=self.sentinel_password,
            )
        )
        with (self._folder / f"{port}.log").open("wb") as log:
            started = subprocess.Popen(
                [master._binary, str(settings), "--sentinel"],
                stdout=log,
                stderr=log,
            )
        self._guards.callback(started.wait)
        self._guards.callback(started.kill)
        self.sentinels.append(started)
        self.ports.append(port)
        _wait(lambda: self._answers(len(self.ports) - 1), f"sentinel on {port} answers")

    def _answers(self, index: int) -> bool:
        try:
            self.sentinel(index).execute_command("SENTINEL", "DEBUG", *_HURRY)
        except redis.ConnectionError:
            return False
        return True

    def _knows_all(self, index: int) -> bool:
        known = self.sentinel(index).sentinel_master(MASTER)
        return known["num-other-sentinels"] == 2 and known["num-slaves"] == 1


def _wait(predicate: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + _PATIENCE_S
    while not predicate():
        if time.monotonic() > give_up_at:
            message = f"gave up waiting until {what}"
            raise TimeoutError(message)
        time.sleep(0.02)


@contextlib.contextmanager
def watched(folder: Path, *, secret: str, sentinel_password: str) -> Iterator[Watched]:
    """Return the arrangement, up and running."""
    made = Watched(folder, secret=secret, sentinel_password=sentinel_password)
    try:
        made.start()
        yield made
    finally:
        made.stop()
