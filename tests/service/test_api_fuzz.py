"""
Requests that the interface's own description allows, and some that it does not, in bulk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.service.replicas import Replicas, Wait

EXAMPLES = 40
#: Workflows in workflows take the generator seconds each.
WORKFLOW_EXAMPLES = 3


@pytest.fixture
def client(redis_url: str, queue: str, tmp_path: Path, wait_until: Wait) -> Iterator[httpx.Client]:
    made = Replicas(redis_url, queue, tmp_path, wait_until)
    yield made.start(API_WAIT_S="0.02")
    made.end()


@pytest.mark.leaves("queue", "delayed", "canceled")
def test_every_answer_to_any_request_is_one_that_the_description_names(
    client: httpx.Client,
) -> None:
    api: Any = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    asked = 0

    for found in api.get_all_operations():
        operation = found.ok()
        is_workflow = "workflows" in operation.tags
        for mode in schemathesis.GenerationMode:

            @seed(20_261_121)
            @settings(
                max_examples=WORKFLOW_EXAMPLES if is_workflow else EXAMPLES,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                case.call_and_validate(
                    base_url=str(client.base_url), excluded_checks=[positive_data_acceptance]
                )

            # Where there is nothing to say, there is nothing to say wrongly.
            with suppress(Unsatisfiable):
                ask()
    assert asked > 500
