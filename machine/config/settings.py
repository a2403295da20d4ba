"""
What a setting is, and how values of settings are checked alone and together.

A `Setting` is the metadata of one field of `config.Config`. It says how text is
read, which values are allowed and how a value is shown; docs/config.md is
tested against it. `layers` knows where values come from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from machine.config.queues import FORM, find_weight_error, read_queue_names
from machine.config.redis_url import SCHEMES, parse_address, redact
from machine.errors import ConfigError
from machine.wire.limits import DELAYED_DEFAULT, is_queue_name

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
#: Values by setting name.
Values = Mapping[str, Any]
_WORDS = dict.fromkeys(("1", "t", "true", "y", "yes", "on"), True)
_WORDS |= dict.fromkeys(("0", "f", "false", "n", "no", "off"), False)
_SHOWN = 80
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")


def _as_text(raw: object) -> str | None:
    return raw if isinstance(raw, str) else None


def _as_list(raw: object) -> tuple[str, ...] | None:
    items = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        return None
    return tuple(item.strip() for item in items if item.strip())


def _as_bool(raw: object) -> bool | None:
    if isinstance(raw, str):
        return _WORDS.get(raw.strip().lower())
    return raw if isinstance(raw, bool) else None


def _as_int(raw: object) -> int | None:
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        return None
    try:
        return int(raw)
    except ValueError:
        return None


def _as_float(raw: object) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        return None
    try:
        number = float(raw)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


_READERS: Mapping[str, Callable[[object], Any]] = {
    "str": _as_text,
    "tuple[str, ...]": _as_list,
    "bool": _as_bool,
    "int": _as_int,
    "float": _as_float,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """
    The description of one setting.

    Attributes:
        help: One sentence for people.
        unit: What a number counts, or "".
        least: Inclusive lower bound of a number; ``None`` = none.
        most: Inclusive upper bound of a number; ``None`` = none.
        choices: The texts allowed; () = any.
        form: (regular expression, what it means) for each text; ("", "") = any.
        variables: Environment variables, the documented one first.
        alias: A second YAML key, or "".
        hides: What must not be shown: "" nothing, "url" a URL's password, "all" everything.
        ours: Whether it exists here only, and not in Machinery.
        name: The YAML key; ``redis.…`` for a nested one.
        kind: The type as annotated: "str", "int", "float", "bool", "tuple[str, ...]".
        default: The value when no layer gives one.
    """

    help: str
    unit: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    form: tuple[str, str] = ("", "")
    variables: tuple[str, ...] = ()
    alias: str = ""
    hides: str = ""
    ours: bool = True
    name: str = ""
    kind: str = ""
    default: Any = None

    def describe_values(self) -> str:
        """Say what a value must be, like "an integer of at least 1 (seconds)"."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        whats = {"int": "an integer", "float": "a number", "bool": "true or false"}
        bounds = [] if self.least is None else [f"at least {self.least:.10g}"]
        bounds += [] if self.most is None else [f"at most {self.most:.10g}"]
        of = f" of {' and '.join(bounds)}" if bounds else ""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{whats.get(self.kind) or self.form[1] or 'text'}{of}{unit}"

    def take(self, raw: object) -> Any:
        """
        Return the value in its own type; text is read ("yes", "2.5", "a, b").

        Raises:
            ValueError: It is not allowed. The text says what is (`describe_values`), and does not
                show the value, which may be secret.
        """
        if isinstance(raw, str) and self.hides != "all":
            raw = raw.strip().lower() if self.choices else raw.strip()
        value = _READERS[self.kind](raw)
        if value is None or not self._allows(value):
            raise ValueError(self.describe_values())
        return value

    def _allows(self, value: Any) -> bool:
        if isinstance(value, int | float):
            low = self.least is None or value >= self.least
            return low and (self.most is None or value <= self.most)
        texts = (value,) if isinstance(value, str) else value
        if self.choices:
            return value in self.choices
        return not self.form[0] or all(re.fullmatch(self.form[0], text) for text in texts)

    def show(self, value: object, *, whole: bool = False) -> str:
        """
        Return a value for people: no passwords, at most 80 characters.

        Args:
            value: Of any type, valid or not.
            whole: See `redact`.
        """
        if self.hides == "all":
            return "***" if value else ""
        if isinstance(value, list | tuple):
            value = ",".join(str(item) for item in value)
        text = redact(str(value).lower() if isinstance(value, bool) else str(value), whole=whole)
        return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


