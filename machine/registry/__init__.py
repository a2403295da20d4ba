"""Functions as tasks: the decorators, their options and parameters, and the tasks by name."""

from machine.registry.registry import Registry

__all__ = ["Registry"]
