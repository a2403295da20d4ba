"""Encrypted connections: what is accepted, and each thing that must not be."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import redis

from machine import BrokerRefused, BrokerUnavailable, Signature, build
from machine.config import RedisConfig
from machine.config.redis_url import parse_address
from machine.embedded import EmbeddedServer, NoServer
from machine.redis.connections import Connections, Limits
from tests.integration.servers_certificates import Authority, Pair

if TYPE_CHECKING:
    from machine.config import Config
    from tests.integration.conftest import Yard


class Encrypted(NamedTuple):
    """A server with a TLS port beside its plain one, and certificates for it."""

    server: EmbeddedServer
    port: int
    root: Authority
    good: Pair
    raw: redis.Redis

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.port}"

    def show(self, pair: Pair) -> None:
        """Let the server show this certificate from now on."""
        self.raw.execute_command(
            *("CONFIG", "SET", "tls-cert-file", pair.cert, "tls-key-file", pair.key)
        )


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """Start a redis-server with TLS; the Valkey in the wheel is built without."""
    root = Authority(tmp_path_factory.mktemp("tls"), "root")
    good = root.issue("good")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    args = ("--tls-port", str(port), "--tls-cert-file", good.cert, "--tls-key-file", good.key)
    more = ("--tls-ca-cert-file", root.own.cert, "--tls-auth-clients", "no")
    try:
        running = EmbeddedServer(args=args + more, prefer="redis").start()
    except NoServer as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs a redis-server with TLS: {error}", pytrace=False)
        pytest.skip(str(error))
    with redis.Redis.from_url(running.url) as raw:
        yield Encrypted(running, port, root, good, raw)
    running.stop()


@pytest.fixture(autouse=True)
def as_it_was(encrypted: Encrypted) -> Iterator[None]:
    """Give the server its good certificate and usual terms back."""
    yield
    encrypted.show(encrypted.good)
    encrypted.raw.config_set("tls-auth-clients", "no")
    encrypted.raw.execute_command("CONFIG", "SET", "tls-protocols", "", "tls-ciphers", "DEFAULT")


@pytest.fixture
def make_tls(
    encrypted: Encrypted, make_config: Callable[..., Config], delayed_key: str
) -> Callable[..., Config]:
    """Return a function that makes settings for the encrypted server."""

    def make(broker: str = "", **settings: Any) -> Config:
        terms = {"tls_ca_file": encrypted.root.own.cert} | settings
        terms["delayed_tasks_key"] = delayed_key
        return make_config(broker=broker or encrypted.url, redis=RedisConfig(**terms))

    return make


def refused(config: Config) -> str:
    """Return how a sender is refused, in a thread and, in the same words, on an event loop."""

    async def send() -> None:
        async with build.server(config) as sender:
            await sender.asend_task(Signature(name="add"))

    with build.server(config) as sender, pytest.raises(BrokerRefused) as caught:
        sender.send_task(Signature(name="add"))
    with pytest.raises(BrokerRefused) as on_a_loop:
        asyncio.run(send())
    assert str(on_a_loop.value) == str(caught.value)
    return str(caught.value)


def assert_it_works(config: Config, make_yard: Callable[..., Yard], raw: redis.Redis) -> None:
    """Send, run and wait, in threads and on an event loop."""
    yard = make_yard(raw=raw, broker=config.broker, redis=config.redis)
    add = yard.task(lambda a, b: a + b, name="add")
    sent = add.send(1, 2)
    yard.run()

    async def on_a_loop() -> Any:
        result = await add.asend(3, 4)
        await asyncio.to_thread(yard.run)
        try:
            return await result.aget(timeout=5)
        finally:
            await yard.server.aclose()

    assert sent.get(timeout=5) == 3
    assert asyncio.run(on_a_loop()) == 7


# -- what works --------------------------------------------------------------------------------


def test_a_task_is_sent_and_finished(
    encrypted: Encrypted, make_tls: Callable[..., Config], make_yard: Callable[..., Yard]
) -> None:
    assert_it_works(make_tls(), make_yard, encrypted.raw)


def test_a_server_that_asks_for_certificates_is_shown_ours(
    encrypted: Encrypted, make_tls: Callable[..., Config], make_yard: Callable[..., Yard]
) -> None:
    encrypted.raw.config_set("tls-auth-clients", "yes")
    ours = encrypted.root.issue("ours")

    config = make_tls(tls_cert_file=ours.cert, tls_key_file=ours.key)

    assert_it_works(config, make_yard, encrypted.raw)


def test_whoever_says_insecure_talks_to_anybody(
    encrypted: Encrypted,
    make_tls: Callable[..., Config],
    make_yard: Callable[..., Yard],
    tmp_path: Any,
) -> None:
    encrypted.show(
        Authority(tmp_path, "unknown").issue("bad", host="DNS:elsewhere.example", days=-1)
    )

    assert_it_works(make_tls(tls_ca_file="", tls_insecure=True), make_yard, encrypted.raw)


def test_many_threads_wait_on_one_encrypted_connection(
    encrypted: Encrypted, make_tls: Callable[..., Config], make_yard: Callable[..., Yard]
) -> None:
    config = make_tls()
    yard = make_yard(raw=encrypted.raw, broker=config.broker, redis=config.redis)
    echo = yard.task(lambda text: text, name="echo")
    texts = [str(number) * 2000 for number in range(30)]
    with ThreadPoolExecutor(len(texts)) as threads:
        waiting = [threads.submit(lambda t=text: echo.send(t).get(timeout=10)) for text in texts]
        while not all(one.done() for one in waiting):
            yard.run()

    assert [one.result() for one in waiting] == texts


# -- what is refused ---------------------------------------------------------------------------

DISTRUST = (
    r"^Redis at 127\.0\.0\.1:{port} \(TLS\) shows a certificate that is not trusted: {why}\. "
    r"Let redis\.tls_ca_file name its issuer, and the URL a host that it is made for\.$"
)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"days": -1}, "certificate has expired"),
        ({"host": "DNS:elsewhere.example"}, r"IP address mismatch, .* '127\.0\.0\.1'"),
    ],
    ids=["expired", "another host's"],
)
def test_a_bad_certificate_is_refused(
    encrypted: Encrypted, make_tls: Callable[..., Config], fault: dict[str, Any], why: str
) -> None:
    encrypted.show(encrypted.root.issue("bad", **fault))

    text = refused(make_tls())

    assert re.search(DISTRUST.format(port=encrypted.port, why=why), text)


@pytest.mark.parametrize("ours", ["another root", "the system's roots"])
def test_an_unknown_root_is_refused(
    encrypted: Encrypted, make_tls: Callable[..., Config], tmp_path: Any, ours: str
) -> None:
    other = Authority(tmp_path, "other").own.cert if ours == "another root" else ""

    text = refused(make_tls(tls_ca_file=other))

    assert re.search(DISTRUST.format(port=encrypted.port, why=r"[^.]*certificate[^.]*"), text)


def test_a_port_without_tls_does_not_answer(encrypted: Encrypted) -> None:
    address = parse_address(f"rediss://127.0.0.1:{encrypted.server.port}")
    links = Connections(address, limits=Limits(answer_s=0.1, retry_s=0.0))

    with pytest.raises(BrokerUnavailable) as caught:
        links.execute([("PING",)])

    # Redis waits for the end of a line that never comes.
    assert str(caught.value) == (
        f"Redis at 127.0.0.1:{encrypted.server.port} (TLS) did not answer: "
        "Timeout connecting to server."
    )


def test_a_port_of_another_kind_is_named_as_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        links = Connections(
            parse_address(f"rediss://127.0.0.1:{port}"), limits=Limits(retry_s=30.0)
        )

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(1)
                client.sendall(b"-ERR what was that\r\n")

        with ThreadPoolExecutor(1) as threads:
            threads.submit(answer)
            with pytest.raises(BrokerRefused) as caught:
                links.execute([("PING",)])

    assert str(caught.value) == (
        f"Redis at 127.0.0.1:{port} (TLS) does not speak TLS there: WRONG_VERSION_NUMBER. "
        "Use its TLS port, or redis:// instead of rediss://."
    )


def test_old_tls_is_refused(encrypted: Encrypted, make_tls: Callable[..., Config]) -> None:
    encrypted.raw.execute_command(
        *("CONFIG", "SET", "tls-protocols", "TLSv1.1", "tls-ciphers", "DEFAULT:@SECLEVEL=0")
    )

    text = refused(make_tls())

    assert text == (
        f"Redis at 127.0.0.1:{encrypted.port} (TLS) and we do not agree on TLS: "
        "TLSV1_ALERT_PROTOCOL_VERSION. It must be TLS 1.2 or newer; if the server asks for a "
        "certificate, set redis.tls_cert_file and redis.tls_key_file."
    )


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_server_that_asks_for_certificates_refuses_us_without_one(
    encrypted: Encrypted, make_tls: Callable[..., Config], version: str
) -> None:
    encrypted.raw.execute_command(
        *("CONFIG", "SET", "tls-protocols", version, "tls-auth-clients", "yes")
    )

    text = refused(make_tls())

    assert "set redis.tls_cert_file and redis.tls_key_file" in text


def test_a_certificate_of_an_unknown_root_is_refused_by_the_server(
    encrypted: Encrypted, make_tls: Callable[..., Config], tmp_path: Any
) -> None:
    encrypted.raw.config_set("tls-auth-clients", "yes")
    foreign = Authority(tmp_path, "foreign").issue("ours")

    text = refused(make_tls(tls_cert_file=foreign.cert, tls_key_file=foreign.key))

    assert "set redis.tls_cert_file and redis.tls_key_file" in text


def test_plain_words_on_a_tls_port_are_no_answer(encrypted: Encrypted) -> None:
    address = parse_address(f"redis://127.0.0.1:{encrypted.port}")
    links = Connections(address, limits=Limits(retry_s=0.0))

    with pytest.raises(
        BrokerUnavailable, match=rf"^Redis at 127\.0\.0\.1:{encrypted.port} did not answer: "
    ):
        links.execute([("PING",)])
