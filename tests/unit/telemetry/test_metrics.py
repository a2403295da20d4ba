"""
Metrics: waits, the bounds of labels, files of the dead, and that dashboard and alerts name ours.
"""

from __future__ import annotations

import json
import re
import socket
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import mmap_dict

from machine.config import Config
from machine.errors import BrokerUnavailable, ConfigError
from machine.registry import Registry
from machine.runtime.supervisor.metrics import Exporter, merge_dead_files, render_metrics
from machine.sending.messages import MessageMaker
from machine.telemetry import VERSION
from machine.telemetry.metrics import DURATION_BUCKETS, HELP, OTHER, SentMetrics, TaskMetrics
from machine.telemetry.queues import queues_of
from machine.wire.headers import measure_wait_s
from machine.wire.signature import Signature

ROOT = Path(__file__).resolve().parents[3]
S_NS = 1_000_000_000
NOW_NS = 1_790_000_000 * S_NS
#: Each sample's name -> the metric it is of.
SAMPLES = {
    "machinery_tasks_sent_total": "machinery_tasks_sent",
    "machinery_tasks_total": "machinery_tasks",
    "machinery_redis_errors_total": "machinery_redis_errors",
    "machinery_task_duration_seconds_bucket": "machinery_task_duration_seconds",
    "machinery_task_wait_seconds_bucket": "machinery_task_wait_seconds",
}
SAMPLES |= {name: name for name in HELP if name not in SAMPLES.values()}


# -- waits -------------------------------------------------------------------------------------


def sent(ago_s: float, *, due_ago_s: float | None = None) -> Signature:
    at_ms = (NOW_NS - int(ago_s * S_NS)) // 1_000_000
    eta_ns = None if due_ago_s is None else NOW_NS - int(due_ago_s * S_NS)
    return Signature(name="add", headers={"x-sent-at": str(at_ms)}, eta_ns=eta_ns)


def test_a_wait_is_counted_from_the_sending() -> None:
    assert measure_wait_s(sent(2.5), NOW_NS) == 2.5


def test_a_deliberate_delay_is_left_out() -> None:
    assert measure_wait_s(sent(100, due_ago_s=0.5), NOW_NS) == 0.5


def test_a_caller_whose_clock_is_ahead_makes_no_negative_wait() -> None:
    assert measure_wait_s(sent(-5), NOW_NS) == 0


@pytest.mark.parametrize(
    "value", ["", "x", "-1", "1" * 16, "١٢٣", "1.5", 17, None, ["1"], "1"], ids=repr
)
def test_nonsense_and_times_long_gone_are_no_wait(value: Any) -> None:
    assert measure_wait_s(Signature(name="add", headers={"x-sent-at": value}), NOW_NS) is None


def test_a_message_that_does_not_say_has_no_wait() -> None:
    assert measure_wait_s(Signature(name="add"), NOW_NS) is None


# -- labels ------------------------------------------------------------------------------------


