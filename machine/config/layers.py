"""
Where the values of settings come from: YAML, variables, files, flags.

A reader yields what one layer gives: a `Given` for each value, and a line of
text for each error, so that a user sees all errors at once. `resolve` checks
the values by `settings`; the order of its entries decides which layer wins.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from dotenv import dotenv_values

from machine.config.settings import Setting, find_errors

Table = Mapping[str, Setting]
Variables = Mapping[str, str | None]
_SECTION = "redis"
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_TAG + word for word in ("str", "int", "float", "bool", "timestamp")}
_ELSEWHERE = re.compile(
    r"amqp|sqs|dynamodb|gcp_?pubsub|mongodb|multiple_brok|tls_?config$"
    r"|exchange(_type)?$|binding_key$",
    re.IGNORECASE,
)
_REDIS_URL = Setting(help="", name="broker", kind="str", variables=("REDIS_URL",), hides="url")


class Given(NamedTuple):
    """
    A value that a layer gives.

    Attributes:
        name: The setting.
        raw: Text, a list of texts, or (from a flag) any value.
        source: For `Config.describe`: "config.yml:4", "environment", ".env", "flag".
        place: The beginning of an error: "config.yml:4", "environment BROKER".
        subject: The text before ``=`` in an error: "config.yml:4: broker".
        is_hidden: Whether it came from a secret's file and must never be shown.
    """

    name: str
    raw: object
    source: str
    place: str
    subject: str
    is_hidden: bool = False


class Resolved(NamedTuple):
    """The valid values and the source of each, by setting name, and a line for each error."""

    values: dict[str, Any]
    sources: dict[str, str]
    errors: list[str]


def resolve(entries: Iterable[Given | str], table: Table) -> Resolved:
    """
    Check what the layers give. Of two values for one setting the later one wins.

    Args:
        entries: Values, and errors found while reading; lowest layer first.
        table: All settings.
    """
    chosen: dict[str, Given] = {}
    values: dict[str, Any] = {}
    errors: list[str] = []
    broken: set[str] = set()
    for entry in entries:
        if isinstance(entry, str):
            errors.append(entry)
            continue
        row = table[entry.name]
        try:
            values[entry.name] = row.take(entry.raw)
        except ValueError as error:
            shown = "***" if entry.is_hidden else row.show(entry.raw)
            errors.append(f"{entry.subject}={shown!r}: expected {error}")
            broken.add(entry.name)
        chosen[entry.name] = entry
    everything = {name: row.default for name, row in table.items()} | values
    hidden = {entry.name for entry in chosen.values() if entry.is_hidden}
    for name, text in find_errors(everything, skip=broken, hidden=hidden):
        source = chosen.get(name)
        errors.append(f"{source.place}: {text}" if source else text)
    return Resolved(values, {name: entry.source for name, entry in chosen.items()}, errors)


def read_flags(flags: Mapping[str, object], table: Table) -> Iterator[Given | str]:
    """Yield what the command line gives, by setting name; None and empty values are unset."""
    for key, raw in flags.items():
        if key not in table:
            yield f"flag {key}: {_unknown(key, table)}"
        elif raw is not None and raw not in ("", [], ()):
            yield Given(key, raw, "flag", f"flag {key}", f"flag {key}")


def read_variables(variables: Variables, label: str, table: Table) -> Iterator[Given | str]:
    """
    Yield the values of the settings' variables, and of their ``_FILE`` forms.

    Other variables are ignored: they belong to other programs.

    Args:
        variables: By name; empty ones are unset.
        label: What the layer is called in errors: "environment", ".env".
        table: All settings.
    """
    for row in table.values():
        yield from _read_variable(variables, label, row, table)


def read_redis_url(
    layers: Sequence[tuple[Variables, str]], others: Sequence[Given | str], table: Table
) -> Iterator[Given | str]:
    """
    Yield broker and result backend from the first layer that has ``REDIS_URL``.

    Args:
        layers: Variables and the name of their layer, highest layer first.
        others: What the settings' own variables gave. If they name a broker, nothing is
            yielded; if they name a result backend, that one stays.
        table: All settings.
    """
    named = {entry.name for entry in others if isinstance(entry, Given)}
    if "broker" in named:
        return
    for variables, label in layers:
        entries = list(_read_variable(variables, label, _REDIS_URL, table))
        for entry in entries:
            yield entry
            if isinstance(entry, Given) and "result_backend" not in named:
                yield entry._replace(name="result_backend")
        if entries:
            return


def _read_variable(
    variables: Variables, label: str, row: Setting, table: Table
) -> Iterator[Given | str]:
    secret_file = f"{row.variables[0]}_FILE"
    spellings = (*row.variables, secret_file) if row.hides else row.variables
    found = [name for name in spellings if (variables.get(name) or "").strip()]
    if len(found) > 1:
        yield f"{label} {found[0]} and {found[1]}: both give {row.name}; keep one of them"
        return
    for variable in found:
        text = variables[variable] or ""
        place = f"{label} {variable}"
        source = label if variable == table[row.name].variables[0] else place
        if variable != secret_file:
            yield Given(row.name, text, source, place, place)
            continue
        try:
            secret = Path(text.strip()).read_text(encoding="utf-8").strip("\r\n")
        except (OSError, ValueError) as error:
            yield f"{place}={_path(text)!r}: the file cannot be read ({_reason(error)})"
            continue
        if secret.strip():
            yield Given(row.name, secret, source, place, place, is_hidden=True)
        else:
            yield f"{place}={_path(text)!r}: the file is empty; fill it, or unset {variable}"


def _path(text: str) -> str:
    """Return a path for an error's text, but hide a secret written in place of its file's path."""
    return text if "/" in text and "://" not in text and "@" not in text else "***"


def read_dotenv(path: str) -> tuple[Variables, list[str]]:
    """Return a ``.env`` file's variables as written, and its errors; a missing file has neither."""
    if not Path(path).exists():
        return {}, []
    try:
        return dotenv_values(path, interpolate=False, encoding="utf-8"), []
    except (OSError, ValueError) as error:
        return {}, [f"{path}: the file cannot be read ({_reason(error)})"]


