"""
The handle of one task: it knows an id, and can wait for the value.

Handles read and wait through the `Backend` port and never poll. They send nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar, cast

from machine.errors import SignatureError, TaskCanceled, TaskExpired, TaskFailed
from machine.execution import running_task
from machine.ports.backend import Backend
from machine.ports.moves import Canceled
from machine.wire.signature import Progress, TaskState
from machine.wire.states import CANCELED, EXPIRED, decode_results

R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class Canceler(Protocol):
    """Cancels tasks. Each method has an asyncio twin with an ``a`` in front."""

    def cancel(self, uuid: str) -> bool:
        """Cancel one task; true when it is canceled, false when it had ended."""
        ...

    def cancel_all(self, uuids: Sequence[str], *, ahead: Sequence[str] = ()) -> list[Canceled]:
        """Cancel several in one round trip, those of ``ahead`` before they are sent."""
        ...

    async def acancel(self, uuid: str) -> bool:
        """Cancel one task."""
        ...

    async def acancel_all(
        self, uuids: Sequence[str], *, ahead: Sequence[str] = ()
    ) -> list[Canceled]:
        """Cancel several."""
        ...


def refuse_inside_a_task(*, allow_in_task: bool) -> None:
    """
    Refuse to wait inside a running task, unless the caller says ``allow_in_task``.

    Raises:
        SignatureError: A task runs here, and does not say so.
    """
    context = running_task.get()
    if context is not None and not allow_in_task:
        raise SignatureError(
            f"Task {context.signature.name!r} waits for the result of another task: it would hold "
            "its worker's slot meanwhile, and all slots waiting is a standstill. Use a chain or a "
            "chord, or say get(allow_in_task=True)."
        )


def raise_if_failed(state: TaskState) -> TaskState:
    """
    Return the state, unless it is a failure.

    Raises:
        TaskCanceled: The task was canceled.
        TaskExpired: It was not started in time.
        TaskFailed: It failed otherwise; the text is its error, unchanged.
    """
    if not state.is_failure:
        return state
    error = state.error
    kind = TaskFailed
    if error == CANCELED or error.startswith(f"{CANCELED}: "):
        kind = TaskCanceled
    elif error.startswith(EXPIRED):
        kind = TaskExpired
    raise kind(error, uuid=state.task_uuid, task_name=state.task_name)


def extract_values(state: TaskState | None) -> list[Any] | None:
    """Return the values of a task that succeeded, ``None`` before its end; raise its failure."""
    if state is None or not state.is_completed:
        return None
    return decode_results(raise_if_failed(state))


def one_value(values: Sequence[Any]) -> Any:
    """Return nothing, the one value, or all of them as a tuple: what the task itself returned."""
    if len(values) == 1:
        return values[0]
    return tuple(values) if values else None


def require_canceler(canceler: Canceler | None) -> Canceler:
    """
    Return the canceler.

    Raises:
        SignatureError: There is none: the handle was made by hand.
    """
    if canceler is None:
        raise SignatureError(
            "This handle knows no server to cancel by: it was made by hand. Use "
            "server.cancel(uuid), or get the handle from server.result(uuid)."
        )
    return canceler


@asynccontextmanager
async def closing(source: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close an iterator that may be left early; else only the garbage collector would."""
    try:
        yield source
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


