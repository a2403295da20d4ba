"""
What a real worker shows at /metrics, asked over HTTP while it works, breaks and is replaced.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from machine import build
from machine.config import Config, RedisConfig
from machine.registry import Registry
from machine.telemetry.metrics import HELP, SentMetrics
from machine.telemetry.queues import exposition, queues_of
from machine.wire.signature import Arg, Signature, new_uuid
from tests.service.replicas import Replicas

ROOT = Path(__file__).resolve().parents[2]
WaitUntil = Callable[..., Any]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def get(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def parsed(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Watched:
    """A worker with metrics, and its numbers."""

    def __init__(self, site: Any, **variables: str) -> None:
        self.site, self.port = site, free_port()
        files = site.logs.with_suffix(".files")  # what a killed worker leaves behind goes with it
        files.mkdir(exist_ok=True)
        given = {
            "TASKS_MODULES": "observed_tasks",
            "WORKER_METRICS_PORT": str(self.port),
            "TMPDIR": str(files),
        }
        self.process = site.start("-n", "w-one", **(given | variables))
        config = Config(
            broker=site.url,
            default_queue=site.queue,
            worker_metrics_port=self.port,
            redis=RedisConfig(delayed_tasks_key=f"{site.queue}.delayed"),
        )
        self.server = build.server(config, Registry())

    def send(self, name: str, *texts: str, **more: Any) -> Any:
        args = [Arg("string", text) for text in texts]
        return self.server.send_task(Signature(name=name, args=args, **more))

    def numbers(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return all samples; none while the worker is not up."""
        try:
            return parsed(get(self.port))
        except urllib.error.URLError:
            return {}

    def value(self, name: str, /, **labels: str) -> float:
        """Return a sample's value; 0 where there is none."""
        return self.numbers().get((name, frozenset(labels.items())), 0.0)

    def ended(self, task: str, state: str) -> float:
        return self.value("machinery_tasks_total", queue=self.site.queue, task=task, state=state)


@pytest.fixture
def watched(site: Any) -> Any:
    made = Watched(site)
    yield made
    made.server.close()


def test_each_end_of_a_task_is_counted_by_queue_name_and_state(
    watched: Watched, wait_until: WaitUntil
) -> None:
    watched.send("speak", "a").get(timeout=30)
    watched.send("aspeak", "b").get(timeout=30)
    watched.send("second_time", "c", retry_count=1).get(timeout=30)
    with pytest.raises(Exception, match="no luck"):
        watched.send("fail", "no luck").get(timeout=30)

    wait_until(lambda: watched.ended("fail", "failure") == 1, 30, "the failure to be counted")
    assert watched.ended("speak", "success") == 1
    assert watched.ended("aspeak", "success") == 1
    assert watched.ended("second_time", "retry") == 1
    assert watched.ended("second_time", "success") == 1
    assert watched.ended("speak", "failure") == 0


def test_durations_and_waits_are_histograms_up_to_ten_minutes(
    watched: Watched, wait_until: WaitUntil
) -> None:
    watched.send("speak", "a").get(timeout=30)
    labels = {"queue": watched.site.queue, "task": "speak"}
    wait_until(lambda: watched.ended("speak", "success") == 1, 30, "the end to be counted")

    assert watched.value("machinery_task_duration_seconds_count", **labels) == 1
    assert watched.value("machinery_task_duration_seconds_bucket", le="600.0", **labels) == 1
    assert watched.value("machinery_task_wait_seconds_count", **labels) == 1
    assert 0 < watched.value("machinery_task_wait_seconds_sum", **labels) < 60


def test_a_deliberate_delay_is_no_wait(watched: Watched, wait_until: WaitUntil) -> None:
    watched.send("speak", "warm").get(timeout=30)  # so that its start is over
    labels = {"queue": watched.site.queue, "task": "second_time"}
    watched.send("second_time", "c", retry_count=1).get(timeout=30)  # its retry is a second away

    wait_until(lambda: watched.ended("second_time", "success") == 1, 30, "the end to be counted")
    assert watched.value("machinery_task_wait_seconds_count", **labels) == 2
    assert watched.value("machinery_task_wait_seconds_sum", **labels) < 1


def test_what_follows_a_stamped_task_is_stamped_too(
    watched: Watched, wait_until: WaitUntil
) -> None:
    last = Signature(name="speak", args=[Arg("string", "z")], uuid=new_uuid("task"))
    watched.send("aspeak", "a", on_success=[last], immutable=True).get(timeout=30)
    watched.server.result(last.uuid).get(timeout=30)

    labels = {"queue": watched.site.queue, "task": "speak"}
    wait_until(lambda: watched.ended("speak", "success") == 1, 30, "the end to be counted")
    assert watched.value("machinery_task_wait_seconds_count", **labels) == 1