def read_yaml(path: str, table: Table) -> Iterator[Given | str]:
    """
    Yield what a YAML file gives, each value with its line.

    It reads YAML's nodes and not the objects made of them, so that the lines are
    known, no tag can build an object, and a text means the same as in a variable.
    """
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        yield _yaml_error(path, error)
    except (OSError, ValueError) as error:
        yield f"{path}: the file cannot be read ({_reason(error)}); name another, or make this one"
    else:
        if root is not None:
            yield from _read_section(root, path, "", table)


def _read_section(node: yaml.Node, path: str, prefix: str, table: Table) -> Iterator[Given | str]:
    if node.tag == _TAG + "null":
        return
    if not isinstance(node, yaml.MappingNode):
        what = f"{_SECTION}: " if prefix else ""
        yield f"{path}:{_line(node)}: {what}expected settings, one 'name: value' on each line"
        return
    names = {row.alias: name for name, row in table.items() if row.alias}
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = _line(key_node)
        key = prefix + (str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?")
        name = names.get(key, key)
        place = f"{path}:{line}"
        if name in first:
            yield f"{place}: '{key}' is given twice (first on line {first[name]}); keep one of them"
            continue
        first[name] = line
        if name == _SECTION:
            yield from _read_section(value_node, path, f"{_SECTION}.", table)
        elif name in table:
            yield from _read_value(value_node, place, table[name])
        elif _ELSEWHERE.match(key):
            yield (
                f"{place}: '{key}' is not supported here: the broker is Redis (or eager); "
                "remove it, and set 'broker' and 'redis' instead"
            )
        else:
            yield f"{place}: {_unknown(key, table)}"


def _read_value(node: yaml.Node, place: str, row: Setting) -> Iterator[Given | str]:
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    plain = all(isinstance(item, yaml.ScalarNode) for item in items)
    subject = f"{place}: {row.name}"
    if node.tag == _TAG + "null" or node.value in ("", []):
        return
    if not plain:
        yield f"{subject}: expected {row.describe_values()}"
    elif any(item.tag not in _PLAIN_TAGS for item in items):
        yield f"{subject}: a value that starts with '!' needs quotes, and a list no empty items"
    else:
        texts = [str(item.value) for item in items]
        raw = texts if isinstance(node, yaml.SequenceNode) else texts[0]
        yield Given(row.name, raw, place, place, subject)


def _yaml_error(path: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{path}:{mark.line + 1}" if mark else path
    # The parser's text repeats an unquoted password that starts with '*' or '!'.
    problem = re.sub(
        r"'[^'<]{2,}'", "'***'", str(getattr(error, "problem", None) or "bad characters")
    )
    return f"{place}: not YAML: {problem}; quote values with special characters"


def _unknown(key: str, table: Table) -> str:
    known = [*table, _SECTION]
    close = difflib.get_close_matches(key.lower(), known, n=1)
    cure = f"did you mean '{close[0]}'?" if close else "docs/config.md lists all settings"
    return f"unknown setting '{key}'; {cure}"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "not UTF-8 text"
