"""
redis-py's errors in our terms, once.

What passes by itself, and what a person has to mend, and how. This room opens
no connection, and shows of an error what the server or TLS said, no more.
"""

from __future__ import annotations

import re
import ssl

import redis
from redis.exceptions import AuthorizationError, NoPermissionError

from machine.errors import BrokerRefused, BrokerUnavailable, MachineError, QueueFull

#: First words of error replies that pass by themselves: a failover, a start, a full disk, a script.
_PASSING = frozenset(
    {
        *("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"),
        *("NOREPLICAS", "MISCONF", "BUSY", "UNBLOCKED"),
    }
)
#: Of OpenSSL's reasons those that no second try cures; the others are broken connections.
_TLS_REFUSALS = re.compile("CERT|UNKNOWN_CA|VERSION|PROTOCOL|HANDSHAKE_FAILURE|DECRYPT_ERROR")


def error_of(error: Exception, where: str) -> MachineError:
    """
    Translate a redis-py error.

    A server that is away, starting or failing over gives `BrokerUnavailable`;
    one that is out of memory `QueueFull`; anything it refuses for good
    (password, permission, certificate, wrong type) `BrokerRefused`.
    """
    if isinstance(error.__cause__, redis.RedisError):
        error = error.__cause__  # redis-py hides a refused login on an asyncio socket in another
    text = str(error).rstrip(".")
    if isinstance(error, redis.OutOfMemoryError) or text.startswith("OOM"):
        return QueueFull(f"Redis at {where} is out of memory: {text}. Raise maxmemory.")
    # A stranger's command of more than ten words is not even parsed: an ERR, and no NOAUTH.
    if getattr(error, "status_code", None) == "NOAUTH" or "unauthenticated" in text:
        text, error = "Authentication required", redis.AuthenticationError()
    if isinstance(error, redis.AuthenticationError | AuthorizationError):
        return BrokerRefused(
            f"Redis at {where} refused the login: {text}. Check user and password."
        )
    word = getattr(error, "status_code", None) or text.partition(" ")[0]
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError):
        return _tls_refusal(error, where) or _silence(where, text)
    if word in _PASSING:
        return _silence(where, text)
    if isinstance(error, NoPermissionError):
        return BrokerRefused(f"Redis at {where}: {text}. Grant it to this user's ACL.")
    return BrokerRefused(
        f"Redis at {where} refused a command: {word} {text}.".replace(f"{word} {word}", word)
    )


def _silence(where: str, text: str) -> BrokerUnavailable:
    return BrokerUnavailable(f"Redis at {where} did not answer: {text}.")


def _tls_refusal(error: BaseException, where: str) -> BrokerRefused | None:
    """Return what to say where TLS itself fails for good."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    if isinstance(cause, ssl.SSLCertVerificationError):
        return BrokerRefused(
            f"Redis at {where} shows a certificate that is not trusted: "
            f"{cause.verify_message.rstrip('.')}. Let redis.tls_ca_file name its issuer, and the "
            "URL a host that it is made for."
        )
    reason = cause.reason or ""
    if reason in {"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}:
        return BrokerRefused(
            f"Redis at {where} does not speak TLS there: {reason}. "
            "Use its TLS port, or redis:// instead of rediss://."
        )
    if _TLS_REFUSALS.search(reason):
        return BrokerRefused(
            f"Redis at {where} and we do not agree on TLS: {reason}. It must be TLS 1.2 or newer; "
            "if the server asks for a certificate, set redis.tls_cert_file and redis.tls_key_file."
        )
    return None
