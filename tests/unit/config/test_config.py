"""Settings come from layers, are checked all at once, and show no password."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import re

import pytest

from machine.config import SETTINGS, Config, RedisConfig
from machine.config.cpus import available_cpus
from machine.config.reload import Reloader
from machine.errors import ConfigError

MACHINERY = """\
---
broker: redis://pwd@127.0.0.1:6379/1
lock: redis://127.0.0.1:6379/2
default_queue: orders
result_backend: redis://127.0.0.1:6379
results_expire_in: 7200
no_unix_signals: true
redis:
  max_idle: 12
  max_active: 123
  max_idle_timeout: 456
  wait: false
  read_timeout: 17
  write_timeout: 19
  connect_timeout: 21
  normal_tasks_poll_period: 1001
  delayed_tasks_poll_period: 23
  delayed_tasks_key: delayed_tasks_key
  master_name: master_name
"""


QUEUES = "queue names of letters, digits and _ . : - and perhaps =weight (1 to 1000)"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Give each test a working directory of its own, without configuration."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def yaml(tmp_path):
    """Write config.yml."""

    def write(text: str) -> str:
        (tmp_path / "config.yml").write_text(text, encoding="utf-8")
        return "config.yml"

    return write


def load(**environ: str) -> Config:
    """Load all layers with these variables only."""
    return Config.load(environ=environ)


def errors_of(**environ: str) -> list[str]:
    """Return the lines of the error that loading gives."""
    with pytest.raises(ConfigError) as caught:
        load(**environ)
    return str(caught.value).splitlines()


def errors_in(text: str, yaml) -> list[str]:
    """Return the lines of the error that this config.yml gives."""
    with pytest.raises(ConfigError) as caught:
        Config.from_yaml(yaml(text))
    return str(caught.value).splitlines()


def error_with(**settings: object) -> str:
    """Return the text of the error that building a Config gives."""
    with pytest.raises(ConfigError) as caught:
        Config(**settings)
    return str(caught.value)


class TestValue:
    def test_defaults_are_machinerys(self):
        config = Config()

        assert config.broker == "redis://127.0.0.1:6379/0"
        assert config.default_queue == "machinery_tasks"
        assert config.results_expire_in == 3600
        assert config.no_unix_signals is False
        assert (config.redis.max_idle, config.redis.max_idle_timeout) == (3, 240)
        assert (config.redis.read_timeout, config.redis.write_timeout) == (15, 15)
        assert config.redis.normal_tasks_poll_period == 1000

    def test_nothing_can_be_changed(self):
        config = Config()

        with pytest.raises(dataclasses.FrozenInstanceError):
            config.broker = "eager"
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.redis.max_idle = 4

    def test_positional_arguments_are_refused(self):
        with pytest.raises(TypeError):
            Config("eager")

    def test_values_take_the_types_of_their_settings(self):
        config = Config(queues=["a", "b"], worker_lease_s=9, worker_processes="2", log_level="INFO")

        assert config.queues == ("a", "b")
        assert repr(config.worker_lease_s) == "9.0"
        assert config.worker_processes == 2
        assert config.log_level == "info"

    def test_source_of_values_is_no_part_of_equality(self):
        assert load(BROKER="eager") == Config(broker="eager")
        assert hash(load(BROKER="eager")) == hash(Config(broker="eager"))

    def test_it_survives_pickling_for_child_processes(self):
        config = load(BROKER="eager", REDIS_MAX_IDLE="4")

        copy = pickle.loads(pickle.dumps(config))  # noqa: S301 - our own bytes

        assert copy == config
        assert copy.sources == {"broker": "environment", "redis.max_idle": "environment"}

    def test_replace_checks_again(self):
        with pytest.raises(ConfigError, match="results_expire_in='0'"):
            dataclasses.replace(Config(), results_expire_in=0)

    def test_empty_settings_stand_for_others(self):
        config = Config(broker="redis://a", default_queue="q")

        assert (config.backend_url, config.lock_url) == ("redis://a", "redis://a")
        assert config.worker_queues == ("q",)
        assert config.heartbeat_s == 5.0
        assert config.process_count == available_cpus()
        assert Config(worker_concurrency=0).slot_count == 2 * available_cpus()

    def test_set_settings_stand_for_themselves(self):
        config = Config(
            result_backend="null",
            lock="eager",
            queues=("a", "b"),
            worker_heartbeat_s=1,
            worker_processes=3,
            worker_concurrency=4,
        )

        assert (config.backend_url, config.lock_url) == ("null", "eager")
        assert config.worker_queues == ("a", "b")
        assert config.heartbeat_s == 1.0
        assert (config.process_count, config.slot_count) == (3, 4)

    def test_address_follows_the_redis_section(self):
        sentinels = Config(redis=RedisConfig(master_name="m"))
        cluster = Config(redis=RedisConfig(cluster_mode=True))

        assert sentinels.address(sentinels.broker).kind == "sentinel"
        assert cluster.address(cluster.broker).kind == "cluster"
        assert Config().address("eager") is None


class TestChecks:
    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"results_expire_in": 0}, "='0': expected an integer of at least 1 (seconds)"),
            ({"results_expire_in": 1.5}, "='1.5': expected an integer of at least 1 (seconds)"),
            ({"results_expire_in": True}, "='true': expected an integer of at least 1 (seconds)"),
            (
                {"worker_lease_s": float("nan")},
                "='nan': expected a number of at least 0.1 (seconds)",
            ),
            ({"worker_lease_s": 10**400}, "…': expected a number of at least 0.1 (seconds)"),
            ({"worker_lease_s": False}, "='false': expected a number of at least 0.1 (seconds)"),
            ({"worker_lease_s": "x"}, "='x': expected a number of at least 0.1 (seconds)"),
            (
                {"worker_processes": 2000},
                "='2000': expected an integer of at least 0 and at most 1024",
            ),
            ({"no_unix_signals": "maybe"}, "='maybe': expected true or false"),
            ({"no_unix_signals": 1}, "='1': expected true or false"),
            ({"log_level": "warn"}, "='warn': expected one of debug, info, warning, error"),
            ({"broker": None}, "='None': expected text"),
            ({"queues": [1]}, f"='1': expected {QUEUES}"),
            ({"queues": 5}, f"='5': expected {QUEUES}"),
            ({"queues": ["a b"]}, f"='a b': expected {QUEUES}"),
            ({"tasks_modules": ["a-b"]}, "='a-b': expected module names like machine.tasks"),
            ({"worker_name": "a b"}, "='a b': expected at most 64 letters, digits and _ . : @ -"),
        ],
    )
    def test_wrong_value_is_named_with_what_is_expected(self, settings, text):
        (name,) = settings

        message = error_with(**settings)

        assert message.startswith(f"{name}=")
        assert message.endswith(text)

    def test_wrong_values_of_the_redis_section_are_named(self):
        with pytest.raises(ConfigError) as caught:
            RedisConfig(read_timeout=-1, delayed_tasks_key="task_x")

        assert str(caught.value).splitlines() == [
            "redis.read_timeout='-1': expected an integer of at least 0 (seconds)",
            (
                "redis.delayed_tasks_key='task_x': expected a key name of letters, digits and "
                "_ . : - { }, not like another kind of key"
            ),
        ]

    def test_all_errors_come_at_once(self):
        message = error_with(results_expire_in=0, log_format="xml")

        assert message.splitlines() == [
            "results_expire_in='0': expected an integer of at least 1 (seconds)",
            "log_format='xml': expected one of auto, text, json",
        ]

    @pytest.mark.parametrize(
        ("name", "start", "words"),
        [
            ("broker", "Factory failed with broker URL: BOGUS", "eager"),
            ("result_backend", "Factory failed with result backend: BOGUS", "eager or null"),
            ("lock", "Factory failed with lock: BOGUS", "eager"),
        ],
    )
    def test_unknown_url_has_machinerys_error_and_a_cure(self, name, start, words):
        message = error_with(**{name: "BOGUS"})

        assert message == f"{start}; use redis://…, rediss://…, redis+socket://… or {words}"

    def test_empty_broker_is_refused(self):
        assert error_with(broker="").startswith("Factory failed with broker URL: ;")

    @pytest.mark.parametrize(
        "url",
        [
            "amqp://guest:s3cret@localhost:5672/",
            "https://sqs.us-east-2.amazonaws.com/123",
            "gcppubsub://project/subscription",
            "memcache://10.0.0.1:11211,10.0.0.2:11211",
            "mongodb+srv://u:s3cret@h/db",
            "amqp",
        ],
    )
    def test_machinerys_other_servers_are_not_supported(self, url):
        message = error_with(result_backend=url)

        assert message.startswith(f"result_backend='{url.replace('s3cret', '***')}'")
        assert message.endswith(
            ": this kind of server is not supported here; "
            "use redis://…, rediss://…, redis+socket://… or eager or null"
        )

    def test_redis_url_that_cannot_be_read_is_refused(self):
        assert error_with(broker="redis://u:s3cret@h:x") == (
            "broker: Redis URL 'redis://***@h:***' cannot be used: "
            "expected host[:port] with a numeric port, and IPv6 in [brackets]"
        )

    @pytest.mark.parametrize("url", ["eager", "null", "redis+socket:///tmp/r.sock", "unix:///r"])
    def test_known_result_backends_are_accepted(self, url):
        assert Config(result_backend=url).backend_url == url

    def test_heartbeat_is_less_than_half_of_the_lease(self):
        assert error_with(worker_heartbeat_s=7.5) == (
            "worker_heartbeat_s='7.5': expected less than half of worker_lease_s (15 seconds), "
            "or 0 for a third of it"
        )
        assert Config(worker_heartbeat_s=7.4).heartbeat_s == 7.4

    def test_queue_is_not_named_like_another_key(self):
        message = error_with(
            default_queue="delayed_x",
            queues=["ok", "task_1"],
            allowed_queues=["TriggerChordMutex"],
            redis=RedisConfig(delayed_tasks_key="delayed_x"),
        )

        cure = "this is the name of another kind of key; choose another"
        assert message.splitlines() == [
            f"default_queue='delayed_x': {cure}",
            f"queues='task_1': {cure}",
            f"allowed_queues='TriggerChordMutex': {cure}",
        ]

    def test_sentinels_and_cluster_exclude_each_other(self):
        assert error_with(redis=RedisConfig(master_name="m", cluster_mode=True)) == (
            "redis.master_name='m': redis.cluster_mode is on, and a cluster has no sentinels; "
            "unset one of them"
        )

    @pytest.mark.parametrize(("here", "there"), [("cert", "key"), ("key", "cert")])
    def test_certificate_and_key_come_together(self, here, there):
        redis = RedisConfig(**{f"tls_{here}_file": "x.pem"})

        assert error_with(broker="rediss://h", redis=redis) == (
            f"redis.tls_{here}_file='x.pem': redis.tls_{there}_file is missing; set both"
        )

    def test_tls_settings_without_an_encrypted_url_are_refused(self):
        assert error_with(
            redis=RedisConfig(tls_ca_file="ca.pem", tls_insecure=True)
        ).splitlines() == [
            "redis.tls_ca_file is set, but no URL is encrypted; write rediss:// for redis://",
            "redis.tls_insecure is set, but no URL is encrypted; write rediss:// for redis://",
        ]

    def test_tls_settings_do_not_matter_without_a_server(self):
        assert Config(broker="eager", redis=RedisConfig(tls_ca_file="ca.pem")).broker == "eager"

    def test_password_in_clear_and_unchecked_server_are_warned_about(self):
        config = Config(
            broker="redis://s3cret@far:1",
            result_backend="rediss://s3cret@far",
            lock="redis://s3cret@127.0.0.1",
            redis=RedisConfig(tls_insecure=True),
        )

        assert config.warnings() == [
            "broker: its password goes to far unencrypted; use rediss://",
            "redis.tls_insecure: nobody checks who answers; set redis.tls_ca_file instead",
        ]

    def test_defaults_need_no_warning(self):
        assert Config().warnings() == []


class TestLayers:
    def test_flag_wins_over_environment_over_dotenv_over_yaml_over_default(self, yaml, tmp_path):
        yaml("worker_name: file\nlog_level: error\nworker_lease_s: 3\nworker_block_s: 4\n")
        (tmp_path / ".env").write_text("WORKER_NAME=dotenv\nLOG_LEVEL=warning\nWORKER_LEASE_S=6\n")
        environ = {"WORKER_NAME": "environment", "LOG_LEVEL": "debug"}

        config = Config.load({"worker_name": "flag"}, environ=environ)

        assert config.worker_name == "flag"
        assert config.log_level == "debug"
        assert config.worker_lease_s == 6.0
        assert config.worker_block_s == 4.0
        assert config.default_queue == "machinery_tasks"
        assert config.sources == {
            "worker_name": "flag",
            "log_level": "environment",
            "worker_lease_s": ".env",
            "worker_block_s": "config.yml:4",
        }

    def test_empty_values_are_unset_in_every_layer(self, yaml, tmp_path):
        yaml("worker_name: file\nqueues: []\nlog_level:\nbroker: ''\nredis:\n")
        (tmp_path / ".env").write_text("WORKER_NAME=\nLOG_LEVEL\n")

        config = Config.load({"worker_name": None, "queues": ()}, environ={"WORKER_NAME": " "})

        assert config == Config(worker_name="file")

    def test_process_is_read_when_no_variables_are_given(self, monkeypatch):
        monkeypatch.setenv("DEFAULT_QUEUE", "from_the_process")

        assert Config.load().default_queue == "from_the_process"
        assert Config.from_environment().default_queue == "from_the_process"

    def test_dotenv_changes_nothing_in_the_process(self, tmp_path):
        (tmp_path / ".env").write_text("DEFAULT_QUEUE=q\nBROKER='redis://${HOME}@h'\n")
        before = dict(os.environ)

        config = Config.load(environ={})

        assert dict(os.environ) == before
        assert config.default_queue == "q"
        assert config.broker == "redis://${HOME}@h"

    def test_dotenv_can_be_left_out_or_named(self, tmp_path):
        (tmp_path / ".env").write_text("DEFAULT_QUEUE=a\n")
        (tmp_path / "other.env").write_text("DEFAULT_QUEUE=b\n")

        assert Config.load(environ={}, dotenv=None).default_queue == "machinery_tasks"
        assert Config.load(environ={}, dotenv="other.env").sources == {"default_queue": "other.env"}

    def test_yaml_file_is_named_by_argument_then_variable_then_dotenv(self, yaml, tmp_path):
        yaml("default_queue: here\n")
        for name in ("argument", "variable", "dotenv"):
            (tmp_path / f"{name}.yml").write_text(f"default_queue: {name}\n")

        assert load().default_queue == "here"
        (tmp_path / ".env").write_text("CONFIG_FILE=dotenv.yml\n")
        assert load().default_queue == "dotenv"
        assert load(CONFIG_FILE="variable.yml").default_queue == "variable"
        config = Config.load(path="argument.yml", environ={"CONFIG_FILE": "variable.yml"})
        assert config.sources == {"default_queue": "argument.yml:1"}

    def test_named_file_must_exist(self):
        assert errors_of(CONFIG_FILE="missing.yml") == [
            (
                "missing.yml: the file cannot be read (No such file or directory); "
                "name another, or make this one"
            )
        ]

    def test_errors_of_all_layers_come_at_once(self, yaml, tmp_path):
        yaml("results_expire_in: abc\nworker_lease_s: 4\n")
        (tmp_path / ".env").write_text("LOG_LEVEL=loud\n")

        with pytest.raises(ConfigError) as caught:
            Config.load(
                {"worker_block_s": "x", "colour": "red", "worker_heartbeat_s": 2},
                environ={"NO_UNIX_SIGNALS": "maybe", "BROKER": "BOGUS"},
            )

        assert str(caught.value).splitlines() == [
            "config.yml:1: results_expire_in='abc': expected an integer of at least 1 (seconds)",
            ".env LOG_LEVEL='loud': expected one of debug, info, warning, error",
            "environment NO_UNIX_SIGNALS='maybe': expected true or false",
            "flag worker_block_s='x': expected a number of at least 0.01 (seconds)",
            "flag colour: unknown setting 'colour'; docs/config.md lists all settings",
            (
                "environment BROKER: Factory failed with broker URL: BOGUS; "
                "use redis://…, rediss://…, redis+socket://… or eager"
            ),
            (
                "flag worker_heartbeat_s: worker_heartbeat_s='2': expected less than half of "
                "worker_lease_s (4 seconds), or 0 for a third of it"
            ),
        ]

    def test_rules_about_a_value_that_is_wrong_itself_are_not_applied(self):
        assert errors_of(WORKER_LEASE_S="x", WORKER_HEARTBEAT_S="9") == [
            "environment WORKER_LEASE_S='x': expected a number of at least 0.1 (seconds)"
        ]

    def test_rule_broken_by_a_default_names_the_setting(self):
        (line,) = errors_of(REDIS_DELAYED_TASKS_KEY="machinery_tasks")

        assert line.startswith("default_queue='machinery_tasks': this is the name of another kind")

    def test_unreadable_dotenv_is_an_error(self, tmp_path):
        (tmp_path / ".env").write_bytes(b"A=\xff\n")

        assert errors_of() == [".env: the file cannot be read (not UTF-8 text)"]


class TestEnvironment:
    def test_machinerys_variables_are_read(self):
        config = Config.from_environment(
            environ={
                "BROKER": "redis://b",
                "DEFAULT_QUEUE": "q",
                "RESULT_BACKEND": "redis://r",
                "RESULTS_EXPIRE_IN": "123456",
                "LOCK": "eager",
                "NO_UNIX_SIGNALS": "1",
                "REDIS_IDLE_TIMEOUT": "9",
                "REDIS_CLUSTER_ENABLED": "t",
                "AMQP_EXCHANGE": "someone else's",
                "PATH": "/bin",
            }
        )

        assert config == Config(
            broker="redis://b",
            default_queue="q",
            result_backend="redis://r",
            results_expire_in=123456,
            lock="eager",
            no_unix_signals=True,
            redis=RedisConfig(max_idle_timeout=9, cluster_mode=True),
        )

    def test_neither_yaml_nor_dotenv_is_read(self, yaml, tmp_path):
        yaml("default_queue: file\n")
        (tmp_path / ".env").write_text("DEFAULT_QUEUE=dotenv\n")

        assert Config.from_environment(environ={}) == Config()

    def test_lists_are_separated_by_commas(self):
        assert load(QUEUES="a, b,,c").queues == ("a", "b", "c")

    def test_variables_have_the_names_of_their_settings(self):
        odd = {"redis.max_idle_timeout": "REDIS_IDLE_TIMEOUT"}

        for name, row in SETTINGS.items():
            assert row.variables[0] == odd.get(name, name.replace(".", "_").upper())

    def test_two_spellings_of_one_setting_are_refused(self):
        assert errors_of(REDIS_IDLE_TIMEOUT="1", REDIS_MAX_IDLE_TIMEOUT="2") == [
            (
                "environment REDIS_IDLE_TIMEOUT and REDIS_MAX_IDLE_TIMEOUT: "
                "both give redis.max_idle_timeout; keep one of them"
            )
        ]

    def test_second_spelling_is_named_as_the_source(self):
        assert load(REDIS_MAX_IDLE_TIMEOUT="2").sources == {
            "redis.max_idle_timeout": "environment REDIS_MAX_IDLE_TIMEOUT"
        }


class TestSecretFiles:
    @pytest.fixture
    def secret(self, tmp_path):
        def write(text: bytes) -> str:
            (tmp_path / "secret").write_bytes(text)
            return str(tmp_path / "secret")

        return write

    def test_file_holds_the_value(self, secret):
        config = load(BROKER_FILE=secret(b"redis://s3cret@h\r\n"))

        assert config.broker == "redis://s3cret@h"
        assert config.sources == {"broker": "environment BROKER_FILE"}

    def test_spaces_of_a_password_are_kept(self, secret):
        config = load(REDIS_SENTINEL_PASSWORD_FILE=secret(b" s3 cret \n"))

        assert config.redis.sentinel_password == " s3 cret "

    def test_value_and_file_exclude_each_other(self, secret):
        assert errors_of(BROKER="eager", BROKER_FILE=secret(b"eager")) == [
            "environment BROKER and BROKER_FILE: both give broker; keep one of them"
        ]

    def test_content_is_never_shown(self, secret):
        assert errors_of(BROKER_FILE=secret(b"s3cret")) == [
            (
                "environment BROKER_FILE: Factory failed with broker URL: ***; "
                "use redis://…, rediss://…, redis+socket://… or eager"
            )
        ]

    def test_missing_empty_and_binary_files_are_errors(self, tmp_path):
        empty, binary = tmp_path / "empty", tmp_path / "binary"
        empty.write_text("\n")
        binary.write_bytes(b"\xff")

        assert errors_of(BROKER_FILE="/missing/x", LOCK_FILE=str(empty)) == [
            (
                "environment BROKER_FILE='/missing/x': "
                "the file cannot be read (No such file or directory)"
            ),
            f"environment LOCK_FILE='{empty}': the file is empty; fill it, or unset LOCK_FILE",
        ]
        assert errors_of(BROKER_FILE=str(binary)) == [
            f"environment BROKER_FILE='{binary}': the file cannot be read (not UTF-8 text)"
        ]

    @pytest.mark.parametrize("text", ["s3cret", "redis://u:s3cret@h/0"])
    def test_secret_in_the_place_of_a_path_is_hidden(self, text):
        assert errors_of(BROKER_FILE=text) == [
            "environment BROKER_FILE='***': the file cannot be read (No such file or directory)"
        ]

    def test_only_secrets_have_a_file_form(self):
        assert load(DEFAULT_QUEUE_FILE="/missing") == Config()


class TestRedisUrl:
    def test_it_gives_broker_and_result_backend(self, yaml):
        yaml("broker: redis://file\nresult_backend: redis://file\n")

        config = load(REDIS_URL="redis://platform")

        assert (config.broker, config.result_backend) == ("redis://platform", "redis://platform")
        assert config.sources == {
            "broker": "environment REDIS_URL",
            "result_backend": "environment REDIS_URL",
        }

    def test_it_is_not_read_beside_a_broker(self):
        config = load(REDIS_URL="redis://platform", BROKER="redis://b")

        assert (config.broker, config.backend_url) == ("redis://b", "redis://b")

    def test_named_result_backend_is_kept(self):
        config = load(REDIS_URL="redis://platform", RESULT_BACKEND="null")

        assert (config.broker, config.result_backend) == ("redis://platform", "null")

    def test_broker_in_dotenv_wins_over_it(self, tmp_path):
        (tmp_path / ".env").write_text("BROKER=redis://dotenv\n")

        assert load(REDIS_URL="redis://platform").broker == "redis://dotenv"

    def test_dotenv_and_a_file_may_give_it(self, tmp_path):
        (tmp_path / "url").write_text("redis://s3cret@h")
        (tmp_path / ".env").write_text(f"REDIS_URL_FILE={tmp_path}/url\n")

        assert load().sources["broker"] == ".env REDIS_URL_FILE"
        assert load().result_backend == "redis://s3cret@h"

    def test_its_errors_name_it(self):
        assert errors_of(REDIS_URL_FILE="/missing/x") == [
            (
                "environment REDIS_URL_FILE='/missing/x': "
                "the file cannot be read (No such file or directory)"
            )
        ]


class TestYaml:
    def test_machinerys_file_is_read(self, yaml):
        config = Config.from_yaml(yaml(MACHINERY))

        assert config == Config(
            broker="redis://pwd@127.0.0.1:6379/1",
            lock="redis://127.0.0.1:6379/2",
            default_queue="orders",
            result_backend="redis://127.0.0.1:6379",
            results_expire_in=7200,
            no_unix_signals=True,
            redis=RedisConfig(
                max_idle=12,
                max_active=123,
                max_idle_timeout=456,
                read_timeout=17,
                write_timeout=19,
                connect_timeout=21,
                normal_tasks_poll_period=1001,
                delayed_tasks_poll_period=23,
                delayed_tasks_key="delayed_tasks_key",
                master_name="master_name",
            ),
        )
        assert config.sources["redis.max_idle"] == "config.yml:9"

    def test_variables_are_not_read(self, yaml, monkeypatch):
        monkeypatch.setenv("BROKER", "redis://process")

        assert Config.from_yaml(yaml("")) == Config()

    @pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~\n", "\ufeff{}\n"])
    def test_file_without_settings_gives_the_defaults(self, yaml, text):
        assert Config.from_yaml(yaml(text)) == Config()

    def test_file_of_any_size_is_read_whole(self, yaml):
        text = "# " + "x" * 100_000 + "\ndefault_queue: last\n"

        assert Config.from_yaml(yaml(text)).default_queue == "last"

    def test_values_are_read_as_written(self, yaml):
        config = Config.from_yaml(
            yaml("worker_name: 007\nno_unix_signals: on\nworker_lease_s: 1e1\nqueues: [a, 'b']\n")
        )

        assert config.worker_name == "007"
        assert config.no_unix_signals is True
        assert config.worker_lease_s == 10.0
        assert config.queues == ("a", "b")

    def test_machinery_2s_name_for_the_cluster_is_read(self, yaml):
        assert Config.from_yaml(yaml("redis: {cluster_enabled: true}")).redis.cluster_mode is True

    def test_unknown_setting_has_its_line_and_a_suggestion(self, yaml):
        text = "\nbrokr: x\nBROKER: x\nredi: {}\nzzz: 1\n"
        text += "redis:\n  delayed_tasks_poll_periodd: 1\n? [x]\n: 1\n"

        assert errors_in(text, yaml) == [
            "config.yml:2: unknown setting 'brokr'; did you mean 'broker'?",
            "config.yml:3: unknown setting 'BROKER'; did you mean 'broker'?",
            "config.yml:4: unknown setting 'redi'; did you mean 'redis'?",
            "config.yml:5: unknown setting 'zzz'; docs/config.md lists all settings",
            (
                "config.yml:7: unknown setting 'redis.delayed_tasks_poll_periodd'; "
                "did you mean 'redis.delayed_tasks_poll_period'?"
            ),
            "config.yml:8: unknown setting '?'; docs/config.md lists all settings",
        ]

    @pytest.mark.parametrize(
        "key",
        ["amqp", "sqs", "dynamodb", "multiple_broker_separator", "AMQP_EXCHANGE", "tls_config"],
    )
    def test_machinerys_settings_for_other_servers_are_refused(self, yaml, key):
        assert errors_in(f"{key}:\n  exchange: x\n", yaml) == [
            (
                f"config.yml:1: '{key}' is not supported here: the broker is Redis (or eager); "
                "remove it, and set 'broker' and 'redis' instead"
            )
        ]

    def test_duplicate_keys_are_refused(self, yaml):
        text = "broker: eager\nbroker: eager\nredis:\n  cluster_mode: 1\n  cluster_enabled: 1\n"

        assert errors_in(text, yaml) == [
            "config.yml:2: 'broker' is given twice (first on line 1); keep one of them",
            (
                "config.yml:5: 'redis.cluster_enabled' is given twice (first on line 4); "
                "keep one of them"
            ),
        ]

    def test_shapes_that_do_not_fit_are_refused(self, yaml):
        assert errors_in("- a\n", yaml) == [
            "config.yml:1: expected settings, one 'name: value' on each line"
        ]
        assert errors_in("broker: {a: b}\nqueues: [[a]]\nredis: x\nlog_level: [info]\n", yaml) == [
            "config.yml:1: broker: expected text",
            f"config.yml:2: queues: expected {QUEUES}",
            "config.yml:3: redis: expected settings, one 'name: value' on each line",
            "config.yml:4: log_level='info': expected one of debug, info, warning, error",
        ]

    def test_nothing_in_the_file_is_built(self, yaml):
        text = 'broker: !!python/object/apply:os.system ["touch built"]\n'
        text += "lock: !s3cret x\nqueues: [~]\n"
        cure = "a value that starts with '!' needs quotes, and a list no empty items"

        assert errors_in(text, yaml) == [
            "config.yml:1: broker='touch built': expected text",
            f"config.yml:2: lock: {cure}",
            f"config.yml:3: queues: {cure}",
        ]
        assert not os.path.exists("built")  # noqa: PTH110 - the working directory

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (
                "broker: eager\n  x: 1\n",
                "config.yml:2: not YAML: mapping values are not allowed here",
            ),
            ("a: *s3cret\n", "config.yml:1: not YAML: found undefined alias '***'"),
            ("a: !s3cret!x y\n", "config.yml:1: not YAML: found undefined tag handle '***'"),
            ("a: 1\n---\nb: 2\n", "config.yml:2: not YAML: but found another document"),
            ("a: \x07\n", "config.yml: not YAML: bad characters"),
        ],
    )
    def test_text_that_is_not_yaml_is_refused_without_its_values(self, yaml, text, problem):
        assert errors_in(text, yaml) == [f"{problem}; quote values with special characters"]

    def test_file_that_is_not_text_is_refused(self, tmp_path):
        (tmp_path / "x.yml").write_bytes(b"\xff\xfe")

        with pytest.raises(ConfigError) as caught:
            Config.from_yaml("x.yml")

        assert str(caught.value) == (
            "x.yml: the file cannot be read (not UTF-8 text); name another, or make this one"
        )


class TestSecrecy:
    SECRETS = (
        ("BROKER", "redis://user:S3CRET@h:1"),
        ("BROKER", "redis://S3CRET@h1:1,h2:2"),
        ("RESULT_BACKEND", "redis+socket://S3CRET@/tmp/x"),
        ("LOCK", "rediss://:S3CRET@h"),
        ("REDIS_URL", "redis://S3CRET@h"),
        ("REDIS_SENTINEL_PASSWORD", "S3CRET"),
    )

    @pytest.mark.parametrize(("name", "value"), SECRETS)
    def test_repr_and_description_hide_passwords(self, name, value):
        config = load(**{name: value})

        assert "S3CRET" not in repr(config)
        assert "S3CRET" not in repr(config.redis)
        assert "S3CRET" not in str(config.describe())
        assert "***" in repr(config)

    @pytest.mark.parametrize(("name", "value"), SECRETS)
    @pytest.mark.parametrize("damage", ["{}:x", "x{}", "{}?a=b", "{}@", "[{}]", "{} "])
    def test_errors_hide_passwords(self, name, value, damage):
        environ = {name: damage.format(value), "WORKER_NAME": f"{value}@", "LOG_LEVEL": "x"}

        assert "S3CRET" not in "\n".join(errors_of(**environ))

    def test_user_info_in_cluster_mode_is_all_password(self):
        config = Config(broker="redis://S3CRET:x@h", redis=RedisConfig(cluster_mode=True))

        assert repr(config) == "Config(broker='redis://***@h', redis.cluster_mode='true')"

    def test_repr_shows_what_differs_from_the_defaults(self):
        config = Config(queues=["a", "b"], redis=RedisConfig(max_idle=4))

        assert repr(config) == "Config(queues='a,b', redis.max_idle='4')"
        assert repr(config.redis) == "RedisConfig(redis.max_idle='4')"
        assert repr(Config()) == "Config()"

    def test_description_has_every_setting_with_its_source(self, yaml):
        yaml("default_queue: q\n")
        config = load(REDIS_SENTINEL_PASSWORD="S3CRET", BROKER="redis://u:S3CRET@h")

        lines = {line.name: line for line in config.describe()}

        assert list(lines) == list(SETTINGS)
        assert lines["broker"] == ("broker", "redis://u:***@h", "environment")
        assert lines["default_queue"] == ("default_queue", "q", "config.yml:1")
        assert lines["redis.wait"] == ("redis.wait", "false", "default")
        assert lines["redis.sentinel_password"].value == "***"

    def test_values_given_in_python_are_called_arguments(self):
        lines = {line.name: line.source for line in Config(log_level="error").describe()}

        assert (lines["log_level"], lines["log_format"]) == ("argument", "default")


class TestReloading:
    def test_reload_reads_the_same_file_again(self, yaml):
        config = Config.from_yaml(yaml("default_queue: a\n"), keep_reloading=True)
        yaml("default_queue: b\n")

        assert config.default_queue == "a"
        assert config.reload().default_queue == "b"
        assert config.reload().reload is not None

    def test_reload_reads_the_same_variables_again(self):
        environ = {"DEFAULT_QUEUE": "a"}
        config = Config.from_environment(keep_reloading=True, environ=environ)
        environ["DEFAULT_QUEUE"] = "b"

        assert config.reload().default_queue == "b"

    def test_nothing_reloads_unless_asked(self, yaml):
        assert Config.from_environment(environ={}).reload is None
        assert Config.from_yaml(yaml("")).reload is None

    def test_changed_file_swaps_the_config_once(self, yaml):
        changes: list[str] = []
        config = Config.from_yaml(yaml("default_queue: a\n"), keep_reloading=True)
        reloader = Reloader(config.reload, lambda fresh: changes.append(fresh.default_queue))

        assert reloader.run_once() is False
        yaml("default_queue: b\n")
        assert reloader.run_once() is True
        assert reloader.run_once() is False

        assert changes == ["b"]
        assert reloader.config.default_queue == "b"
        assert reloader.period_s == 10.0

    def test_broken_file_keeps_the_old_config_and_warns(self, yaml, caplog):
        path = yaml("default_queue: a\n")
        reloader = Reloader(lambda: Config.from_yaml(path), lambda _: None)
        yaml("default_queue: [\n")

        with caplog.at_level(logging.WARNING, logger="machine.config.reload"):
            swapped = reloader.run_once()

        assert swapped is False
        assert reloader.config.default_queue == "a"
        (record,) = caplog.records
        assert re.match(
            r"Failed to reload config, the old one stays: config.yml:2: not YAML: ",
            record.getMessage(),
        )

    def test_first_reading_must_succeed(self):
        with pytest.raises(ConfigError, match=r"missing\.yml: the file cannot be read"):
            Reloader(lambda: Config.from_yaml("missing.yml"), lambda _: None)


class TestCpus:
    @pytest.mark.parametrize(
        ("quota", "count"),
        [("50000 100000", 1), ("1 100000", 1), ("max 100000", None), ("x", None)],
    )
    def test_quota_of_a_container_counts(self, tmp_path, quota, count):
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        everything = available_cpus(str(tmp_path / "missing"))

        assert available_cpus(str(tmp_path / "cpu.max")) == (count or everything)

    def test_part_of_a_cpu_counts_as_one_more(self, tmp_path):
        (tmp_path / "cpu.max").write_text("110000 100000\n")
        everything = available_cpus(str(tmp_path / "missing"))

        assert available_cpus(str(tmp_path / "cpu.max")) == min(2, everything)

    def test_systems_without_affinity_count_all(self, tmp_path, monkeypatch):
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)

        assert available_cpus(str(tmp_path / "missing")) == os.cpu_count()
