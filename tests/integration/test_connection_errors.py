"""What a server answers instead of doing it: what is tried again, and what is raised, and how."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import redis

from machine import BrokerRefused, BrokerUnavailable, MachineError, QueueFull, group
from machine.config.redis_url import parse_address
from machine.embedded import EmbeddedServer
from machine.ports.moves import Canceled, ChordShot, Enqueued, Park, Release, Verdict
from machine.ports.periodic import Tick
from machine.redis.aio import links_of
from machine.redis.connections import Connections, Limits
from machine.redis.link import load_commands
from machine.redis.periodic import RedisPeriodicStore
from machine.wire.signature import GroupMeta
from tests.chaos.proxy import Proxy
from tests.conftest import own_settings
from tests.contract.conftest import Bench, redis_bench
from tests.integration.servers_faults import FaultyServer

if TYPE_CHECKING:
    from tests.integration.conftest import Yard

READONLY = "READONLY You can't write against a read only replica."
NOPERM = "NOPERM this user has no permissions to run the command"


@pytest.fixture
def faulty(server: EmbeddedServer) -> Iterator[FaultyServer]:
    """Return a proxy before the run's server."""
    with FaultyServer(server.port) as running:
        yield running


@pytest.fixture
def bench(faulty: FaultyServer, queue: str) -> Iterator[Bench]:
    """Return a broker and a backend that speak through the proxy."""
    made = redis_bench(queue, faulty.url)
    # So that no call meets a server that has forgotten its script.
    connections(faulty.url).execute(load_commands())
    yield made
    made.close()


def connections(url: str, **limits: float) -> Connections:
    return Connections(parse_address(url), limits=Limits(**limits))


# -- every command and script, once ------------------------------------------------------------


def store(bench: Bench) -> RedisPeriodicStore:
    made: Any = bench.broker
    return RedisPeriodicStore(made._connections, own_settings())


def tick(bench: Bench) -> Callable[[], Any]:
    due = Tick(home=bench.queue, name="t", before="", after="1", messages=[bench.message("a")])
    return lambda: store(bench).tick([due])


def fire(bench: Bench) -> Callable[[], Any]:
    shot = ChordShot(bench.queue, bench.group(), [], b"")
    return lambda: bench.broker.fire_chord(shot)


def buried(bench: Bench, method: str) -> Callable[[], Any]:
    """Bury a message, and return a call that moves its letter."""
    claim = bench.take_one("a")
    bench.make(bench.finish(claim, "FAILURE", letter=bench.letter(claim, "why")))
    return lambda: getattr(bench.broker, method)(bench.queue, [claim.id])


def due(bench: Bench) -> Callable[[], Any]:
    bench.put_delayed(bench.message("a").payload, 1)
    return lambda: bench.broker.promote(10)


def group_of(bench: Bench) -> GroupMeta:
    return GroupMeta(group_uuid=bench.group(), task_uuids=[bench.uuid("a")])


#: Command -> what prepares a call of it, and what the call returns once it is let through.
PATIENT: dict[str, tuple[Callable[[Bench], Callable[[], Any]], Any]] = {
    "enqueue": (lambda b: lambda: b.broker.enqueue([b.message("a")]), [Enqueued.QUEUED]),
    "register": (lambda b: lambda: b.broker.register("w", [b.queue]), None),
    "unregister": (lambda b: lambda: b.broker.unregister("w", [b.queue]), None),
    "heartbeat": (lambda b: lambda: b.broker.heartbeat(b.queue, [b.worker()]), [0]),
    "reap": (lambda b: lambda: b.reap(b.worker()), (0, [])),
    "due": (lambda b: lambda: b.broker.promote(10), 0),
    "promote": (due, 1),
    "fire_chord": (fire, Verdict.FENCED),
    "cancel": (lambda b: lambda: b.broker.cancel([b.uuid("a")]), [Canceled.UNKNOWN]),
    "tick": (tick, [Enqueued.QUEUED]),
    "replay": (lambda b: buried(b, "replay"), 1),
    "purge_dead": (lambda b: buried(b, "purge_dead"), 1),
    "HSCAN": (lambda b: lambda: b.broker.armed(b.queue, 0, 10), (0, [])),
    "ZMSCORE": (lambda b: lambda: b.broker.canceled([b.uuid("a")]), set()),
    "LRANGE": (lambda b: lambda: b.broker.pending(b.queue), []),
    "ZRANGE": (lambda b: b.broker.delayed, []),
    "HGETALL": (lambda b: lambda: b.broker.held(b.queue, "w"), []),
    "HMGET": (lambda b: buried(b, "replay"), 1),
    "TIME": (lambda b: lambda: dict(b.broker.roster(b.queue).stamps), {}),
    "MGET": (lambda b: lambda: b.backend.read([b.uuid("a")]), [None]),
    "GET": (lambda b: lambda: b.backend.read_group(b.group()), None),
    "SET": (lambda b: lambda: b.backend.record_group(group_of(b)), None),
    "DEL": (lambda b: lambda: b.backend.purge_state(b.uuid("a")), None),
}


