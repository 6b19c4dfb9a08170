"""The commands around people: `gapmap push`, `gapmap pull`, `gapmap listen`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.own_prefect import quiet_prefect, tether_server
from flows.store_commands import ModelOption, StoreOption, absolute_address

if TYPE_CHECKING:
    from flows.review import PullSummary

QueueOption = Annotated[
    str | None,
    typer.Option(
        "--queue",
        envvar="GAPMAP_QUEUE",
        help="Where people answer: a folder of Label Studio's JSON; the folder of a server that runs here (gapmap "
        "review-server); or the URL of a Label Studio, with its token in LABEL_STUDIO_API_KEY. Default: the server in .review.",
    ),
]
ProjectOption = Annotated[
    str, typer.Option(help="Name of the queue on the server; its project may be renamed there.")
]
MediaOption = Annotated[
    str | None,
    typer.Option(help="Folder that the tasks' pictures are written to, for a server given by its URL."),
]
MediaUrlOption = Annotated[
    str | None,
    typer.Option(help="What annotators' browsers call that folder. Default: the server's own local files."),
]


def push(
    store: StoreOption,
    queue: QueueOption = None,
    budget: Annotated[
        int,
        typer.Option(
            min=1, help="Masks that wait for people afterwards, at most; those that wait already count."
        ),
    ] = 100,
    strategy: Annotated[
        str,
        typer.Option(
            help="Who is asked about: uncertainty, entropy, map, coreset (what covers the rest best), badge (uncertain and "
            "spread) or random."
        ),
    ] = "uncertainty",
    random_share: Annotated[
        float,
        typer.Option(help="Share drawn from the accepted masks, each as likely: tells how many are wrong."),
    ] = 0.1,
    per_image: Annotated[int, typer.Option(help="Masks of one image in one push, at most.")] = 30,
    per_stratum: Annotated[
        float, typer.Option(help="Share of one push from one folder of images, at most.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of all draws: the same seed and store give the same masks.")] = 0,
    project: ProjectOption = "gapmap",
    model: ModelOption = None,
    annotators: Annotated[int, typer.Option(min=1, help="Answers to each task before it is done.")] = 1,
    media: MediaOption = None,
    media_url: MediaUrlOption = None,
) -> None:
    """Send masks that are worth it to people: those that the model is most unsure of, or another strategy's.

    One task an image with at most thirty masks, the most uncertain first; beside the image the map of where the model
    is unsure, and why people are asked. Run it again whenever you like: what they answered is fetched first, what is there
    is not sent twice, and tasks that nobody has answered show the masks of a newer model.

    Example: gapmap push --store masks/ --queue review/ --budget 200
    """
    from engine.pool import check_addresses
    from flows.console import steps_progress
    from schemas.settings import AcquisitionSettings
    from tasks.progress import hearing_steps

    check_addresses(store=store, queue=queue, model=model, media_folder=media, media_url=media_url)
    acquisition = AcquisitionSettings(
        strategy=strategy,  # checked here
        random_share=random_share,
        per_image=per_image,
        per_stratum=per_stratum,
        seed=seed,
    )
    quiet_prefect()
    tether_server()
    with steps_progress("sending") as bar, hearing_steps(bar):
        from flows.review import review_push

        summary = review_push(
            absolute_address(store), queue, budget, project, model, media, media_url, annotators, acquisition
        )
    for name, why in summary.left_out:
        typer.secho(f"left out: {name}: {why}", fg="yellow", err=True)
    if summary.answers:
        typer.echo(f"{summary.answers} new or changed answers fetched first")
    typer.echo(
        f"{summary.masks} masks of {summary.model} sent in {summary.items} tasks; {summary.waiting} masks wait for people"
    )
    if summary.renewed:
        typer.echo(f"{summary.renewed} tasks that nobody had answered show the masks of this model now")
    if summary.closed:
        typer.echo(f"{summary.closed} planned tasks are given up: none of their masks holds any more")
    typer.echo(f"people answer at {summary.address}")


def pull(
    store: StoreOption,
    queue: QueueOption = None,
    project: ProjectOption = "gapmap",
    media: MediaOption = None,
    media_url: MediaUrlOption = None,
) -> None:
    """Fetch what people answered into the table labels; nothing is lost and nothing comes twice.

    Example: gapmap pull --store masks/ --queue review/
    """
    from engine.pool import check_addresses

    check_addresses(store=store, queue=queue, media_folder=media, media_url=media_url)
    quiet_prefect()
    tether_server()
    from flows.review import review_pull

    show_answers(review_pull(absolute_address(store), queue, project, media, media_url))


def show_answers(summary: PullSummary) -> None:
    """Print what a pull found, and what it left alone."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in summary.verdicts.items())
    typer.echo(f"{summary.answers} new or changed answers" + (f": {counts}" if counts else ""))
    for name, count in summary.elsewhere.items():
        typer.secho(
            f"{count} tasks among the answers were sent to {name}, not to {summary.queue}; they are left alone. Pull them from "
            "there; if that folder was moved here, put it back.",
            fg="yellow",
            err=True,
        )
    if unknown := summary.strangers - sum(summary.elsewhere.values()):
        typer.secho(
            f"{unknown} tasks among the answers were never sent from this store; they are left alone",
            fg="yellow",
            err=True,
        )


def listen(
    store: StoreOption,
    queue: QueueOption = None,
    project: ProjectOption = "gapmap",
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback let other machines knock.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port.")] = 8099,
    every: Annotated[
        float, typer.Option(min=1, help="Seconds after which it looks without being woken.")
    ] = 300,
    media: MediaOption = None,
    media_url: MediaUrlOption = None,
) -> None:
    """Fetch answers as soon as Label Studio says that there are some, and every few minutes anyway; Ctrl-C ends it.

    The secret that Label Studio has to send (header X-Gapmap-Secret) is that of GAPMAP_WEBHOOK_SECRET, else one made up and
    kept in .review/webhook-secret.

    Example: gapmap listen --store masks/ --queue https://labels.example.org --media media/
    """
    from engine.pool import check_addresses
    from flows.webhook import serve

    check_addresses(store=store, queue=queue, media_folder=media, media_url=media_url)

    def fetch() -> Any:
        from flows.review import review_pull

        return review_pull(absolute_address(store), queue, project, media, media_url)

    quiet_prefect()
    tether_server()
    serve(fetch, host=host, port=port, every_s=every)
