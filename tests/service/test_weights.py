"""
A worker whose queues have weights: a real process, and queues filled before it starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .conftest import Site, signature


def _order(site: Site, sizes: dict[str, int], flag: str, wait_until: Callable[..., Any]) -> str:
    """Fill queues, let one worker of one slot empty them, and return whose turns it were."""
    ledger = f"{site.queue}.order"
    queues = {letter: f"{site.queue}.{letter}" for letter in sizes}
    for letter, size in sizes.items():
        for _ in range(size):
            task = signature("write_down", ledger, letter)
            task.routing_key = queues[letter]
            site.server.send_task(task)
    for letter, queue in queues.items():
        flag = flag.replace(f"<{letter}>", queue)
    # Without a flush, short tasks are not claimed ahead: each claim is one message.
    worker = site.start("-Q", flag, WORKER_FLUSH_MS="0")
    count = sum(sizes.values())
    wait_until(lambda: site.raw.llen(ledger) == count, 30, "all to run")
    worker.terminate()
    assert worker.wait(timeout=30) == 0
    order = b"".join(site.raw.lrange(ledger, 0, -1)).decode()
    site.raw.delete(ledger, *(f"{{{queue}}}:seq" for queue in queues.values()))
    return order


def test_full_queues_share_a_worker_by_their_weights(
    site: Site, wait_until: Callable[..., Any]
) -> None:
    order = _order(site, {"h": 9, "l": 9}, "<h>=3,<l>=1", wait_until)

    assert (order[:12].count("h"), order[:12].count("l")) == (9, 3)
    assert "l" in order[:4]


def test_an_empty_queue_leaves_its_turns_to_the_others(
    site: Site, wait_until: Callable[..., Any]
) -> None:
    order = _order(site, {"h": 0, "m": 4, "l": 4}, "<h>=1000,<m>=2,<l>=1", wait_until)

    assert sorted(order) == list("llllmmmm")
    assert order.startswith("m")


def test_queues_without_weights_keep_their_strict_order(
    site: Site, wait_until: Callable[..., Any]
) -> None:
    assert _order(site, {"h": 4, "l": 4}, "<h>,<l>", wait_until) == "hhhhllll"