# Values for `Setting.form`: what texts may look like.
QUEUE = (r"[A-Za-z0-9_.:-]{0,128}", "a queue name of letters, digits and _ . : -")
QUEUES = (r"[A-Za-z0-9_.:-]{1,128}", "queue names of letters, digits and _ . : -")
WEIGHTED_QUEUES = (
    FORM,
    "queue names of letters, digits and _ . : - and perhaps =weight (1 to 1000)",
)
MODULES = (r"[^\W\d]\w*(\.[^\W\d]\w*)*", "module names like machine.tasks")
HOST = (r"[A-Za-z0-9.:_-]{1,253}", "a host name or an IP address")
NAME = (r"[A-Za-z0-9_.:@-]{0,64}", "at most 64 letters, digits and _ . : @ -")
PRINTABLE = (r"[!-~]{0,64}", "at most 64 printable ASCII characters without spaces")
KEY = (
    r"(?!(task|group|chord)_|machinery_lock_|TriggerChordMutex$)[A-Za-z0-9_.:{}-]{0,128}",
    "a key name of letters, digits and _ . : - { }, not like another kind of key",
)


def setting(default: T, text: str, **rest: Any) -> T:
    """Return a dataclass field with a `Setting` in its metadata; ``rest`` are its attributes."""
    row = Setting(help=text, **rest)
    return field(default=default, metadata={"setting": row})


def table_of(owner: type[DataclassInstance], prefix: str = "") -> dict[str, Setting]:
    """Return a dataclass's settings by name, in order, complete with name, kind and default."""
    rows: dict[str, Setting] = {}
    for entry in fields(owner):
        row: Setting | None = entry.metadata.get("setting")
        if row is not None:
            name = prefix + entry.name
            variables = row.variables or (name.replace(".", "_").upper(),)
            kind, default = str(entry.type), entry.default
            rows[name] = replace(row, name=name, kind=kind, default=default, variables=variables)
    return rows


def check_fields(owner: DataclassInstance, table: Mapping[str, Setting]) -> None:
    """
    Check each field of a frozen dataclass, and convert it in place: a list becomes a tuple.

    Raises:
        ConfigError: One line for each field whose value is not allowed.
    """
    errors = []
    for name, row in table.items():
        attribute = name.rpartition(".")[2]
        raw = getattr(owner, attribute)
        try:
            object.__setattr__(owner, attribute, row.take(raw))
        except ValueError as error:
            errors.append(f"{name}={row.show(raw)!r}: expected {error}")
    if errors:
        raise ConfigError("\n".join(errors))


def values_of(owner: DataclassInstance, table: Mapping[str, Setting]) -> dict[str, Any]:
    """Return each setting's value by name; ``redis.…`` are looked up in the nested dataclass."""
    values = {}
    for name in table:
        section, _, attribute = name.rpartition(".")
        values[name] = getattr(getattr(owner, section, owner), attribute)
    return values


def show_values(
    owner: DataclassInstance, table: Mapping[str, Setting], *, whole: bool = False
) -> str:
    """Return a dataclass's repr: what differs from the defaults, without passwords."""
    parts = [
        f"{name}={table[name].show(value, whole=whole)!r}"
        for name, value in values_of(owner, table).items()
        if value != table[name].default
    ]
    return f"{type(owner).__name__}({', '.join(parts)})"


class SettingError(NamedTuple):
    """Why the value of a setting cannot go with the values of the others."""

    name: str
    text: str


def find_errors(
    values: Values, *, skip: Collection[str] = (), hidden: Collection[str] = ()
) -> list[SettingError]:
    """
    Check rules that concern several settings at once.

    Args:
        values: Every setting, each valid by itself.
        skip: Settings with an error already; rules that need one of them are not checked.
        hidden: Settings whose values an error must not show, because a secret's file gave them.
    """
    return [
        error
        for names, check in _RULES
        if not any(name in skip for name in names)
        for error in check(values, hidden)
    ]


_USES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "broker": ("broker URL", ("eager",)),
    "result_backend": ("result backend", ("eager", "null")),
    "lock": ("lock", ("eager",)),
}
_ELSEWHERE = re.compile(r"(amqps?|https?|gcppubsub|memcache|mongodb(\+srv)?)://|amqp$")


def _check_urls(values: Values, hidden: Collection[str]) -> Iterator[SettingError]:
    for name, (use, words) in _USES.items():
        text = _url_problem(values, name, use, words, is_hidden=name in hidden)
        if text:
            yield SettingError(name, text)


