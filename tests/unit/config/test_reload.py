"""
What a running worker makes of settings that have changed, and queues with weights.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from machine.config import SETTINGS, Config, RedisConfig
from machine.config.queues import read_queue_names, read_queue_weights
from machine.config.reload import LIVE, Reloader, compare_settings
from machine.errors import ConfigError


def test_equal_settings_change_nothing() -> None:
    found = compare_settings(Config(), Config())

    assert (found.config, found.live, found.stuck) == (Config(), [], [])


def test_what_children_and_log_go_by_changes_at_once() -> None:
    fresh = Config(worker_concurrency=7, log_level="debug", tasks_modules=("other",))

    found = compare_settings(Config(), fresh)

    assert found.config == fresh
    assert found.live == ["tasks_modules", "worker_concurrency", "log_level"]
    assert found.stuck == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("broker", "redis://other"),
        ("default_queue", "other"),
        ("worker_lease_s", 60.0),
        ("redis", RedisConfig(read_timeout=3)),
        ("queues", ("other",)),
    ],
)
def test_what_the_supervisor_goes_by_keeps_its_value(name: str, value: Any) -> None:
    fresh = Config(**{name: value}, worker_concurrency=7)

    found = compare_settings(Config(), fresh)

    assert found.config == Config(worker_concurrency=7)
    assert [stuck.partition(".")[0] for stuck in found.stuck] == [name]


def test_the_same_queues_may_change_their_order_and_weights() -> None:
    running = Config(queues=("a", "b"))

    assert compare_settings(running, Config(queues=("b", "a"))).live == ["queues"]
    assert compare_settings(running, Config(queues=("a=1", "b=5"))).live == ["queues"]
    assert compare_settings(running, Config(queues=("a", "b", "c"))).stuck == ["queues"]


def test_every_live_setting_exists() -> None:
    assert set(SETTINGS) >= LIVE


def test_a_broken_file_is_complained_of_once_for_each_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "settings.yml"
    path.write_text("log_level: info\n")
    reloader = Reloader(lambda: Config.from_yaml(str(path)), lambda _: None)

    with caplog.at_level(logging.WARNING):
        for text in ("log_level: [\n", "log_level: [\n", "log_level: loud\n", "log_level: [\n"):
            path.write_text(text)
            reloader.run_once()

    assert len(caplog.records) == 3


def test_all_layers_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "settings.yml"
    path.write_text("worker_concurrency: 2\nworker_flush_ms: 1\n")
    config = Config.load({"worker_concurrency": "5"}, path=str(path), environ={}, dotenv=None)
    path.write_text("worker_concurrency: 3\nworker_flush_ms: 2\n")
    assert config.reload is not None

    fresh = config.reload()

    assert (fresh.worker_concurrency, fresh.worker_flush_ms) == (5, 2.0)


# -- queues with weights -----------------------------------------------------------------------
def test_weights_are_read_beside_their_queues() -> None:
    config = Config(queues=("high=3", "low=1"))

    assert read_queue_names(config.worker_queues) == ("high", "low")
    assert read_queue_weights(config.worker_queues) == (3, 1)
    assert read_queue_weights(Config(queues=("high", "low")).worker_queues) == ()
    assert read_queue_weights(Config().worker_queues) == ()


@pytest.mark.parametrize(
    ("queues", "text"),
    [
        (("a=3", "b"), r"'a=3,b': some have a weight and 'b' has none; write 'b=1', or leave out"),
        (("a=3", "a=1"), "'a' has two weights; keep one of them"),
        (("a=0",), r"weight \(1 to 1000\)"),
        (("a=1001",), r"weight \(1 to 1000\)"),
        (("a=-1",), r"weight \(1 to 1000\)"),
        (("a=1.5",), r"weight \(1 to 1000\)"),
        (("a=",), r"weight \(1 to 1000\)"),
        (("=2",), r"weight \(1 to 1000\)"),
        (("delayed_tasks=2",), "the name of another kind of key"),
    ],
)
def test_wrong_weights_are_refused_with_the_cure(queues: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Config(queues=queues)


def test_the_largest_weight_is_taken() -> None:
    assert read_queue_weights(Config(queues=("a=1000", "b=999")).queues) == (1000, 999)


def test_allowed_queues_have_no_weights() -> None:
    with pytest.raises(ConfigError, match="allowed_queues"):
        Config(allowed_queues=("a=2",))