def value(metrics: SentMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def send(metrics: SentMetrics, *signatures: Signature) -> None:
    with metrics.sending(signatures):
        pass


def test_a_task_that_nobody_registered_is_unknown() -> None:
    metrics = SentMetrics(lambda name: name == "add")

    send(metrics, Signature(name="add", routing_key="q"), Signature(name="x1", routing_key="q"))
    send(metrics, Signature(name="x2", routing_key="q"))

    assert value(metrics, "machinery_tasks_sent_total", queue="q", task="add") == 1
    assert value(metrics, "machinery_tasks_sent_total", queue="q", task="unknown") == 2


def test_names_of_queues_do_not_make_series_without_end() -> None:
    metrics = SentMetrics(lambda _name: True)

    for number in range(150):
        send(metrics, Signature(name="add", routing_key=f"q{number}"))

    assert value(metrics, "machinery_tasks_sent_total", queue="q99", task="add") == 1
    assert value(metrics, "machinery_tasks_sent_total", queue=OTHER, task="add") == 50


def test_what_was_not_sent_is_not_counted_as_sent() -> None:
    metrics = SentMetrics(lambda _name: True)

    with pytest.raises(BrokerUnavailable), metrics.sending([Signature(name="a", routing_key="q")]):
        raise BrokerUnavailable("away")

    assert value(metrics, "machinery_tasks_sent_total", queue="q", task="a") is None
    assert value(metrics, "machinery_redis_errors_total", operation="send") == 1


def test_each_queue_of_the_settings_is_looked_at_once() -> None:
    config = Config(default_queue="a", queues=("b=3", "a=1"), allowed_queues=("c", "b"))

    assert queues_of(config) == ["a", "b", "c"]


def stamped(config: Config, headers: dict[str, Any]) -> Any:
    maker = MessageMaker.of(config, Registry(), keeps_states=True)
    signature = maker.complete(Signature(name="add", headers=headers))
    [message], _ = maker.make([signature], time.time_ns())
    return json.loads(message.payload)["Headers"]


def test_messages_say_when_they_were_sent_only_where_somebody_measures() -> None:
    assert stamped(Config(), {"k": "v"}) == {"k": "v"}
    assert stamped(Config(), {"x-sent-at": "1"})["x-sent-at"] != "1"
    assert stamped(Config(worker_metrics_port=9100), {"k": "v"}).keys() == {"k", "x-sent-at"}


# -- the exporter ------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(ConfigError, match=rf"worker_metrics_port={port}: cannot listen on"):
            Exporter("127.0.0.1", port, lambda: None)


def test_an_address_that_is_not_ours_is_named_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1.* Choose another port"):
        Exporter("192.0.2.1", 0, lambda: None)


def test_without_a_directory_to_count_in_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")

    with pytest.raises(ConfigError, match=r"no directory to count in.*set TMPDIR"):
        Exporter("127.0.0.1", 0, lambda: None)


# -- files of the dead -------------------------------------------------------------------------

#: No process has this id: it is beyond the kernel's limit.
DEAD, DEAD_TOO = 2**22 + 1, 2**22 + 2


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Count something in a directory as this process does."""
    from prometheus_client import values

    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    metrics = TaskMetrics(str(tmp_path), 4, "w")
    metrics.count_start("q", sent(1), NOW_NS)
    metrics.count_end("q", "add", "success", 0.2)
    yield tmp_path
    values.ValueClass.close_all_files()


def rename(directory: Path, pid: int) -> None:
    """Let what this process counted be another's."""
    for file in list(directory.glob("*.db")):
        kind, _, owner = file.stem.rpartition("_")
        if owner not in {"0", str(pid)}:
            file.rename(directory / f"{kind}_{pid}.db")


def samples(directory: Path) -> dict[str, float]:
    text = render_metrics(str(directory))[0].decode()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_living_process_shows_all_it_counts(counted: Path) -> None:
    found = samples(counted)

    assert found['machinery_tasks_total{queue="q",state="success",task="add"}'] == 1
    assert found['machinery_task_duration_seconds_bucket{le="0.25",queue="q",task="add"}'] == 1
    assert found['machinery_task_duration_seconds_bucket{le="0.1",queue="q",task="add"}'] == 0
    assert found['machinery_task_wait_seconds_sum{queue="q",task="add"}'] == 1
    assert found["machinery_worker_concurrency"] == 4
    assert found[f'machinery_worker_info{{name="w",version="{VERSION}"}}'] == 1


def test_counts_of_the_dead_are_kept_and_what_they_showed_of_themselves_is_not(
    counted: Path,
) -> None:
    before = samples(counted)
    rename(counted, DEAD)

    after = samples(counted)

    assert after['machinery_tasks_total{queue="q",state="success",task="add"}'] == 1
    gauges = ("machinery_worker", "machinery_tasks_in_progress")
    assert after == {name: n for name, n in before.items() if not name.startswith(gauges)}
    assert sorted(f.name for f in counted.glob("*.db")) == ["counter_0.db", "histogram_0.db"]


def test_the_dead_are_added_up_again_and_again(counted: Path) -> None:
    copies = {file: file.read_bytes() for file in counted.glob("*.db")}
    for pid in (DEAD, DEAD_TOO):
        for file, content in copies.items():
            file.write_bytes(content)
        rename(counted, pid)
        merge_dead_files(counted)

    assert samples(counted)['machinery_tasks_total{queue="q",state="success",task="add"}'] == 2
    assert samples(counted)['machinery_task_duration_seconds_count{queue="q",task="add"}'] == 2


def test_a_file_of_the_living_is_left_alone(counted: Path) -> None:
    names = sorted(file.name for file in counted.glob("*.db"))

    merge_dead_files(counted)

    assert sorted(file.name for file in counted.glob("*.db")) == names


def test_what_the_library_keeps_in_files_is_what_we_add_up() -> None:
    for name in ("read_all_values_from_file", "read_value", "write_value", "close"):
        assert hasattr(mmap_dict.MmapedDict, name)


# -- dashboard, alerts, version ----------------------------------------------------------------


def expressions_of_alerts() -> list[str]:
    rules = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())
    return [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def expressions_of_panels() -> list[str]:
    board = json.loads((ROOT / "deploy/grafana.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("expression", [*expressions_of_alerts(), *expressions_of_panels()])
def test_dashboard_and_alerts_ask_for_metrics_that_are_there(expression: str) -> None:
    names = re.findall(r"machinery_\w+", expression)

    assert names
    assert set(names) <= SAMPLES.keys()
    assert expression.count("(") == expression.count(")")


def test_the_dashboard_shows_every_metric() -> None:
    shown = {
        name for text in expressions_of_panels() for name in re.findall(r"machinery_\w+", text)
    }

    assert {SAMPLES[name] for name in shown} == HELP.keys()


def test_there_is_an_alert_for_each_of_four_troubles() -> None:
    rules = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"][0]["rules"]

    assert [rule["alert"] for rule in rules] == [
        "MachineryNoWorkers",
        "MachineryTasksWaitTooLong",
        "MachineryTasksFail",
        "MachineryRedisDown",
    ]
    for rule in rules:
        assert rule["for"]
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}


def test_panels_do_not_lie_upon_each_other() -> None:
    board = json.loads((ROOT / "deploy/grafana.json").read_text())
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in board["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_long_tasks_have_buckets() -> None:
    assert (DURATION_BUCKETS[0], DURATION_BUCKETS[-1]) == (0.005, 600)
    assert list(DURATION_BUCKETS) == sorted(DURATION_BUCKETS)


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["version"] == VERSION


def test_the_page_has_a_row_for_every_metric() -> None:
    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(machinery_\w+)` \| (\w+) \|", page, re.MULTILINE)

    counters = {name.removesuffix("_total") for name, kind in rows if kind == "counter"}
    others = {name for name, kind in rows if kind != "counter"}
    assert counters | others == HELP.keys()
    assert all(name.endswith("_total") for name, kind in rows if kind == "counter")
