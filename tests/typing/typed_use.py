"""
What a type checker must know about tasks. Never run; read by mypy.

After ``# reveals`` stands what mypy must say a line's value is, after
``# refuses`` the kind of error it must find there, and it may find no other.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import reveal_type

from machine import Server, Signature, chain, chord, group, new_signature, task


@task
def add(x: int, y: int) -> int:
    return x + y


@task(retry_count=3, queue="mail", on_crash="fail")
async def fetch(url: str, *, timeout: float = 1.0) -> bytes:
    return f"{url} {timeout}".encode()


@task
def total(*xs: int) -> int:
    return sum(xs)


@task
def label(text: str) -> str:
    return text


@task(expires=timedelta(minutes=5), unique=lambda user, **_: f"user:{user}", on_duplicate="refuse")
def mail(user: int, *, subject: str = "") -> str:
    return f"{user} {subject}"


@task(unique=True)
async def rebuild(index: str) -> None: ...


# A task is still its function.
reveal_type(add)  # reveals Task[[x: int, y: int], int]
reveal_type(fetch)  # reveals AsyncTask[[url: str, *, timeout: float =], bytes]
reveal_type(add(1, 2))  # reveals int
reveal_type(fetch("u"))  # reveals Coroutine[Any, Any, bytes]

# Sending keeps the type of the result.
reveal_type(add.send(1, 2))  # reveals AsyncResult[int]
reveal_type(add.send(1, y=2).get(timeout=5))  # reveals int
reveal_type(add.delay(1, 2).get())  # reveals int
reveal_type(add.send(1, 2).results())  # reveals list[Any]
reveal_type(add.s(1, 2))  # reveals TypedSignature[int]
reveal_type(add.partial(1))  # reveals TypedSignature[int]
reveal_type(fetch.s("u", timeout=2))  # reveals TypedSignature[bytes]
reveal_type(add.s(1, 2).options(countdown=timedelta(seconds=5)))  # reveals TypedSignature[int]
reveal_type(add.s(1, 2).options(expires=datetime.now(UTC)))  # reveals TypedSignature[int]
reveal_type(add.s(1, 2).options(uuid="t", expires=0.5))  # reveals TypedSignature[int]
reveal_type(add.s(1, 2).options(unique="k", on_duplicate="join"))  # reveals TypedSignature[int]
reveal_type(mail)  # reveals Task[[user: int, *, subject: str =], str]
reveal_type(rebuild)  # reveals AsyncTask[[index: str], None]
reveal_type(add.s(1, 2).link(total.partial()))  # reveals TypedSignature[int]

# A chain has its last task's type, at any length.
reveal_type(add.s(1, 1) | add.partial(5) | label.partial())  # reveals Chain[str]
reveal_type((add.s(1, 1) | fetch.partial()).send().get())  # reveals bytes
reveal_type(chain(add.s(1, 1)))  # reveals Chain[int]
reveal_type(chain(add.s(1, 1), label.partial()))  # reveals Chain[str]
reveal_type(chain(add.s(1, 1), add.partial(1), label.partial()))  # reveals Chain[str]

# A group has its members' type, a chord its callback's.
reveal_type(group(add.s(i, i) for i in range(5)))  # reveals Group[int]
reveal_type(group(add.s(1, 1), add.s(2, 2)).send().get())  # reveals list[int]
reveal_type(add.map([(1, 2)]))  # reveals Group[int]
reveal_type(group(add.s(1, 1)) | label.partial())  # reveals Chord[str]
reveal_type(chord([add.s(1, 1)], label.partial()).send())  # reveals ChordResult[str]
reveal_type([result.get() for result in add.map([]).send()])  # reveals list[int]

# Workflows in workflows: what stands last says what comes out, be it one value or a list.
many = group(add.s(1, 1), add.s(2, 2))
steps = add.s(1, 1) | label.partial()
joined = many | total.partial()
reveal_type(add.s(1, 1) | many)  # reveals GroupChain[int]
reveal_type((add.s(1, 1) | many).send())  # reveals GroupResult[int]
reveal_type((add.s(1, 1) | many).send().get())  # reveals list[int]
reveal_type(add.s(1, 1) | many | label.partial())  # reveals Chain[str]
reveal_type(add.s(1, 1) | joined)  # reveals Chain[int]
reveal_type(steps | many)  # reveals GroupChain[int]
reveal_type(steps | steps)  # reveals Chain[str]
reveal_type(many | many)  # reveals GroupChain[int]
reveal_type(many | many | label.partial())  # reveals Chain[str]
reveal_type(many | steps)  # reveals Chain[str]
reveal_type(many | joined)  # reveals Chain[int]
reveal_type(joined | label.partial())  # reveals Chain[str]
reveal_type(joined | many)  # reveals GroupChain[int]
reveal_type((many | many) | (many | many))  # reveals GroupChain[int]
reveal_type(group(steps, steps))  # reveals Group[str]
reveal_type(group(add.s(i, i) | label.partial() for i in range(5)))  # reveals Group[str]
reveal_type(group(group(add.s(1, 1)), joined, steps | many))  # reveals Group[int]
reveal_type(group(steps).send().get())  # reveals list[str]
reveal_type(chain(add.s(1, 1), many))  # reveals GroupChain[int]
reveal_type(chain(many, many, label.partial()))  # reveals Chain[str]
reveal_type(chain(many, steps, joined, many))  # reveals GroupChain[int]
reveal_type(chord([steps, joined], label.partial()))  # reveals Chord[str]
reveal_type(chord(many, steps))  # reveals Chain[str]
reveal_type(chord(many, many))  # reveals GroupChain[int]

# Handles.
reveal_type(many.send().progress().ended)  # reveals int
reveal_type(many.send().touch())  # reveals list[int] | None
reveal_type(joined.send().failures())  # reveals list[TaskState]
reveal_type(joined.send().group.progress().failed)  # reveals int
reveal_type(steps.send().cancel())  # reveals bool
if (progress := add.send(1, 2).progress) is not None:
    reveal_type(progress.fraction)  # reveals float


async def with_asyncio() -> None:
    reveal_type(await (add.s(1, 1) | many).asend())  # reveals GroupResult[int]
    reveal_type(await (await (many | many).asend()))  # reveals list[int]
    reveal_type((await (await many.asend()).aprogress()).running)  # reveals int
    reveal_type(await (await steps.asend()).acancel())  # reveals bool
    reveal_type(await add.asend(1, 2))  # reveals AsyncResult[int]
    reveal_type(await (await add.asend(1, 2)))  # reveals int
    reveal_type(await (await add.asend(1, 2)).aget())  # reveals int
    reveal_type(await fetch("u"))  # reveals bytes
    reveal_type(await (await group(add.s(1, 1)).asend()))  # reveals list[int]
    reveal_type([r.uuid async for r in add.map([]).send().aas_completed()])  # reveals list[str]


def with_a_server(server: Server) -> None:
    reveal_type(server.send_task(add.s(1, 2)))  # reveals AsyncResult[int]
    reveal_type(server.send_task(new_signature("add")))  # reveals AsyncResult[Any]
    reveal_type(server.send_chain([Signature(name="add")]))  # reveals ChainResult[Any]
    reveal_type(server.send_chain(add.s(1, 1) | many))  # reveals GroupResult[int]
    reveal_type(server.send_chain(steps))  # reveals ChainResult[str]
    reveal_type(server.send_group(group(add.s(1, 2))))  # reveals GroupResult[int]
    reveal_type(server.send_chord(group(add.s(1, 2)) | label.partial()))  # reveals ChordResult[str]
    reveal_type(server.result("task_1").get())  # reveals Any


# What a plain call would not take is not taken here.
add.send(1, "x")  # refuses arg-type
add.s(1)  # refuses call-arg
add.s(1, 2, 3)  # refuses call-arg
add.delay(1, z=2)  # refuses call-arg
fetch.send(timeout=3)  # refuses call-arg
fetch.s("u", timeout="long")  # refuses arg-type
add.s(1, 2).options(speed=3)  # refuses call-arg
add.s(1, 2).options(on_duplicate="ignore")  # refuses arg-type
add.s(1, 2).options(expires="soon")  # refuses arg-type
task(unique="k")  # refuses call-overload
text: str = add.send(1, 2).get()  # refuses assignment
task(on_crash="ignore")  # refuses call-overload
task(retry_count="3")  # refuses call-overload
task(speed=3)  # refuses call-overload
chain(add)  # refuses call-overload
add.s(1, 2) | add  # refuses operator
group(add)  # refuses call-overload
number: int = (many | many).send().get()  # refuses assignment