def test_a_message_that_is_none_is_counted_as_unknown(
    watched: Watched, wait_until: WaitUntil
) -> None:
    watched.site.raw.rpush(watched.site.queue, b"not a message")

    wait_until(lambda: watched.ended("unknown", "failure") == 1, 30, "the burial to be counted")


def test_what_runs_now_is_shown_and_so_is_the_worker(site: Any, wait_until: WaitUntil) -> None:
    watched = Watched(site, TASKS_MODULES="service_tasks", WORKER_CONCURRENCY="3")
    running = watched.send("until_released", "a", f"{site.queue}.go")

    def in_progress() -> float:
        return watched.value("machinery_tasks_in_progress", queue=site.queue)

    wait_until(site.runs, 30, "the task to begin")
    wait_until(lambda: in_progress() == 1, 30, "it to be shown")
    assert watched.value("machinery_worker_concurrency") == 3
    assert watched.value("machinery_worker_info", version="0.1.0", name="w-one") == 1
    site.raw.rpush(f"{site.queue}.go", "now")
    running.get(timeout=30)
    wait_until(lambda: in_progress() == 0, 30, "it to be over")
    watched.server.close()


def test_replaced_children_do_not_take_their_counts_with_them(
    site: Any, wait_until: WaitUntil
) -> None:
    watched = Watched(site, WORKER_MAX_TASKS="2")
    for number in range(7):
        watched.send("speak", str(number)).get(timeout=30)

    wait_until(lambda: watched.ended("speak", "success") == 7, 30, "all to be counted")
    wait_until(lambda: watched.value("machinery_worker_concurrency") == 1, 30, "one child")
    [directory] = [Path(d) for d in _directories(watched.process.pid)]
    watched.numbers()  # adds up what the dead left
    assert len(list(directory.glob("counter_*.db"))) <= 2
    assert watched.ended("speak", "success") == 7
    watched.server.close()


def test_a_killed_child_runs_nothing_any_more(watched: Watched, wait_until: WaitUntil) -> None:
    watched.send("die", "abc")
    watched.send("speak", "after").get(timeout=60)

    def in_progress() -> float:
        return watched.value("machinery_tasks_in_progress", queue=watched.site.queue)

    wait_until(lambda: in_progress() == 0, 60, "nothing to be in progress")
    assert watched.value("machinery_worker_concurrency") == 1
    wait_until(lambda: watched.ended("speak", "success") == 1, 30, "the other to be counted")


def test_a_worker_without_redis_serves_metrics_and_counts_its_silence(
    site: Any, wait_until: WaitUntil
) -> None:
    watched = Watched(site, BROKER=f"redis://127.0.0.1:{free_port()}/0")

    def errors() -> float:
        return watched.value("machinery_redis_errors_total", operation="register")

    wait_until(lambda: errors() >= 2, 30, "the silence to be counted")
    watched.server.close()


def test_there_is_nothing_at_other_addresses(watched: Watched) -> None:
    watched.send("speak", "a").get(timeout=30)

    with pytest.raises(urllib.error.HTTPError) as caught:
        get(watched.port, "/etc/passwd")

    assert caught.value.code == 404
    caught.value.close()


def test_a_killed_exporter_is_started_again_and_knows_what_was_counted(
    watched: Watched, wait_until: WaitUntil
) -> None:
    watched.send("speak", "a").get(timeout=30)
    wait_until(lambda: watched.ended("speak", "success") == 1, 30, "the task to be counted")
    [exporter] = _exporters(watched.process.pid, watched.site)

    os.kill(exporter, signal.SIGKILL)

    wait_until(
        lambda: _exporters(watched.process.pid, watched.site) not in ([], [exporter]),
        30,
        "another exporter",
    )
    assert watched.ended("speak", "success") == 1


def test_everything_is_gone_when_the_worker_has_ended(
    watched: Watched, wait_until: WaitUntil
) -> None:
    watched.send("speak", "a").get(timeout=30)
    wait_until(lambda: watched.ended("speak", "success") == 1, 30, "the task to be counted")
    directories = _directories(watched.process.pid)
    assert directories

    watched.process.send_signal(signal.SIGTERM)

    assert watched.process.wait(30) == 0
    assert not any(Path(directory).exists() for directory in directories)
    with pytest.raises(urllib.error.URLError):
        get(watched.port)


def test_a_killed_supervisor_takes_the_exporter_with_it(
    watched: Watched, wait_until: WaitUntil
) -> None:
    watched.send("speak", "a").get(timeout=30)
    [exporter] = _exporters(watched.process.pid, watched.site)

    watched.process.kill()
    watched.process.wait(30)

    wait_until(lambda: not _is_there(exporter), 30, "the exporter to die")


