"""Every form a Redis URL may have, each up to a finished task; and each way of being refused."""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from machine import BrokerRefused, ConfigError, Signature, build
from machine.embedded import EmbeddedServer

if TYPE_CHECKING:
    from machine.config import Config
    from tests.integration.conftest import Yard

PASSWORD = "se/cr@t:1"
ESCAPED = "se%2Fcr%40t%3A1"
#: A password that a URL of a socket can carry: there are no escapes.
PLAIN = "plain:word"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Start a server with a password, ACL users, and a unix socket."""
    path = tmp_path_factory.mktemp("locked") / "redis.sock"
    with EmbeddedServer(args=("--requirepass", PASSWORD, "--unixsocket", str(path))) as running:
        running.socket = path  # type: ignore[attr-defined]
        with client_of(running) as raw:
            # Two words for each user, so that every form of a URL can carry one of them.
            raw.execute_command("ACL", "SETUSER", "default", f">{PLAIN}")
            words = (f">{PASSWORD}", f">{PLAIN}", "allkeys", "+@all")
            raw.execute_command("ACL", "SETUSER", "caller", "on", *words)
            raw.execute_command("ACL", "SETUSER", "reader", "on", f">{PASSWORD}", "~*", "+get")
            raw.execute_command("ACL", "SETUSER", "stranger", "on", *words, "resetkeys", "~other")
        yield running


def client_of(server: EmbeddedServer, db: int = 0) -> redis.Redis:
    return redis.Redis(port=server.port, password=PASSWORD, db=db)


def url_of(server: EmbeddedServer, form: str) -> str:
    """Fill in where a server is."""
    path: Path = server.socket  # type: ignore[attr-defined]
    return form.format(at=f"127.0.0.1:{server.port}", path=path)


def assert_it_works(yard: Yard) -> list[Any]:
    """Send, run and wait, in threads and on an event loop; return the results' ids."""
    add = yard.task(lambda a, b: a + b, name="add")
    sent = add.send(1, 2)
    yard.run()

    async def on_a_loop() -> Any:
        result = await add.asend(3, 4)
        await asyncio.to_thread(yard.run)
        assert await result.aget(timeout=5) == 7
        return result

    assert sent.get(timeout=5) == 3
    return [sent.uuid, asyncio.run(on_a_loop()).uuid]


# -- what works --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "db"),
    [
        (f"redis://{ESCAPED}@{{at}}", 0),
        (f"redis://:{ESCAPED}@{{at}}", 0),
        (f"redis://caller:{ESCAPED}@{{at}}", 0),
        (f"redis://default:{ESCAPED}@{{at}}/", 0),
        (f"redis://{ESCAPED}@{{at}}/3", 3),
        (f"redis://caller:{ESCAPED}@{{at}}/15", 15),
        (f"redis://caller:{ESCAPED}@{{at}}/none", 0),
        (f"redis+socket://:{PLAIN}@{{path}}", 0),
        (f"redis+socket://caller:{PLAIN}@{{path}}", 0),
        (f"redis+socket://caller:{PLAIN}@{{path}}:/2", 2),
        (f"unix://caller:{PLAIN}@{{path}}:4", 4),
        (f"unix://default:{PLAIN}@{{path}}", 0),
    ],
)
def test_a_task_is_sent_and_finished(
    form: str, db: int, locked: EmbeddedServer, make_yard: Callable[..., Yard]
) -> None:
    with client_of(locked, db) as raw:
        yard = make_yard(raw=raw, broker=url_of(locked, form))

        ids = assert_it_works(yard)

        assert raw.exists(*ids) == 2


def test_a_host_alone_is_a_server_without_a_password(
    server: EmbeddedServer, make_yard: Callable[..., Yard]
) -> None:
    yard = make_yard(broker=f"redis://127.0.0.1:{server.port}")

    ids = assert_it_works(yard)

    assert yard.raw.exists(*ids) == 2


def test_a_name_is_shown_to_whoever_lists_the_clients(
    locked: EmbeddedServer, make_config: Callable[..., Config]
) -> None:
    config = make_config(broker=url_of(locked, f"redis://{ESCAPED}@{{at}}"))
    named = config.redis.__class__(client_name="shop-caller")
    server = build.server(make_config(broker=config.broker, redis=named))

    server.pending_tasks()
    with client_of(locked) as raw:
        names = [client["name"] for client in raw.client_list()]
    server.close()

    assert "shop-caller" in names


def test_a_cluster_is_refused_with_what_to_do_instead(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError) as caught:
        build.server(make_config(broker="redis://word@127.0.0.1:1,127.0.0.1:2"))

    assert str(caught.value) == (
        "Redis Cluster is not supported: a queue and its tasks' results must be on one server. "
        "Name one address, or set redis.master_name for sentinels in this list."
    )


# -- what is refused ---------------------------------------------------------------------------

LOGIN = r"^Redis at {where} refused the login: %s\. Check user and password\.$"
WRONG = LOGIN % "invalid username-password pair or user is disabled"
NAMELESS = LOGIN % "Authentication required"
GRANT = r"Grant it to this user's ACL\.$"