@pytest.mark.parametrize("command", PATIENT)
def test_what_passes_by_itself_is_tried_again(
    command: str, bench: Bench, faulty: FaultyServer
) -> None:
    prepare, expected = PATIENT[command]
    call = prepare(bench)
    before = faulty.seen[command]
    faulty.refuse(command, READONLY, "LOADING Redis is loading the dataset in memory")

    answer = call()

    assert answer == expected
    assert faulty.seen[command] == before + 3


@pytest.mark.parametrize("command", PATIENT)
def test_what_is_refused_for_good_is_raised_at_once(
    command: str, bench: Bench, faulty: FaultyServer
) -> None:
    call = PATIENT[command][0](bench)
    before = faulty.seen[command]
    faulty.refuse(command, NOPERM)

    with pytest.raises(BrokerRefused) as caught:
        call()

    assert faulty.seen[command] == before + 1
    assert str(caught.value) == (
        f"Redis at {faulty.where}: this user has no permissions to run the command. "
        "Grant it to this user's ACL."
    )


#: Moves of a worker, which has a loop of its own to be patient in.
MOVES: dict[str, Callable[[Bench, Any], Any]] = {
    "start": lambda b, claim: b.start(claim),
    "finish": lambda b, claim: b.finish(claim),
    "retry": lambda b, claim: b.retry(claim),
    "release": lambda _, claim: Release(claim=claim),
    "park": lambda _, claim: Park(claim=claim),
}


@pytest.mark.parametrize("command", MOVES)
def test_a_workers_move_is_raised_at_once_and_may_be_made_again(
    command: str, bench: Bench, faulty: FaultyServer
) -> None:
    move = MOVES[command](bench, bench.take_one("a"))
    faulty.refuse(command, READONLY)

    with pytest.raises(BrokerUnavailable):
        bench.make(move)

    assert faulty.seen[command] == 1
    assert bench.make(move) == [Verdict.DONE]


def test_a_refused_claim_takes_nothing(bench: Bench, faulty: FaultyServer) -> None:
    bench.send("a")
    worker = bench.worker()
    faulty.refuse("claim", READONLY)

    with pytest.raises(BrokerUnavailable):
        bench.take(worker)

    assert faulty.seen["claim"] == 1
    assert len(bench.take(worker)) == 1


# -- every word --------------------------------------------------------------------------------

PASSING = {
    READONLY: "You can't write against a read only replica",
    "LOADING Redis is loading the dataset in memory": "Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down.": "Link with MASTER is down",
    "CLUSTERDOWN Hash slot not served": "Hash slot not served",
    "TRYAGAIN Multiple keys request during rehashing of slot": (
        "Multiple keys request during rehashing of slot"
    ),
    "NOREPLICAS Not enough good replicas to write.": "NOREPLICAS Not enough good replicas to write",
    "MISCONF Redis is configured to save RDB snapshots": (
        "MISCONF Redis is configured to save RDB snapshots"
    ),
    "BUSY Redis is busy running a script.": "BUSY Redis is busy running a script",
    "ERR max number of clients reached": "max number of clients reached",
}
LASTING: dict[str, tuple[type[MachineError], str]] = {
    "OOM command not allowed.": (
        QueueFull,
        "Redis at {} is out of memory: command not allowed. Raise maxmemory.",
    ),
    "NOPERM User x has no permissions.": (
        BrokerRefused,
        "Redis at {}: User x has no permissions. Grant it to this user's ACL.",
    ),
    "NOAUTH Authentication required.": (
        BrokerRefused,
        "Redis at {} refused the login: Authentication required. Check user and password.",
    ),
    "WRONGTYPE Operation against the wrong kind of value": (
        BrokerRefused,
        "Redis at {} refused a command: WRONGTYPE Operation against the wrong kind of value.",
    ),
    "ERR unknown command 'EVALSHA'": (
        BrokerRefused,
        "Redis at {} refused a command: ERR unknown command 'EVALSHA'.",
    ),
    "MOVED 1234 10.0.0.1:6379": (
        BrokerRefused,
        "Redis at {} refused a command: MOVED 1234 10.0.0.1:6379.",
    ),
}


