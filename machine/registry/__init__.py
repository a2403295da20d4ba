"""Tasks: the decorators, a task's options and parameters, and the tasks of a process by name."""

from machine.registry.registry import Registry

__all__ = ["Registry"]
