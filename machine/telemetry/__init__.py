"""Logs, metrics and traces."""

from machine.telemetry.logs import TaskFilter

__all__ = ["VERSION", "TaskFilter"]

#: The version of this program, as metrics and traces show it; the same as pyproject.toml's.
VERSION = "0.1.0"