def on_a_loop(made: Connections, *commands: tuple[Any, ...]) -> list[Any]:
    async def run() -> list[Any]:
        links = links_of(made)
        try:
            return await links.execute(commands)
        finally:
            await links.close()

    return asyncio.run(run())


def in_a_thread(made: Connections, *commands: tuple[Any, ...]) -> list[Any]:
    try:
        return made.execute(commands)
    finally:
        made.close()


both_ways = pytest.mark.parametrize("run", [in_a_thread, on_a_loop])


@both_ways
@pytest.mark.parametrize("error", PASSING)
def test_a_passing_word_is_waited_out(
    error: str, run: Callable[..., Any], faulty: FaultyServer
) -> None:
    faulty.refuse("PING", error, error)

    assert run(connections(faulty.url), ("PING",)) == [b"PONG"]
    assert faulty.seen["PING"] == 3


@both_ways
@pytest.mark.parametrize("error", PASSING)
def test_a_passing_word_that_does_not_pass_is_told(
    error: str, run: Callable[..., Any], faulty: FaultyServer
) -> None:
    faulty.refuse("PING", *[error] * 9)

    with pytest.raises(BrokerUnavailable) as caught:
        run(connections(faulty.url, retry_s=0.0), ("PING",))

    assert str(caught.value) == f"Redis at {faulty.where} did not answer: {PASSING[error]}."
    assert isinstance(caught.value.__cause__, redis.RedisError)
    assert faulty.seen["PING"] == 1


@both_ways
@pytest.mark.parametrize("error", LASTING)
def test_a_lasting_word_is_raised_at_once(
    error: str, run: Callable[..., Any], faulty: FaultyServer
) -> None:
    kind, text = LASTING[error]
    faulty.refuse("PING", error)

    with pytest.raises(kind) as caught:
        run(connections(faulty.url), ("PING",))

    assert str(caught.value) == text.format(faulty.where)
    assert faulty.seen["PING"] == 1


@both_ways
def test_a_refusal_in_the_middle_of_a_batch_leaves_the_answers_in_step(
    run: Callable[..., Any], faulty: FaultyServer
) -> None:
    made = connections(faulty.url)
    batch = (("ECHO", "a"), ("PING",), ("ECHO", "b"))
    faulty.refuse("PING", NOPERM)

    with pytest.raises(BrokerRefused):
        run(made, *batch)

    assert run(made, *batch) == [b"a", b"PONG", b"b"]


@both_ways
def test_scripts_that_may_not_be_loaded_are_told_by_their_right(
    run: Callable[..., Any], faulty: FaultyServer
) -> None:
    faulty.refuse("EVALSHA", "NOSCRIPT No matching script.")
    faulty.refuse("?", "NOSCRIPT No matching script.")
    faulty.refuse("SCRIPT", NOPERM)

    with pytest.raises(BrokerRefused, match=r"Grant it to this user's ACL\.$"):
        run(connections(faulty.url), ("EVALSHA", "0" * 40, 0))


# -- patience ----------------------------------------------------------------------------------


@both_ways
def test_patience_ends(run: Callable[..., Any], faulty: FaultyServer) -> None:
    faulty.refuse("PING", *[READONLY] * 1000)

    with pytest.raises(BrokerUnavailable):
        run(connections(faulty.url, retry_s=0.1), ("PING",))

    assert 2 <= faulty.seen["PING"] <= 100


