"""Commands for a shell: ``python -m machine health``."""

from __future__ import annotations

import sys

from machine.runtime import health

COMMANDS = {"health": health.main}


def main(arguments: list[str]) -> int:
    """Run a command; return its exit status, or 2 where there is no such command."""
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is None:
        print(f"usage: python -m machine {{{','.join(COMMANDS)}}} [-h] ...", file=sys.stderr)  # noqa: T201
        return 2
    return command(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
