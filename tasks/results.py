"""The end of a run as Prefect artifacts: what was done, and the masks that most want a look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

if TYPE_CHECKING:
    from engine.store import Store

MOST_UNCERTAIN = """
    WITH top AS (
        SELECT * FROM masks WHERE model = '{model}' AND replaced_by IS NULL ORDER BY uncertainty DESC, mask_id LIMIT {count}
    )
    SELECT mask_id, (SELECT min(i.uri) FROM images i WHERE i.image_id = top.image_id AND i.model = '{model}') AS uri,
           uncertainty, model_gap, prompt_gap, task_gap, sam_score, stability, area, x0, y0, x1, y1
    FROM top ORDER BY uncertainty DESC, mask_id
"""


def most_uncertain(store: Store, model: str, count: int = 10) -> list[dict[str, Any]]:
    """The masks of a model that it is least sure of, most uncertain first, with an image each is from
    (the first by name, where several files are the same image)."""
    quoted = model.replace("'", "''")
    return store.query(MOST_UNCERTAIN.format(model=quoted, count=count)).to_pylist()


@task(name="publish-results", cache_policy=NO_CACHE, persist_result=False)
def publish_results(store: Store, summary: dict[str, Any]) -> None:
    """Two table artifacts: the run's counts, and the ten most uncertain masks."""
    counts = {key: value for key, value in summary.items() if key != "errors"}
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