refusals = pytest.mark.parametrize(
    ("form", "text"),
    [
        ("redis://wr%40ng@{at}", WRONG),
        ("redis://caller:wr%40ng@{at}", WRONG),
        (f"redis://nobody:{ESCAPED}@{{at}}", WRONG),
        ("redis://{at}", NAMELESS),
        ("redis+socket://wrong@{path}", WRONG),
        ("redis+socket://{path}", NAMELESS),
        (
            f"redis://reader:{ESCAPED}@{{at}}",
            r"^Redis at {where}: .* has no permissions to run the 'evalsha' command\. " + GRANT,
        ),
        (
            f"redis://stranger:{ESCAPED}@{{at}}",
            r"^Redis at {where}: .*[Nn]o permissions to access .*key.*\. " + GRANT,
        ),
        (
            f"redis://{ESCAPED}@{{at}}/16",
            r"^Redis at {where} refused a command: ERR DB index is out of range\.$",
        ),
    ],
)


def assert_told_without_the_password(
    error: BaseException, text: str, server: EmbeddedServer, form: str
) -> None:
    path: Path = server.socket  # type: ignore[attr-defined]
    where = str(path) if "{path}" in form else f"127.0.0.1:{server.port}"
    assert re.search(text.format(where=re.escape(where)), str(error))
    told = "".join(traceback.format_exception(error))
    assert [word for word in (PASSWORD, ESCAPED, "wr@ng", "wr%40ng") if word in told] == []


@refusals
def test_a_refusal_names_the_cure_and_never_the_password(
    form: str, text: str, locked: EmbeddedServer, make_config: Callable[..., Config]
) -> None:
    sender = build.server(make_config(broker=url_of(locked, form)))

    with sender, pytest.raises(BrokerRefused) as caught:
        sender.send_task(Signature(name="add"))

    assert_told_without_the_password(caught.value, text, locked, form)


@refusals
def test_a_refusal_on_an_event_loop_says_the_same(
    form: str, text: str, locked: EmbeddedServer, make_config: Callable[..., Config]
) -> None:
    async def send() -> None:
        async with build.server(make_config(broker=url_of(locked, form))) as sender:
            await sender.asend_task(Signature(name="add"))

    with pytest.raises(BrokerRefused) as caught:
        asyncio.run(send())

    assert_told_without_the_password(caught.value, text, locked, form)


@refusals
def test_whoever_waits_is_refused_too(
    form: str, text: str, locked: EmbeddedServer, make_config: Callable[..., Config]
) -> None:
    text = text.replace("'evalsha'", "'(mget|hello)'")
    with build.server(make_config(broker=url_of(locked, form))) as waiter:
        with pytest.raises(BrokerRefused) as caught:
            waiter.result("task_somewhere").get(timeout=5)

        async def wait() -> None:
            async with build.server(make_config(broker=url_of(locked, form))) as other:
                await other.result("task_somewhere").aget(timeout=5)

        with pytest.raises(BrokerRefused) as caught_on_a_loop:
            asyncio.run(wait())

    assert_told_without_the_password(caught.value, text, locked, form)
    assert str(caught_on_a_loop.value) == str(caught.value)


def test_a_password_for_a_server_without_one_is_refused(
    server: EmbeddedServer, make_config: Callable[..., Config]
) -> None:
    sender = build.server(make_config(broker=f"redis://word@127.0.0.1:{server.port}"))

    with (
        sender,
        pytest.raises(BrokerRefused, match=r"refused the login: AUTH .*password") as caught,
    ):
        sender.send_task(Signature(name="add"))

    assert "word@" not in str(caught.value)


def test_a_worker_that_is_refused_does_not_start(
    locked: EmbeddedServer, make_config: Callable[..., Config]
) -> None:
    form = "redis://caller:wr%40ng@{at}"
    config = make_config(broker=url_of(locked, form), no_unix_signals=True)

    with pytest.raises(BrokerRefused) as caught:
        build.worker(config).launch()

    assert_told_without_the_password(caught.value, WRONG, locked, form)


def test_a_password_that_changes_is_noticed_and_a_right_one_is_enough_again(
    locked: EmbeddedServer, make_config: Callable[..., Config]
) -> None:
    url = url_of(locked, f"redis://changing:{ESCAPED}@{{at}}")
    with client_of(locked) as raw, build.server(make_config(broker=url)) as sender:
        acl = ("ACL", "SETUSER", "changing", "on", "~*", "+@all")
        raw.execute_command(*acl, f">{PASSWORD}")
        before = sender.pending_tasks()
        raw.execute_command("ACL", "DELUSER", "changing")  # ends its connections
        with pytest.raises(BrokerRefused, match=r"refused the login"):
            sender.pending_tasks()
        raw.execute_command(*acl, f">{PASSWORD}")
        after = sender.pending_tasks()

    assert (before, after) == ([], [])
