"""
JSON as it comes from clients, and as it goes to them.

Read as strictly as a message from Redis: no NaN, no key twice, no lone
surrogate, at most 64 levels, nothing behind the value.
"""

from __future__ import annotations

from typing import Any

from machine.wire.text import check_value, scan, to_bytes, value_text

_SPACE = " \t\r\n"
#: Levels that a document adds around a value of a task.
_AROUND = 8


def json_bytes(document: Any) -> bytes:
    """
    Return a document as UTF-8; object keys are sorted.

    Raises:
        SignatureError: A value has no place in JSON.
    """
    return to_bytes(value_text(document, -_AROUND), "the document")


def parsed(raw: bytes, what: str) -> Any:
    """
    Return the one JSON value in ``raw``.

    Raises:
        ValueError: It is none, with the reason.
    """
    try:
        text = raw.decode()
        found, end = scan(text, len(text) - len(text.lstrip(_SPACE)))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate in a string; send text that UTF-8 can hold") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    if text[end:].strip(_SPACE):
        raise ValueError(f"something follows the value at character {end}")
    check_value(found, what)
    return found