def test_a_command_that_must_not_be_repeated_is_not(faulty: FaultyServer) -> None:
    made = connections(faulty.url)
    faulty.refuse("PING", READONLY)

    with pytest.raises(BrokerUnavailable):
        made.execute([("PING",)], retry=False)

    made.close()
    assert faulty.seen["PING"] == 1


@both_ways
def test_a_server_that_is_not_there_is_told_after_patience(run: Callable[..., Any]) -> None:
    with EmbeddedServer() as gone:
        made = connections(gone.url, retry_s=0.05)

    with pytest.raises(BrokerUnavailable) as caught:
        run(made, ("PING",))

    assert str(caught.value).startswith(f"Redis at 127.0.0.1:{gone.port} did not answer: Error")


def test_one_lost_connection_among_many_idle_ones_costs_one_try() -> None:
    # Each stale connection tried in turn would use up the patience, one pause after the other.
    with EmbeddedServer() as own, redis.Redis.from_url(own.url) as direct:
        made = connections(own.url, retry_s=0.5)
        blocked = [
            threading.Thread(target=made.execute, args=([("BLPOP", "stop", 10)],))
            for _ in range(60)
        ]
        for thread in blocked:
            thread.start()
        direct.rpush("stop", *range(60))
        for thread in blocked:
            thread.join(10)
        idle = len(made._idle)
        own.kill()
        own.restart()

        answers = [made.execute([("PING",)]) for _ in range(3)]
        made.close()

    assert idle > 40
    assert answers == [[b"PONG"]] * 3


# -- sending, as a caller sees it --------------------------------------------------------------


def test_a_batch_that_was_half_refused_is_sent_whole_and_once(
    faulty: FaultyServer, make_yard: Callable[..., Yard]
) -> None:
    yard = make_yard(broker=faulty.url)
    add = yard.task(lambda a, b: a + b, name="add")
    faulty.refuse("enqueue", "", READONLY, "")

    result = group(add.s(number, 1) for number in range(3)).send()

    assert len(yard.ready()) == 3
    yard.run()
    assert result.get(timeout=5) == [1, 2, 3]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("as_loop", [False, True], ids=["thread", "loop"])
def test_a_send_whose_answer_was_lost_leaves_one_message(
    server: EmbeddedServer, make_yard: Callable[..., Yard], count: int, as_loop: bool
) -> None:
    with Proxy(server.port) as network:
        yard = make_yard(broker=network.url)
        add = yard.task(lambda a, b: a + b, name="add")
        members = group(add.s(number, 1) for number in range(count))
        network.lose("EVALSHA")

        async def asend() -> Any:
            async with yard.server:
                return await members.asend()

        result = asyncio.run(asend()) if as_loop else members.send()

        assert len(yard.ready()) == count
        yard.run()
        assert result.get(timeout=5) == [number + 1 for number in range(count)]
        yard.close()


@pytest.fixture
def own() -> Iterator[EmbeddedServer]:
    """Start a server of the test's own."""
    with EmbeddedServer() as running:
        yield running


def test_a_server_that_is_full_takes_tasks_again_once_workers_have_drained_it(
    own: EmbeddedServer, make_yard: Callable[..., Yard]
) -> None:
    with redis.Redis.from_url(own.url) as raw:
        yard = make_yard(raw=raw, broker=own.url)
        size = yard.task(len, name="size")
        size.send("warm")
        child = yard.child()
        yard.drain(child)
        raw.config_set("maxmemory", raw.info("memory")["used_memory"] + 3_000_000)
        sent: list[Any] = []

        with pytest.raises(QueueFull) as caught:
            sent.extend(size.send("x" * 20_000) for _ in range(1000))
        yard.drain(child)
        again = size.send("x" * 20_000)
        yard.drain(child)

        assert str(caught.value).startswith(f"Redis at 127.0.0.1:{own.port} is out of memory: ")
        assert len(sent) > 20
        assert [one.get(timeout=5) for one in [*sent, again]] == [20_000] * (len(sent) + 1)
        assert raw.llen(yard.queue) == 0
