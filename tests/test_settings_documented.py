"""The table of settings, config.yml, .env.example and docs/config.md say the same."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from dotenv import dotenv_values

from machine.config import SETTINGS, Config
from machine.config.settings import Setting
from machine.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
CONFIG = (ROOT / "config.yml").read_text(encoding="utf-8")

#: Variables that choose a source rather than a value.
SOURCES = {"REDIS_URL", "CONFIG_FILE"}


def uncommented(name: str) -> str:
    """Return a file with each "#setting" switched on; "# prose" stays a comment."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"^#(?=[A-Za-z]|  \w)", "", text, flags=re.MULTILINE)


def shown(row: Setting) -> str:
    """Return a setting's default as the documents write it."""
    value = row.default
    return f"{value:g}" if isinstance(value, float) else row.show(value)


def row_of(row: Setting) -> str:
    """Return the line of docs/config.md for a setting."""
    names = [f"`{row.name}`"] + ([f"`{row.alias}`"] if row.alias else [])
    cells = [
        ", ".join(names),
        ", ".join(f"`{variable}`" for variable in row.variables),
        f"`{shown(row)}`" if shown(row) else "empty",
        row.describe_values(),
        row.help,
        "ours" if row.ours else "Machinery",
    ]
    return f"| {' | '.join(cells)} |"


def test_document_has_one_row_for_each_setting():
    rows = re.findall(r"^\| `[a-z_.]+`.*\| (?:ours|Machinery) \|$", DOCUMENT, re.MULTILINE)

    assert rows == [row_of(row) for row in SETTINGS.values()]


def test_config_yml_names_every_setting():
    names = set(re.findall(r"^(?:  )?(\w+):", uncommented("config.yml"), re.MULTILINE))

    assert names == {name.removeprefix("redis.") for name in SETTINGS} | {"redis"}


def test_what_config_yml_has_as_a_comment_is_the_default(tmp_path):
    """What is no comment is its owner's, who may set it as they like."""
    comments = re.findall(r"^#(\w+: .+)", CONFIG, re.MULTILINE)
    comments += ["redis:", *re.findall(r"^#(  \w+: .+)", CONFIG, re.MULTILINE)]
    (tmp_path / "config.yml").write_text("\n".join(comments), encoding="utf-8")

    assert len(comments) > 20
    assert Config.from_yaml(str(tmp_path / "config.yml")) == Config()


def test_config_yml_as_it_is_can_be_read():
    assert isinstance(Config.from_yaml(str(ROOT / "config.yml")), Config)


def test_env_example_names_every_variable_with_its_default():
    variables = dotenv_values(stream=StringIO(uncommented(".env.example")), interpolate=False)

    defaults = {row.variables[0]: shown(row) for row in SETTINGS.values()}
    assert variables == defaults | dict.fromkeys(SOURCES, "")
    assert Config.from_environment(environ=variables) == Config()


def test_env_example_as_it_is_sets_nothing():
    assert dotenv_values(ROOT / ".env.example") == {}


@pytest.mark.parametrize("row", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_has_a_sentence_and_its_number_a_bound(row):
    assert re.fullmatch(r"[A-Z(a].*\.", row.help)
    assert row.kind not in {"int", "float"} or row.least is not None


@pytest.mark.parametrize("variable", [f"{row.variables[0]}_FILE" for row in SETTINGS.values()])
def test_document_names_the_file_forms_there_are(variable):
    hides = {f"{row.variables[0]}_FILE" for row in SETTINGS.values() if row.hides}

    assert (f"`{variable}`" in DOCUMENT) == (variable in hides)


def test_errors_in_the_document_are_those_that_come(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text(
        "\nbroker: eager\n\nredis:\n  delayed_tasks_poll_periodd: 1\n\namqp: {}\n\nbroker: eager\n"
    )
    (tmp_path / ".env").write_text("BROKER=BOGUS\n")

    with pytest.raises(ConfigError) as caught:
        Config.load({"worker_heartbeat_s": 10}, environ={"RESULTS_EXPIRE_IN": "abc"})

    (block,) = re.findall(r"## Errors\n.*?```\n(.*?)```", DOCUMENT, re.DOTALL)
    assert block == f"{caught.value}\n"