def test_a_port_that_is_taken_is_a_clear_error(site: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = site.start(WORKER_METRICS_PORT=str(port))

        assert process.wait(30) == 78


def test_without_the_library_a_worker_says_what_to_install(site: Any) -> None:
    done = site.run_without("prometheus_client", WORKER_METRICS_PORT=str(free_port()))

    assert done.returncode == 78
    assert "prometheus-client" in done.stderr
    assert "worker_metrics_port" in done.stderr


def test_a_caller_shows_what_it_sent_and_what_is_in_the_queues(site: Any) -> None:
    config = Config(
        broker=site.url,
        default_queue=site.queue,
        redis=RedisConfig(delayed_tasks_key=f"{site.queue}.delayed"),
    )
    sent = SentMetrics(lambda name: name == "known")
    with build.server(config, Registry(), instruments=[sent]) as server:
        server.send_task(Signature(name="known"))
        server.send_task(Signature(name="known", headers={"x-sent-at": "1"}))
        server.send_task(Signature(name="whatever"))

        body, kind = exposition(sent, server.broker, server.backend, queues_of(config))
        found = parsed(body.decode())

    def value(name: str, **labels: str) -> float:
        return found[name, frozenset(labels.items())]

    assert kind.startswith("text/plain")
    assert value("machinery_tasks_sent_total", queue=site.queue, task="known") == 2
    assert value("machinery_tasks_sent_total", queue=site.queue, task="unknown") == 1
    assert value("machinery_queue_tasks", queue=site.queue, state="pending") == 3
    assert value("machinery_queue_tasks", queue=site.queue, state="running") == 0
    assert value("machinery_queue_tasks", queue="*", state="delayed") == 0
    assert 0 < value("machinery_queue_oldest_task_age_seconds", queue=site.queue) < 60
    assert value("machinery_workers") == 0


def test_a_caller_whose_redis_is_away_shows_the_rest_and_counts_it() -> None:
    config = Config(broker=f"redis://127.0.0.1:{free_port()}/0")
    sent = SentMetrics(lambda _name: True)
    with build.server(config, Registry(), instruments=[sent], retry_s=0) as server:
        with pytest.raises(Exception, match="may have been sent or not"):
            server.send_task(Signature(name="known"))
        body, _ = exposition(sent, server.broker, server.backend, queues_of(config))

    found = parsed(body.decode())
    errors = "machinery_redis_errors_total"
    assert found[errors, frozenset({("operation", "send")})] == 1
    assert found[errors, frozenset({("operation", "survey")})] == 1
    assert not [name for name, _ in found if name.startswith("machinery_queue")]


def test_the_http_caller_shows_metrics_to_who_has_the_token(
    site: Any, tmp_path: Path, wait_until: WaitUntil
) -> None:
    (tmp_path / "replicas").mkdir()
    replicas = Replicas(site.url, site.queue, tmp_path / "replicas", wait_until)
    variables = {"TASKS_MODULES": "observed_tasks", "API_TOKEN": "secret-of-16-characters"}
    client = replicas.start(token="secret-of-16-characters", **variables)

    sent = client.post("/tasks/speak", json={"args": ["hi"]})
    shown = client.get("/metrics")
    refused = client.get("/metrics", headers={"Authorization": ""})

    assert sent.status_code == 202
    assert (shown.status_code, refused.status_code) == (200, 401)
    found = parsed(shown.text)
    total = "machinery_tasks_sent_total"
    assert found[total, frozenset({("queue", site.queue), ("task", "speak")})] == 1
    pending = frozenset({("queue", site.queue), ("state", "pending")})
    assert found["machinery_queue_tasks", pending] == 1
    stamped = json.loads(site.raw.lindex(site.queue, 0))
    assert stamped["Headers"]["x-sent-at"].isdigit()
    replicas.end()


def test_every_metric_that_a_worker_shows_is_one_of_ours(
    watched: Watched, wait_until: WaitUntil
) -> None:
    watched.send("speak", "a").get(timeout=30)
    wait_until(lambda: watched.ended("speak", "success") == 1, 30, "the end to be counted")

    families = {family.name for family in text_string_to_metric_families(get(watched.port))}

    assert families <= HELP.keys()


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _exporters(supervisor: int, site: Any) -> list[int]:
    """Return the children that work on no task: those that have no worker id."""
    ids = {
        int(name.decode().split(":")[1])
        for name in site.raw.zrange(f"{{{site.queue}}}:workers", 0, -1)
    }
    return [pid for pid in _children(supervisor) if pid not in ids]


def _directories(supervisor: int) -> list[str]:
    """Return the directories of metrics that a worker's children write to."""
    found = set()
    for pid in _children(supervisor):
        for entry in Path(f"/proc/{pid}/map_files").glob("*"):
            target = str(entry.readlink())
            if "machine-metrics-" in target:
                found.add(str(Path(target).parent))
    return sorted(found)


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
