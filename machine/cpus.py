"""How many CPUs and how much memory this process has to itself."""

from __future__ import annotations