class AsyncResult(Generic[R_co]):
    """
    The result of one task, now or later; made from nothing but an id and a backend.

    Reading does not consume: any number of handles, in any process, may read
    one id until its state expires.

    Args:
        uuid: The task's id.
        backend: Where the state is.
        task_name: For people; "" where it is not known.
        may_come: Whether the task may be sent later, so that waiting does not take a
            missing state for a lost one.
        canceler: Cancels the task.
    """

    __slots__ = ("_backend", "_canceler", "_may_come", "_state", "task_name", "uuid")

    def __init__(
        self,
        uuid: str,
        backend: Backend,
        task_name: str = "",
        *,
        may_come: bool = False,
        canceler: Canceler | None = None,
    ) -> None:
        self.uuid = uuid
        self.task_name = task_name
        self._backend = backend
        self._canceler = canceler
        self._may_come = may_come
        self._state: TaskState | None = None

    @property
    def id(self) -> str:
        """Return the task's uuid."""
        return self.uuid

    # -- looking ---------------------------------------------------------------------------
    @property
    def state(self) -> TaskState | None:
        """Look once at the state; ``None`` when none is kept. A final state is not read again."""
        if not self.has_ended:
            [self._state] = self._backend.read([self.uuid])
        return self._state

    async def astate(self) -> TaskState | None:
        if not self.has_ended:
            [self._state] = await self._backend.aread([self.uuid])
        return self._state

    @property
    def has_ended(self) -> bool:
        """Whether the last state seen is final; nothing is read."""
        return self._state is not None and self._state.is_completed

    @property
    def progress(self) -> Progress | None:
        """Look once; how far the running task says it is, ``None`` while it says nothing."""
        state = self.state
        return state.progress if state is not None else None

    async def aprogress(self) -> Progress | None:
        state = await self.astate()
        return state.progress if state is not None else None

    @property
    def values(self) -> list[Any] | None:
        """Look once; all returned values of a task that succeeded, else ``None``."""
        state = self.state
        return decode_results(state) if state is not None and state.is_success else None

    def touch(self) -> list[Any] | None:
        """
        Look once, as Machinery's Touch does.

        Returns:
            All values the task returned (an empty list for none), or ``None``
            while it has not ended or no state is kept.

        Raises:
            TaskFailed: It failed; the text is its error.
        """
        return extract_values(self.state)

    async def atouch(self) -> list[Any] | None:
        return extract_values(await self.astate())

    # -- waiting ---------------------------------------------------------------------------
    def results(self, timeout: float | None = None, *, allow_in_task: bool = False) -> list[Any]:
        """
        Wait as `get` does, and return all values as a list, as Machinery's Get does.

        A task that returned nothing gives ``[]``.
        """
        refuse_inside_a_task(allow_in_task=allow_in_task)
        return decode_results(raise_if_failed(self._final(timeout)))

    async def aresults(
        self, timeout: float | None = None, *, allow_in_task: bool = False
    ) -> list[Any]:
        refuse_inside_a_task(allow_in_task=allow_in_task)
        return decode_results(raise_if_failed(await self._afinal(timeout)))

    def get(self, timeout: float | None = None, *, allow_in_task: bool = False) -> R_co:
        """
        Wait for the end of the task and return what it returned.

        Args:
            timeout: Seconds to wait; ``None`` waits for ever.
            allow_in_task: Wait even inside a running task, where every worker's
                slot could end up waiting for a slot.

        Returns:
            The value; ``None`` when the task returned nothing, a tuple when it
            returned several.

        Raises:
            TaskFailed: The task failed; the text is its error, unchanged.
            ResultTimeout: It has not ended within ``timeout``.
            ResultNotFound: No state is kept under this id.
        """
        return cast(R_co, one_value(self.results(timeout, allow_in_task=allow_in_task)))

    async def aget(self, timeout: float | None = None, *, allow_in_task: bool = False) -> R_co:
        return cast(R_co, one_value(await self.aresults(timeout, allow_in_task=allow_in_task)))

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.aget().__await__()

    # -- canceling -------------------------------------------------------------------------
    def cancel(self) -> bool:
        """
        Cancel the task; see `Server.cancel`.

        Returns:
            True when it is canceled, now or before; false when it had ended.

        Raises:
            ResultNotFound: No state is kept under this id.
        """
        return require_canceler(self._canceler).cancel(self.uuid)

    async def acancel(self) -> bool:
        return await require_canceler(self._canceler).acancel(self.uuid)

    def __repr__(self) -> str:
        # The last state seen: printing a handle must not do I/O, nor fail.
        seen = self._state.state if self._state is not None else "not looked at yet"
        return f"<{type(self).__name__} {self.uuid}: {seen}>"

    def take(self, state: TaskState) -> None:
        """Take a state that somebody else read as the last one seen."""
        self._state = state

    def _final(self, timeout: float | None) -> TaskState:
        if self._state is None or not self._state.is_completed:
            [self._state] = self._backend.completed([self.uuid], timeout, missing_ok=self._may_come)
        return self._state

    async def _afinal(self, timeout: float | None) -> TaskState:
        if self._state is None or not self._state.is_completed:
            states = self._backend.acompleted([self.uuid], timeout, missing_ok=self._may_come)
            [self._state] = [state async for state in states]
        return self._state
