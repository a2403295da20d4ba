"""The version of this program, as metrics and traces show it; the same as pyproject.toml's."""

VERSION = "0.1.0"
