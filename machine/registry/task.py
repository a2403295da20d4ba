"""`@task`, and the function with methods for sending that it makes."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, Unpack, overload

from machine.errors import SignatureError
from machine.periodic.entries import Entry
from machine.registry.options import OnCrash, TaskHeaders, TaskKeywords, TaskOptions, UniqueBy
from machine.registry.parameters import Parameters
from machine.results.task import AsyncResult
from machine.wire.headers import OnDuplicate
from machine.wire.signature import JSON, Arg
from machine.workflow.pieces import Group, TypedSignature
from machine.workflow.sender import Sender

P = ParamSpec("P")
R = TypeVar("R")
_DEFAULTS = TaskOptions()
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}")
#: Finds the server for tasks that no server has bound. `machine.connect` sets it, and before that
#: it connects at the first send, so that importing tasks connects nothing.
default_sender: Callable[[], Sender] | None = None


class Task(Generic[P, R]):
    """
    A function that can also be sent: ``add(1, 2)`` runs it here, ``add.send(1, 2)`` elsewhere.

    Attributes:
        fn: The function itself.
        name: Its name in messages.
        options: All that ``@task`` was given; its name is the one above. Each of the other
            options is an attribute of the task as well.
        is_async: Whether calling ``fn`` gives a coroutine.
        parameters: How its arguments travel.
        schedules: When it is sent by itself; see ``@periodic``.

    Args:
        fn: The function, or anything else that can be called.
        options: Its options.
        name: A name that goes before the one in the options.

    Raises:
        SignatureError: The name or an option is not usable, or ``fn`` cannot be called.
    """

    is_async = False
    schedules: tuple[Entry, ...] = ()

    def __init__(
        self, fn: Callable[..., Any], options: TaskOptions = _DEFAULTS, *, name: str = ""
    ) -> None:
        functools.update_wrapper(self, fn)  # first, as it copies what the function has in __dict__
        self.name = name or options.name or getattr(fn, "__name__", type(fn).__name__)
        check_task(self.name, fn)
        self._headers = TaskHeaders(self.name, options)
        if options.retry_count < 0 or options.retry_timeout < 0:
            raise SignatureError(
                f"Task {self.name!r}: retry_count {options.retry_count} and retry_timeout "
                f"{options.retry_timeout} must be 0 or more."
            )
        self.fn = fn
        self.options = replace(options, name=self.name)
        # Every send reads these three; an attribute is read faster than a property.
        self.queue = options.queue
        self.retry_count = options.retry_count
        self.retry_timeout = options.retry_timeout
        self.parameters = Parameters(fn, getattr(fn, "__name__", self.name))
        self._sender: Sender | None = None
        # Made once, because each access to a method makes a new object.
        self._find = self._find_sender

    @property
    def on_crash(self) -> OnCrash:
        """What happens when a worker dies while it runs this task."""
        return self.options.on_crash

    @property
    def expires(self) -> float | timedelta | None:
        """How long a message may wait, in seconds; ``None`` is no limit."""
        return self.options.expires

    @property
    def unique(self) -> UniqueBy:
        """By what one of it at a time is allowed."""
        return self.options.unique

    @property
    def on_duplicate(self) -> OnDuplicate:
        """What sending another one does meanwhile."""
        return self.options.on_duplicate

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
        """
        Send this call to a worker, and return a handle at once.

        Raises:
            BrokerUnavailable: Redis did not answer.
            DuplicateTask: The task is unique, and ``on_duplicate`` is "refuse".
            QueueFull: The queue is at its limit.
            SignatureError: The message is out of bounds.
            TypeError: The function could not be called so, or a value cannot be sent.
        """
        return self._find_sender().send_task(self._call(args, kwargs))

    delay = send

    async def asend(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        return await self._find_sender().asend_task(self._call(args, kwargs))

    def map(self, items: Iterable[Any]) -> Group[R]:
        """Return a group of one call for each item; a tuple is spread over the parameters."""
        return Group(self._call(i if isinstance(i, tuple) else (i,), {}) for i in items)

    def bind(self, args: Sequence[Arg]) -> tuple[list[Any], dict[str, Any]]:
        """Return the call that a message's arguments stand for; see `Parameters.decode`."""
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
def task(**options: Unpack[TaskKeywords]) -> _Decorator: ...


def task(fn: Any = None, /, **options: Any) -> Any:
    """
    Make a function a task; use it as ``@task`` or ``@task(queue=…, …)``.

    Args:
        fn: The function.
        **options: The fields of `TaskOptions`.

    Raises:
        SignatureError: The name or an option is not usable.
        TypeError: There is no such option.
    """
    if unknown := options.keys() - TaskKeywords.__annotations__.keys():
        raise TypeError(f"@task has no option {min(unknown)!r}")
    given = TaskOptions(**options)
    return make_task(fn, given) if fn is not None else functools.partial(make_task, options=given)


def make_task(fn: Callable[..., Any], options: TaskOptions) -> Task[Any, Any]:
    """Return a task of this function: an `AsyncTask` where calling it gives a coroutine."""
    call = getattr(fn, "__call__", None)  # noqa: B004 - its own code is looked at
    is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(call)
    return (AsyncTask if is_async else Task)(fn, options)


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
