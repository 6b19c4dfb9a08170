"""The end of a run as Prefect artifacts: what was done, the masks that most want a look, and a round's page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

if TYPE_CHECKING:
    from engine.store import Store

MOST_UNCERTAIN = """
    WITH top AS (
        SELECT * FROM masks WHERE model = '{model}' AND replaced_by IS NULL ORDER BY uncertainty DESC, mask_id LIMIT {count}
    )
    SELECT mask_id, (SELECT list(i.uri ORDER BY i.committed_at DESC, i.uri)[1] FROM images i
                     WHERE i.image_id = top.image_id AND i.model = '{model}') AS uri,
           uncertainty, model_gap, prompt_gap, task_gap, sam_score, stability, area, x0, y0, x1, y1
    FROM top ORDER BY uncertainty DESC, mask_id
"""


def most_uncertain(store: Store, model: str, count: int = 10) -> list[dict[str, Any]]:
    """The masks of a model that it is least sure of, most uncertain first, with an image each is from
    (the one labelled last, where several files are the same image)."""
    quoted = model.replace("'", "''")
    return store.query(MOST_UNCERTAIN.format(model=quoted, count=count)).to_pylist()


@task(name="publish-results", cache_policy=NO_CACHE, persist_result=False)
def publish_results(store: Store, summary: dict[str, Any]) -> None:
    """Two table artifacts: the run's counts, and the ten most uncertain masks."""
    counts = {key: value for key, value in summary.items() if key not in ("errors", "failed")}
    errors = [
        {"what": f"error: {kind}", "value": str(count)} for kind, count in sorted(summary["errors"].items())
    ]
    create_table_artifact(
        [{"what": key, "value": str(value)} for key, value in counts.items()] + errors,
        key="pseudolabel-results",
        description="What the run did",
    )
    rows = most_uncertain(store, summary["model"])
    if rows:
        create_table_artifact(
            [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
            key="pseudolabel-most-uncertain",
            description="The ten most uncertain masks",
        )


@task(name="report-round", cache_policy=NO_CACHE, persist_result=False)
def report_round(store: Store, out: Path, round_id: str | None = None) -> Path:
    """Write a round's page, and an artifact with its figures that says where the page is; see `write_round_report`."""
    from engine.report.round_page import describe_round, summarise_round
    from engine.report.round_report import write_round_report

    made = write_round_report(store, out, round_id)
    page = out.absolute()
    rows = [f"| {what} | {_as_markdown(value)} |" for what, value in describe_round(made)]
    lines = [_as_markdown(summarise_round(made)), "", "| | |", "|---|---|", *rows, ""]
    # A browser opens no file from a server's page, so the path is there to be copied as well.
    lines.append(f"The whole page: [{_as_markdown(page.name)}](<{page.as_uri()}>), `{page}`")
    create_markdown_artifact("\n".join(lines), key="round-report", description="What the round came to")
    return page


def _as_markdown(text: str) -> str:
    """Text that stays text: names of models and reasons may hold anything."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~!])", r"\\\1", " ".join(text.split()))
