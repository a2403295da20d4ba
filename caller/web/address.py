"""Which names are this machine's own. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

_LOOPBACK: Final = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


def is_loopback(host: str) -> bool:
    """Say whether this host is the machine itself, and nobody else can reach it."""
    return _LOOPBACK.fullmatch(host) is not None


def host_of(header: str) -> str:
    """Return the host in a ``Host`` header, without its port; "" where there is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
