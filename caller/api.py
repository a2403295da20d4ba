"""
The HTTP caller: tasks sent, followed and canceled by JSON over HTTP.

Run as many as you like beside any worker: ``python caller/api.py``. Any of them
can answer for what another one sent. See docs/api.md; it needs the extra ``api``.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from machine import build
from machine.config import Config
from machine.errors import ConfigError, MachineError
from machine.registry import Registry
from machine.telemetry import logs

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from caller.web.service import Service

#: Exit status for wrong settings, as sysexits.h has it.
_BAD_SETTINGS: Final = 78
#: Seconds that a request keeps trying while Redis is away; clients know better when to come back.
_PATIENCE_S: Final = 1.0
#: Seconds that requests may go on after SIGTERM; streams and waits end at once.
_DRAIN_S: Final = 5
_log = logging.getLogger("caller.api")


def check(config: Config) -> None:
    """
    Refuse to let everybody in by accident.

    Raises:
        ConfigError: Others than this machine could send tasks without a token.
    """
    from caller.web.middleware import is_loopback  # noqa: PLC0415 - found once main() runs

    tokens = [token.strip() for token in config.api_token.split(",")]
    if config.api_token and not all(tokens):
        raise ConfigError("api_token: a token between two commas is empty; give each its text.")
    if config.api_token or config.api_open or is_loopback(config.api_host):
        return
    raise ConfigError(
        f"api_host='{config.api_host}': everybody who reaches this address could send tasks. Set "
        "api_token (API_TOKEN or API_TOKEN_FILE), or say api_open: true where something in front "
        "of this service asks who comes."
    )


def replica(config: Config) -> tuple[Service, ASGIApp]:
    """Return one replica and its application; nothing connects before the first request."""
    from caller.web import metrics  # noqa: PLC0415 - all of these come with the extra
    from caller.web.routes import make_app  # noqa: PLC0415
    from caller.web.service import Service  # noqa: PLC0415

    registry = Registry()
    registry.collect(*config.tasks_modules)
    sent = metrics.counter(registry)
    instruments = [] if sent is None else [sent]
    service = Service(build.server(config, registry, retry_s=_PATIENCE_S, instruments=instruments))
    more = [] if sent is None else [metrics.route(service, sent)]
    return service, make_app(service, config, more)


def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; then end every stream, finish every request, and return."""
    import uvicorn  # noqa: PLC0415 - comes with the extra

    service, application = replica(config)

    class Serving(uvicorn.Server):
        """uvicorn waits for requests under way; those that wait themselves are told to end."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.following.closing.set()
            super().handle_exit(sig, frame)

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            for listening in self.servers:
                for one in listening.sockets:
                    host, port = one.getsockname()[:2]
                    _log.info(
                        "listening on http://%s:%d", f"[{host}]" if ":" in host else host, port
                    )

    settings = uvicorn.Config(
        application,
        host=config.api_host,
        port=config.api_port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=_DRAIN_S,
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    serving = Serving(settings)

    def end(_number: int, _frame: FrameType | None) -> None:
        # uvicorn raises the signal again when it has ended; by then everything is done.
        if not serving.started:
            sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    serving.run()


def main() -> int:
    """Serve; return the exit status: 0 when told to end, 78 for settings that cannot be."""
    try:
        config = Config.load()
        logs.set_up(config.log_level, config.log_format, "api")
        for warning in config.warnings():
            _log.warning("%s", warning)
        check(config)
        serve(config)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("msgspec", "starlette", "uvicorn"):
            raise
        print("error: the HTTP caller needs its extra: pip install '.[api]'", file=sys.stderr)
        return _BAD_SETTINGS
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        return _BAD_SETTINGS
    return 0


if __name__ == "__main__":
    # This folder stands first there, where `caller` would be the demo and not the package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(main())
