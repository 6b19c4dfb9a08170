"""When a task is worth trying again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.errors import TransientError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State, TaskRun
    from prefect.tasks import Task


def may_help_to_retry(_task: Task, _run: TaskRun, state: State) -> bool:
    """Only what failed in passing is tried again; a wrong setting fails at once."""
    return isinstance(state.result(raise_on_failure=False), TransientError)
