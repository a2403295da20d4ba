"""The settings: read from flags, environment, files and defaults, and checked."""

from machine.config.config import SETTINGS, Config, RedisConfig

__all__ = ["SETTINGS", "Config", "RedisConfig"]
