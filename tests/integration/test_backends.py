"""Results elsewhere than the queues: on another server, nowhere, or in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import redis

from machine import (
    Arg,
    BrokerUnavailable,
    ConfigError,
    Hooks,
    ResultNotFound,
    RetryLater,
    Signature,
    TaskFailed,
    build,
    chain,
    chord,
    current_task,
    group,
)
from machine.config import Config
from machine.embedded import EmbeddedServer, NoServer
from machine.registry import Registry
from machine.runtime.child.session import new_worker_id

if TYPE_CHECKING:
    from tests.integration.conftest import Yard


# -- another server ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second() -> Iterator[EmbeddedServer]:
    """Start a second server, for results."""
    with EmbeddedServer() as running:
        yield running


@pytest.fixture
def second_raw(second: EmbeddedServer) -> Iterator[redis.Redis]:
    """Return a plain client of the second server."""
    with redis.Redis.from_url(second.url) as client:
        yield client


@pytest.fixture
def apart(second: EmbeddedServer, make_yard: Callable[..., Yard]) -> Yard:
    """Return a yard whose results are on the second server."""
    return make_yard(result_backend=second.url)


def test_results_go_to_the_second_server_alone(
    apart: Yard, second_raw: redis.Redis, raw: redis.Redis
) -> None:
    result = apart.task(lambda: 2, name="two").send()
    pending = second_raw.get(result.uuid)

    apart.run()

    assert b'"State":"PENDING"' in pending
    assert result.get(timeout=5) == 2
    assert b'"State":"SUCCESS"' in second_raw.get(result.uuid)
    assert 0 < second_raw.ttl(result.uuid) <= 3600
    assert raw.exists(result.uuid) == 0


def test_failures_retries_and_callbacks_work_apart(apart: Yard) -> None:
    told: list[Any] = []

    def work() -> str:
        if current_task().attempt < 3:
            raise RuntimeError("not yet")
        return "done"

    apart.task(work)
    apart.task(lambda *texts: told.append(texts), name="tell")
    result = apart.server.send_task(
        Signature(name="work", retry_count=1, on_error=[Signature(name="tell")])
    )
    later = apart.server.send_task(
        Signature(name="work", retry_count=2, on_success=[Signature(name="tell")])
    )

    for _ in range(3):
        apart.run()
        apart.make_due()
    apart.run()

    with pytest.raises(TaskFailed, match=r"^not yet$"):
        result.get(timeout=5)
    assert later.get(timeout=5) == "done"
    assert sorted(told) == [("done",), ("not yet",)]


def test_workflows_work_apart(apart: Yard) -> None:
    add = apart.task(lambda *numbers: sum(numbers), name="add")
    chained = chain(add.s(1, 1), add.partial(5, 5), add.partial(4)).send()
    joined = chord(group(add.s(1), add.s(2)), add.partial(10)).send()

    apart.run()

    assert (chained.get(timeout=5), joined.get(timeout=5)) == (16, 13)


def test_a_failed_chord_member_is_told_apart(apart: Yard) -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    add = apart.task(lambda *numbers: sum(numbers), name="add")
    joined = chord(group(apart.task(fail).s(), add.s(2)), add.partial(10)).send()

    apart.run()

    with pytest.raises(TaskFailed, match=r"^chord member task_\S+ failed: boom$"):
        apart.server.result(joined.uuid).get(timeout=5)


def test_no_result_is_lost_when_many_threads_end_at_once(apart: Yard) -> None:
    count = apart.task(lambda number: number, name="count")
    results = group(count.s(number) for number in range(400)).send()

    apart.drain(apart.child(slots=8))

    assert results.get(timeout=5) == list(range(400))


def test_a_poisons_failure_is_told_apart(apart: Yard) -> None:
    result = apart.task(lambda: None, name="once", on_crash="fail").send()
    worker_id = new_worker_id()
    apart.broker.register(worker_id, [apart.queue])
    apart.broker.exchange(worker_id, [apart.queue], [], 1)

    apart.reaper().reap_at_once(worker_id)

    with pytest.raises(TaskFailed, match=r"^the worker died while it ran this task"):
        result.get(timeout=5)


def test_tasks_go_on_when_the_results_server_comes_back(make_yard: Callable[..., Yard]) -> None:
    with EmbeddedServer(args=("--appendonly", "yes", "--appendfsync", "always")) as results:
        yard = make_yard(result_backend=results.url)
        ran: list[int] = []
        sent = yard.task(lambda: ran.append(1), name="once").send()
        child = yard.child()
        child.run_once(0)
        results.kill()

        with pytest.raises(BrokerUnavailable):
            child.run_once(0)
        results.restart()
        yard.drain(child)

        assert sent.get(timeout=5) is None
        assert ran == [1]
        yard.leave(child)
        yard.server.close()


# -- nowhere -----------------------------------------------------------------------------------


def test_without_results_tasks_run_and_nothing_is_kept(make_yard: Callable[..., Yard]) -> None:
    yard = make_yard(result_backend="null")
    ran: list[int] = []
    result = yard.task(ran.append, name="note").send(1)

    yard.run()

    assert ran == [1]
    assert yard.raw.exists(result.uuid) == 0
    with pytest.raises(ResultNotFound):
        result.get(timeout=1)


def test_without_results_callbacks_and_retries_work(make_yard: Callable[..., Yard]) -> None:
    yard = make_yard(result_backend="null")
    told: list[Any] = []

    def work() -> str:
        if current_task().attempt < 2:
            raise RuntimeError("not yet")
        return "done"

    yard.task(lambda *texts: told.append(texts), name="tell")
    yard.task(work, retry_count=1).s().link(Signature(name="tell")).send()

    yard.run()
    yard.make_due()
    yard.run()

    assert told == [("done",)]


# -- in this process ---------------------------------------------------------------------------


@pytest.fixture
def eager() -> Iterator[Any]:
    """Return a server that runs what it is sent at once."""
    with build.server(Config(broker="eager"), Registry()) as made:
        yield made


def test_eager_tasks_have_run_when_they_are_sent(eager: Any) -> None:
    eager.register_tasks({"double": lambda x: 2 * x})

    results = [
        eager.send_task(Signature(name="double", args=[arg]))
        for arg in (Arg("float64", 100.0), Arg("int64", 100))
    ]

    assert [result.state.state for result in results] == ["SUCCESS", "SUCCESS"]
    assert [result.get() for result in results] == [200.0, 200]


def test_eager_retries_need_no_waiting(eager: Any) -> None:
    ran: list[int] = []

    def work() -> None:
        ran.append(current_task().attempt)
        raise RuntimeError("never")

    eager.register_tasks({"work": work})
    eta_ns = 2_000_000_000 * 1_000_000_000

    result = eager.send_task(Signature(name="work", retry_count=3, eta_ns=eta_ns))

    assert ran == [1, 2, 3, 4]
    with pytest.raises(TaskFailed, match=r"^never$"):
        result.get()


def test_eager_retry_later_runs_again_at_once(eager: Any) -> None:
    def work() -> int:
        if current_task().attempt < 3:
            raise RetryLater(3600)
        return current_task().attempt

    eager.register_tasks({"work": work})

    assert eager.send_task(Signature(name="work")).get() == 3


def test_eager_workflows(eager: Any) -> None:
    eager.register_tasks({"add": lambda *n: sum(n)})
    numbers = eager.get_registered_task("add")

    chained = chain(numbers.s(1, 1), numbers.partial(5, 5), numbers.partial(4)).send()
    grouped = group(numbers.s(1), numbers.s(2)).send()
    joined = chord(group(numbers.s(1), numbers.s(2)), numbers.partial(10)).send()

    assert (chained.get(), grouped.get(), joined.get()) == (16, [1, 2], 13)


def test_an_eager_task_may_send_others(eager: Any) -> None:
    ran: list[str] = []

    def outer() -> None:
        eager.send_task(Signature(name="inner"))
        ran.append("outer")

    eager.register_tasks({"outer": outer, "inner": lambda: ran.append("inner")})

    eager.send_task(Signature(name="outer"))

    assert sorted(ran) == ["inner", "outer"]


def test_an_unknown_eager_task_stays_pending(eager: Any) -> None:
    result = eager.send_task(Signature(name="unknown"))

    assert result.state.state == "PENDING"


def test_eager_sending_on_an_event_loop(eager: Any) -> None:
    eager.register_tasks({"add": lambda a, b: a + b})
    add = eager.get_registered_task("add")

    async def work() -> int:
        result = await add.asend(1, 1)
        value: int = await result
        return value

    assert asyncio.run(work()) == 2


def test_eager_tasks_may_send_and_wait_on_event_loops(eager: Any) -> None:
    async def inner(x: int) -> int:
        return x + 1

    async def outer(x: int) -> int:
        sent = await eager.get_registered_task("inner").asend(x)
        return await sent.aget(allow_in_task=True)

    def first(x: int) -> int:
        return eager.get_registered_task("outer").send(x).get(allow_in_task=True)

    eager.register_tasks({"inner": inner, "outer": outer, "first": first})

    async def work(name: str, x: int) -> int:
        return await (await eager.get_registered_task(name).asend(x))

    async def side_by_side() -> list[int]:
        return await asyncio.gather(*(work("outer", x) for x in range(20)), work("first", 20))

    assert asyncio.run(side_by_side()) == list(range(1, 22))


def test_hooks_run_around_an_eager_task_as_around_a_workers() -> None:
    heard: list[str] = []
    open_for: list[bool] = []

    def fail() -> None:
        heard.append("task")
        raise RuntimeError("no")

    module = ModuleType("own")
    module.hooks = Hooks(  # type: ignore[attr-defined]
        pre_consume=lambda: bool(open_for),
        pre_task=lambda signature: heard.append(f"before {signature.name}"),
        post_task=lambda signature: heard.append(f"after {signature.name}"),
        on_error=lambda error, _: heard.append(f"error {error}"),
    )
    registry = Registry()
    registry.collect(module)
    with build.server(Config(broker="eager"), registry) as eager:
        eager.register_tasks({"fail": fail})
        first = eager.send_task(Signature(name="fail"))
        unheard = list(heard)
        open_for.append(True)
        eager.send_task(Signature(name="fail", uuid="task_second"))

        assert unheard == []
        assert first.state.state == "FAILURE"
    assert heard == ["before fail", "task", "after fail", "error no"] * 2


def test_an_eager_task_that_cannot_end_as_it_should_is_buried(eager: Any) -> None:
    eager.register_tasks({"work": lambda: None})
    # The queue of the next task is a key of another kind: the result of another task.
    taken = eager.send_task(Signature(name="work", uuid="taken"))
    following = Signature(name="work", routing_key="taken")

    result = eager.send_task(Signature(name="work", on_success=[following]))

    assert taken.state.state == "SUCCESS"
    with pytest.raises(TaskFailed, match="or the queue of its next task, holds something else"):
        result.get(timeout=5)
    [letter] = eager.broker.dead("machinery_tasks")
    assert result.uuid.encode() in letter.payload


@pytest.mark.parametrize("result_backend", ["null", "redis://127.0.0.1:1/0"])
def test_eager_mode_keeps_results_wherever_they_would_be_otherwise(result_backend: str) -> None:
    # A unique task needs its state beside its message.
    config = Config(broker="eager", result_backend=result_backend)
    with build.server(config, Registry()) as eager:
        add = eager.register_task("add", lambda a, b: a + b)

        assert add.s(1, 2).options(unique="k").send().get(timeout=5) == 3


def test_eager_servers_share_no_queue_and_no_result() -> None:
    with (
        build.server(Config(broker="eager"), Registry()) as one,
        build.server(Config(broker="eager"), Registry()) as other,
    ):
        one.send_task(Signature(name="unknown", uuid="task_a"))

        assert one.get_state("task_a") is not None
        assert other.get_state("task_a") is None


def test_many_threads_may_send_to_one_eager_server(eager: Any) -> None:
    eager.register_tasks({"double": lambda x: 2 * x})
    double = eager.get_registered_task("double")

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: double.send(n).get(timeout=30), range(100)))

    assert results == [2 * n for n in range(100)]


def test_eager_mode_without_any_server_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(_number: int | None = None) -> str:
        raise NoServer("no Redis or Valkey server is installed. Install one: …")

    monkeypatch.setattr(build, "shared_url", none)

    with pytest.raises(ConfigError) as caught:
        build.server(Config(broker="eager"))

    assert str(caught.value) == (
        "broker, result_backend or lock is 'eager', which runs on a private server: no Redis or "
        "Valkey server is installed. Install one: …"
    )


def test_an_eager_queue_needs_no_worker() -> None:
    with pytest.raises(ConfigError, match=r"^broker is 'eager': tasks run where they are sent"):
        build.worker(Config(broker="eager"))


def test_eager_results_beside_a_real_broker_are_refused(redis_url: str) -> None:
    with pytest.raises(ConfigError, match=r"^result_backend is 'eager', which lives in one"):
        build.server(Config(broker=redis_url, result_backend="eager"))
