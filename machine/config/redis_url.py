"""
Redis URLs in the forms that Go Machinery reads: parsed, or without their passwords.

Machinery's rules differ from redis-py's: a user info without a colon is the
password, and a list with commas names sentinels or cluster nodes. So URLs are
parsed here only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NoReturn
from urllib.parse import unquote

from machine.errors import ConfigError

AddressKind = Literal["single", "socket", "sentinel", "cluster"]
#: What a Redis URL starts with.
SCHEMES = ("redis://", "rediss://", "redis+socket://", "unix://")
_PORT = 6379
_SENTINEL_PORT = 26379
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\[\]:@/?#\s]+))(?::([0-9]{0,5}))?")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# Only known schemes start a new URL within a text: "x://" may as well be part of a password.
_SEGMENT = re.compile(
    r"(?:^|(?<=[\s,;'\"=(<\[]))"
    r"(?=(?:rediss?|redis\+socket|unix|amqps?|https?|gcppubsub|memcache|mongodb(?:\+srv)?)://)"
)
_PLAIN_USER = re.compile(r"([A-Za-z0-9_.-]*):")
_NO_PORT = re.compile(
    r"(?:\[[^\]\s]*\]|[^\s\[\]:/?#,]*):(?![0-9]+(?:[\s/?#,;'\")>\]:]|$))(.+)", re.DOTALL
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """
    Where a server is and how to log in.

    Attributes:
        kind: One server, a unix socket, sentinels that know the master, or cluster nodes.
        hosts: (host, port) pairs, in the URL's order; none for a socket.
        path: The socket's path; "" for the others.
        username: ACL user, or "".
        password: "" when there is none.
        db: Database number, ≥ 0; 0 for a cluster.
        tls: Whether the connection is encrypted (``rediss://``).
    """

    kind: AddressKind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    tls: bool = False


def parse_address(url: str, *, master_name: str = "", cluster: bool = False) -> RedisAddress:
    """
    Return the address in a Redis URL.

    ``redis[s]://[[user:]password@]host[:port][/db]`` is one server. User and
    password may have percent-escapes; a database that is no number counts as 0.
    ``redis[s]://[password@]h1:p1,h2:p2[/db]`` is a list. All before its last
    ``@`` is the password, without escapes.
    ``redis+socket://[[user:]password@]/path[:/db]`` is a unix socket.

    Args:
        url: The text.
        master_name: Makes host and list sentinels that are asked for this master.
        cluster: Makes host and list nodes of a cluster; a list without a
            ``master_name`` is one anyway.

    Raises:
        ConfigError: It has none of these forms; the text hides the password.
    """
    scheme, mark, rest = url.partition("://")
    if scheme + mark not in SCHEMES:
        _refuse(url, f"it must start with {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}")
    if cluster and master_name:
        _refuse(
            url, "it cannot name both sentinels and cluster nodes; unset one of the two settings"
        )
    if scheme in ("redis+socket", "unix"):
        return _parse_socket(url, rest)
    if "," in rest or cluster:
        return _parse_list(url, rest, tls=scheme == "rediss", sentinel=bool(master_name))
    return _parse_single(url, rest, tls=scheme == "rediss", sentinel=bool(master_name))


def redact(text: str, *, whole: bool = False) -> str:
    """
    Return the text with every password in its URLs written as ``***``.

    If in doubt it hides too much: everything between ``://`` and the last ``@``
    except a plain user name, a port that is no number, and every query.

    Args:
        text: A URL, well-formed or not, or any text with URLs in it.
        whole: Hide a user name too: in a list ``a:b`` is a password.
    """
    parts = [_redact_segment(part, whole=whole) for part in _SEGMENT.split(text)]
    return "".join(parts)


def _redact_segment(text: str, *, whole: bool) -> str:
    scheme, mark, rest = text.partition("://")
    if not mark:
        if "@" in text:
            return "***@" + text.rpartition("@")[2]
        return text if re.search(r"\s", text) else _hide_tail(text)
    if "@" in rest:
        info, _, tail = rest.rpartition("@")
        user = _PLAIN_USER.match(info)
        # In a list with commas the whole user info is the password.
        shown = "" if whole or user is None or "," in tail.split(" ")[0] else user[0]
        return f"{scheme}://{shown}***@{_hide_tail(tail)}"
    return f"{scheme}://{_hide_tail(rest)}"


def _hide_tail(text: str) -> str:
    """Hide a password in the place of a port, and the query."""
    text = re.sub(r"(?<=[\w/\]])\?[^\s'\"]*[=&][^\s'\"]*", "?***", text)
    wrong = _NO_PORT.match(text)
    return text if wrong is None else text[: wrong.start(1)] + "***"


def _refuse(url: str, why: str) -> NoReturn:
    message = f"Redis URL '{redact(url, whole=True)}' cannot be used: {why}"
    raise ConfigError(message)


def _parse_single(url: str, rest: str, *, tls: bool, sentinel: bool) -> RedisAddress:
    authority, _, path = rest.partition("/")
    if "?" in rest or "#" in rest or "@" in path:
        _refuse(url, "write %2F, %3F, %23 for / ? # in a password; options go under 'redis:'")
    info, _, host = authority.rpartition("@")
    user, colon, password = info.partition(":")
    if not colon:
        user, password = "", user
    return RedisAddress(
        kind="sentinel" if sentinel else "single",
        hosts=(_host(url, host, sentinel=sentinel),),
        username=_unescape(url, user),
        password=_unescape(url, password),
        db=_db(url, path.partition("/")[0]),
        tls=tls,
    )


def _parse_list(url: str, rest: str, *, tls: bool, sentinel: bool) -> RedisAddress:
    first, *others = rest.split(",")
    password, _, first = first.rpartition("@")
    *hosts, last = first, *others
    last, _, db = last.partition("/")
    if any("@" in other for other in others):
        _refuse(url, "the password stands once, before the first address, and without a comma")
    if re.search(r"://|[?#]", ",".join((first, *others))):
        _refuse(url, "the scheme stands once, and options go under 'redis:'")
    return RedisAddress(
        kind="sentinel" if sentinel else "cluster",
        hosts=tuple(_host(url, host.strip(), sentinel=sentinel) for host in (*hosts, last)),
        password=password,
        db=_db(url, db) if sentinel else 0,
        tls=tls,
    )


def _parse_socket(url: str, rest: str) -> RedisAddress:
    info, at, path = rest.partition("@")
    if rest.startswith("/") or not at:
        info, path = "", rest
    path, _, db = path.partition(":")
    if not path.startswith("/") or path == "/":
        _refuse(url, "the form is redis+socket://[[user:]password@]/path/to.sock[:/db]")
    user, colon, password = info.partition(":")
    if not colon:
        user, password = "", user
    return RedisAddress(
        kind="socket",
        path=path,
        username=user,
        password=password,
        db=_db(url, db.removeprefix("/")),
    )


def _host(url: str, text: str, *, sentinel: bool) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    if found is None:
        _refuse(url, "expected host[:port] with a numeric port, and IPv6 in [brackets]")
    port = int(found[3]) if found[3] else (_SENTINEL_PORT if sentinel else _PORT)
    if not 1 <= port <= 65535:
        _refuse(url, "a port is a number from 1 to 65535")
    return found[1] or found[2], port


def _db(url: str, text: str) -> int:
    if re.fullmatch(r"-[0-9]+", text):
        _refuse(url, "a database number is 0 or more")
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0


def _unescape(url: str, text: str) -> str:
    if _BAD_ESCAPE.search(text):
        _refuse(url, "a percent sign in a user or password is written %25")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        _refuse(url, "the percent-escapes in user or password are not UTF-8")
