"""
The worker's entry point: read flags and settings, then run tasks until a signal.

Run as many as you like: ``python worker/worker.py``. The tasks are those of the
setting `tasks_modules`. docs/operations.md lists signals and exit statuses.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys

from machine import build
from machine.config import Config
from machine.errors import BrokerRefused, ConfigError
from machine.telemetry import logs

#: Exit statuses: wrong command line; wrong settings, refused by Redis (both as in sysexits.h).
_USAGE, _BAD_SETTINGS, _REFUSED = 2, 78, 77


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; a flag that is not given leaves its setting alone."""
    made = argparse.ArgumentParser(
        prog="worker.py", description="Take tasks from Redis and run them.", allow_abbrev=False
    )
    made.add_argument(
        *("-c", "--concurrency"), dest="worker_concurrency", metavar="N",
        help="tasks at once in each process (0: two for each CPU)",
    )  # fmt: skip
    made.add_argument(
        *("-p", "--processes"), dest="worker_processes", metavar="N",
        help="processes (0: one for each CPU)",
    )  # fmt: skip
    made.add_argument(
        *("-Q", "--queues"),
        dest="queues",
        metavar="A,B",
        help="queues to consume, most urgent first; or A=3,B=1 to share by weight",
    )
    made.add_argument(
        "-n", "--name", dest="worker_name", metavar="NAME", help="a name for the logs"
    )
    made.add_argument(
        *("-l", "--log-level"),
        dest="log_level",
        metavar="LEVEL",
        help="debug, info, warning, error",
    )
    made.add_argument("--config", metavar="FILE", help="the settings file (config.yml)")
    return made


def _set_up_logs(config: Config) -> None:
    logs.set_up(config.log_level, config.log_format, config.worker_name or socket.gethostname())


def main(arguments: list[str] | None = None) -> int:
    """Run a worker until a signal stops it; return the exit status."""
    given = vars(parser().parse_args(arguments))
    path = given.pop("config")
    flags = {name: value for name, value in given.items() if value is not None}
    try:
        config = Config.load(flags, path=path)
        _set_up_logs(config)
        for warning in config.warnings():
            logging.getLogger("machine.worker").warning("%s", warning)
        return build.worker(config, on_change=_set_up_logs).launch()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return _BAD_SETTINGS
    except BrokerRefused as error:
        print(f"error: {error}", file=sys.stderr)
        return _REFUSED


if __name__ == "__main__":
    sys.exit(main())
