"""Functions as tasks: the decorators, their options and parameters, and the tasks by name."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from machine.errors import SignatureError
from machine.periodic.entries import Entry
from machine.registry.options import OnDuplicate, TaskHeaders, UniqueBy
from machine.registry.parameters import Parameters
from machine.results.task import AsyncResult
from machine.wire.signature import JSON, Arg
from machine.workflow.pieces import Group, TypedSignature
from machine.workflow.sender import Sender

P = ParamSpec("P")
R = TypeVar("R")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}")
#: Called by tasks that no server has bound; set by the package, so that importing connects nothing.
default_sender: Callable[[], Sender] | None = None


class Task(Generic[P, R]):
    """
    A function that can also be sent: ``add(1, 2)`` runs it here, ``add.send(1, 2)`` elsewhere.

    Attributes:
        name: What stands in the message.
        fn: The function itself.
        queue: Where it is sent unless said otherwise; "" is the default queue.
        is_async: Whether calling ``fn`` gives a coroutine.
        on_crash: "retry" runs it again when its worker died, "fail" does not.
        expires: How long a message of it may wait before it is too late to start.
        unique: By what one of it at a time is allowed.
        on_duplicate: What sending another does.
        parameters: How its arguments travel.
        schedules: When it is sent by itself; see ``@periodic``.
    """

    is_async = False
    schedules: tuple[Entry, ...] = ()

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str = "",
        queue: str = "",
        retry_count: int = 0,
        retry_timeout: int = 0,
        on_crash: Literal["retry", "fail"] = "retry",
        expires: float | timedelta | None = None,
        unique: UniqueBy = False,
        on_duplicate: OnDuplicate = "join",
    ) -> None:
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        check_task(self.name, fn)
        self._headers = TaskHeaders(self.name, on_crash, expires, unique, on_duplicate)
        if retry_count < 0 or retry_timeout < 0:
            raise SignatureError(
                f"Task {self.name!r}: retry_count {retry_count} and retry_timeout {retry_timeout} "
                "must be 0 or more."
            )
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.queue = queue
        self.retry_count = retry_count
        self.retry_timeout = retry_timeout
        self.on_crash = on_crash
        self.expires, self.unique, self.on_duplicate = expires, unique, on_duplicate
        self.parameters = Parameters(fn, getattr(fn, "__name__", self.name))
        self._sender: Sender | None = None
        # Made once: a bound method is a new object each time it is asked for.
        self._find = self._find_sender

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, as if it were no task."""
        result: R = self.fn(*args, **kwargs)
        return result

    def s(self, *args: P.args, **kwargs: P.kwargs) -> TypedSignature[R]:
        """
        Return the signature of this call; nothing is sent.

        Raises:
            TypeError: The function could not be called so, or a value cannot be sent.
        """
        return self._call(args, kwargs)

    def partial(self, *args: Any, **kwargs: Any) -> TypedSignature[R]:
        """
        Return a signature whose last arguments are still to come: results of tasks before it.

        It is not unique: only a whole call has a key.
        """
        return self._signature(self.parameters.encode_partial(args, kwargs), self._headers.always())

    def send(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send this call to a worker; does not wait for it."""
        return self._find_sender().send_task(self._call(args, kwargs))

    delay = send

    async def asend(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Do what `send` does, without blocking the event loop."""
        return await self._find_sender().asend_task(self._call(args, kwargs))

    def map(self, items: Iterable[Any]) -> Group[R]:
        """Return a group of one call for each item; a tuple is spread over the parameters."""
        return Group(self._call(i if isinstance(i, tuple) else (i,), {}) for i in items)

    def bind(self, args: Sequence[Arg]) -> tuple[list[Any], dict[str, Any]]:
        """Return the call that these arguments mean; see `Parameters.decode`."""
        return self.parameters.decode(args)

    def bind_sender(self, sender: Sender) -> None:
        """Send through this server from now on."""
        self._sender = sender

    def release_sender(self, sender: Sender) -> None:
        """Stop sending through this server, if that is the one."""
        if self._sender is sender:
            self._sender = None

    def _call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TypedSignature[R]:
        encoded = self.parameters.encode(args, kwargs)
        return self._signature(encoded, self._headers.of_call(args, kwargs, encoded))

    def _signature(self, args: list[Arg], headers: dict[str, JSON] | None) -> TypedSignature[R]:
        return TypedSignature(
            name=self.name,
            args=args,
            routing_key=self.queue,
            headers=headers,
            retry_count=self.retry_count,
            retry_timeout=self.retry_timeout,
            sender=self._find,
        )

    def _find_sender(self) -> Sender:
        if self._sender is not None:
            return self._sender
        if default_sender is not None:
            return default_sender()
        raise SignatureError(
            f"Task {self.name!r} knows no server to send to; call machine.connect() first."
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {place_of(self.fn)}>"


class AsyncTask(Task[P, R]):
    """A task whose function is a coroutine function; ``await fetch(url)`` runs it here."""

    is_async = True

    def __call__(  # type: ignore[override]
        self, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Return the coroutine that runs the function here, as if it were no task."""
        coroutine: Coroutine[Any, Any, R] = self.fn(*args, **kwargs)
        return coroutine


class _Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...


@overload
def task(fn: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(
    *,
    name: str = "",
    queue: str = "",
    retry_count: int = 0,
    retry_timeout: int = 0,
    on_crash: Literal["retry", "fail"] = "retry",
    expires: float | timedelta | None = None,
    unique: UniqueBy = False,
    on_duplicate: OnDuplicate = "join",
) -> _Decorator: ...


def task(fn: Any = None, /, **options: Any) -> Any:  # noqa: D417 - the overloads name them
    """
    Make a function a task; use it as ``@task`` or ``@task(name=…, …)``.

    Args:
        fn: The function.
        name: Its name in messages; the function's own by default.
        queue: The list its messages go to; the default queue by default.
        retry_count: Runs allowed after the first one fails.
        retry_timeout: Seconds; the first retry waits the next Fibonacci number.
        on_crash: What a worker's death means: "retry" runs the task again (so it
            may run twice), "fail" records a failure (so it runs at most once).
        expires: Seconds after which a message that still waits is too late to start.
        unique: Allow one at a time: True for all calls with the same arguments; or a
            function of the arguments that returns a key, as ``lambda user, **_: f"u:{user}"``.
        on_duplicate: What sending another does; see `TypedSignature.options`.
    """
    if fn is None:
        return functools.partial(make_task, options)
    return make_task(options, fn)


def make_task(options: Mapping[str, Any], fn: Callable[..., Any]) -> Task[Any, Any]:
    """Return a task of this function: an `AsyncTask` where calling it gives a coroutine."""
    call = getattr(fn, "__call__", None)  # noqa: B004 - its own code is looked at
    is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(call)
    return (AsyncTask if is_async else Task)(fn, **options)


def check_task(name: object, fn: object) -> None:
    """Raise `SignatureError` unless this can be a task's name and function."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise SignatureError(
            f"Task name {name!r} is not usable: give 1 to 128 letters, digits, or one of _ . : / - "
            "as in @task(name='mail.send')."
        )
    if not callable(fn):
        raise SignatureError(
            f"Task {name!r} is of type {type(fn).__name__}, not a function; give something to call."
        )


def place_of(fn: object) -> str:
    """Return where a function was defined, as ``module.name``."""
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', type(fn).__name__)}"