def _url_problem(
    values: Values, name: str, use: str, words: tuple[str, ...], *, is_hidden: bool
) -> str:
    url, is_cluster = values[name], values["redis.cluster_mode"]
    if url in words or (not url and name != "broker"):
        return ""
    if url.startswith(SCHEMES):
        master_name = "" if is_cluster else values["redis.master_name"]
        try:
            parse_address(url, master_name=master_name, cluster=is_cluster)
        except ConfigError as error:
            return f"{name}: {error}"
        return ""
    cure = f"use {', '.join(f'{scheme}…' for scheme in SCHEMES[:3])} or {' or '.join(words)}"
    shown = "***" if is_hidden else redact(url, whole=is_cluster)
    if _ELSEWHERE.match(url):
        return f"{name}={shown!r}: this kind of server is not supported here; {cure}"
    return f"Factory failed with {use}: {shown}; {cure}"


def _check_queues(values: Values, _hidden: Collection[str]) -> Iterator[SettingError]:
    delayed = values["redis.delayed_tasks_key"] or DELAYED_DEFAULT
    for name in ("default_queue", "queues", "allowed_queues"):
        value = values[name]
        for queue in (value,) if isinstance(value, str) else read_queue_names(value):
            if not is_queue_name(queue, delayed_key=delayed):
                text = f"{name}={queue!r}: this is the name of another kind of key; choose another"
                yield SettingError(name, text)
    text = find_weight_error(values["queues"])
    if text:
        yield SettingError("queues", f"queues={','.join(values['queues'])!r}: {text}")


def _check_heartbeat(values: Values, _hidden: Collection[str]) -> Iterator[SettingError]:
    beat, lease = values["worker_heartbeat_s"], values["worker_lease_s"]
    if beat * 2 >= lease:
        yield SettingError(
            "worker_heartbeat_s",
            f"worker_heartbeat_s='{beat:g}': expected less than half of worker_lease_s "
            f"({lease:g} seconds), or 0 for a third of it",
        )


def _check_topology(values: Values, _hidden: Collection[str]) -> Iterator[SettingError]:
    if values["redis.master_name"] and values["redis.cluster_mode"]:
        yield SettingError(
            "redis.master_name",
            f"redis.master_name={values['redis.master_name']!r}: redis.cluster_mode is on, and a "
            "cluster has no sentinels; unset one of them",
        )


def _check_tls(values: Values, _hidden: Collection[str]) -> Iterator[SettingError]:
    cert, key = values["redis.tls_cert_file"], values["redis.tls_key_file"]
    if bool(cert) != bool(key):
        here, there = ("cert", "key") if cert else ("key", "cert")
        text = f"redis.tls_{here}_file={cert or key!r}: redis.tls_{there}_file is missing; set both"
        yield SettingError(f"redis.tls_{here}_file", text)
    urls = [values[name] for name in _USES]
    if any(u.startswith("rediss://") for u in urls) or not any(
        u.startswith("redis://") for u in urls
    ):
        return
    for name in _TLS:
        if values[name]:
            yield SettingError(
                name, f"{name} is set, but no URL is encrypted; write rediss:// for redis://"
            )


_TLS = ("redis.tls_ca_file", "redis.tls_cert_file", "redis.tls_key_file", "redis.tls_insecure")
_QUEUE_SETTINGS = ("default_queue", "queues", "allowed_queues", "redis.delayed_tasks_key")
_Rule = Callable[[Values, Collection[str]], Iterator[SettingError]]
_RULES: tuple[tuple[tuple[str, ...], _Rule], ...] = (
    ((*_USES, "redis.master_name", "redis.cluster_mode"), _check_urls),
    (_QUEUE_SETTINGS, _check_queues),
    (("worker_heartbeat_s", "worker_lease_s"), _check_heartbeat),
    (("redis.master_name", "redis.cluster_mode"), _check_topology),
    ((*_TLS, *_USES), _check_tls),
)


def find_warnings(values: Values) -> list[str]:
    """Return one sentence for each setting that is allowed but unsafe."""
    found = []
    for name in _USES:
        url, is_cluster = values[name], values["redis.cluster_mode"]
        if not url.startswith("redis://"):
            continue
        address = parse_address(url, cluster=is_cluster)
        away = [host for host, _ in address.hosts if not _LOOPBACK.fullmatch(host)]
        if address.password and away:
            found.append(f"{name}: its password goes to {away[0]} unencrypted; use rediss://")
    if values["redis.tls_insecure"]:
        found.append("redis.tls_insecure: nobody checks who answers; set redis.tls_ca_file instead")
    return found
