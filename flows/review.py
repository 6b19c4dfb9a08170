"""The flows around people: send them masks, fetch what they answered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from prefect import flow
from pydantic import BaseModel, Field

from schemas.settings import AcquisitionSettings
from tasks.progress import tell_steps
from tasks.review_queue import find_token, pull, push

if TYPE_CHECKING:
    from engine.review.queue import ReviewQueue
    from engine.store import Store

StoreAddress = Annotated[
    str, Field(min_length=1, description="store with the masks: a folder or any fsspec URL")
]
QueueAddress = Annotated[
    str | None,
    Field(
        description="where people answer: a folder, the folder of a server of this machine, or the URL of a Label Studio; the server "
        "in .review if not given. The token comes from LABEL_STUDIO_API_KEY or the Prefect secret label-studio-api-key"
    ),
]
Project = Annotated[str, Field(min_length=1, description="name of the queue on the server")]
Media = Annotated[
    str | None,
    Field(description="folder that the tasks' pictures are written to, for a server given by its URL"),
]
MediaUrl = Annotated[str | None, Field(description="what annotators' browsers call that folder")]


class PushSummary(BaseModel):
    """What was sent, and where people answer."""

    queue: str
    model: str
    answers: int
    masks: int
    items: int
    waiting: int
    renewed: int
    closed: int
    left_out: list[tuple[str, str]]
    address: str


class PullSummary(BaseModel):
    """What came back."""

    queue: str
    answers: int
    verdicts: dict[str, int]
    strangers: int
    elsewhere: dict[str, int]


@flow(name="review-push", persist_result=False)
def review_push(
    store: StoreAddress,
    queue: QueueAddress = None,
    budget: Annotated[
        int, Field(ge=1, description="masks that wait for people after the push, at most")
    ] = 100,
    project: Project = "gapmap",
    model: Annotated[
        str | None,
        Field(description="whose masks, name@version; those of the model that labelled last if not given"),
    ] = None,
    media: Media = None,
    media_url: MediaUrl = None,
    annotators: Annotated[int, Field(ge=1, description="answers to each task")] = 1,
    acquisition: Annotated[
        AcquisitionSettings | None,
        Field(description="which masks are chosen; the most uncertain ones if not given"),
    ] = None,
) -> PushSummary:
    """Fetch what people answered, then fill the queue with the masks that are worth it; killed or run again, nothing is asked twice."""
    target, asked = _open(store, queue, project, media, media_url, annotators)
    report = push(target, asked, budget, acquisition or AcquisitionSettings(), model, tell_steps)
    return PushSummary(**vars(report), address=asked.address)


@flow(name="review-pull", persist_result=False)
def review_pull(
    store: StoreAddress,
    queue: QueueAddress = None,
    project: Project = "gapmap",
    media: Media = None,
    media_url: MediaUrl = None,
) -> PullSummary:
    """Write what people answered since the last pull to the table `labels`, and tell of it as an event."""
    target, asked = _open(store, queue, project, media, media_url, 1)
    report = pull(target, asked)
    return PullSummary(**vars(report))


def _open(
    store: str, queue: str | None, project: str, media: str | None, media_url: str | None, annotators: int
) -> tuple[Store, ReviewQueue]:
    from engine.pool import check_addresses
    from engine.review.opening import open_queue
    from engine.store import Store

    check_addresses(store=store, queue=queue, media_folder=media, media_url=media_url)
    target = Store(store)
    target.check_exists()
    token = find_token() if queue is not None and "://" in queue else None
    if queue is not None and "://" not in queue:
        queue = str(Path(queue).expanduser().absolute())
    options = {"project": project, "media": media, "media_url": media_url}
    return target, open_queue(queue, token=token, annotators=annotators, **options)  # type: ignore[arg-type]
