"""The commands `gapmap models …`: which models there are, and which version is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.head_commands import DataOption
from flows.store_commands import StoreOption

_REFUSED = 3  # 1 is an error, 2 a wrong option

models = typer.Typer(
    name="models",
    help="List the models that have a name; decide which version of one is in use.",
    invoke_without_command=True,
)


@models.callback()
def show_models(
    context: typer.Context,
    store: Annotated[
        str | None,
        typer.Option(
            "--store", help="List the versions in a store instead: what each comes from, and which is in use."
        ),
    ] = None,
) -> None:
    """List the models that have a name: where each comes from, its size, and whether it is on this machine.

    `gapmap label --model current:NAME` uses the version that was promoted, which --store tells.

    Example: gapmap models --store masks/
    """
    if context.invoked_subcommand:
        return
    if store is not None:
        _show_versions(store)
        return
    from engine.models.registry import MODELS

    for entry in MODELS.values():
        size = entry.path.stat().st_size if entry.path.is_file() else entry.size_bytes
        here = "here" if entry.path.is_file() else "fetched at first use" if entry.url else "missing"
        megabytes = f"{size / 1e6:6.0f} MB" if size else " " * 9
        typer.echo(f"{entry.name:18} {entry.package:17} {megabytes}  {entry.licence:11} {here}")


def _show_versions(store: str) -> None:
    from engine.promotion import list_versions
    from engine.store import Store

    opened = Store(store)
    opened.check_exists()
    versions = list_versions(opened)
    wide = max([len(of.model) for of in versions], default=0)
    typer.echo(f"{'version':{wide}}  {'fine-tuned from':{wide}}  {'known since (UTC)':17}  state")
    for of in versions:
        typer.echo(
            f"{of.model:{wide}}  {of.parent or '-':{wide}}  {of.created_at:%Y-%m-%d %H:%M}   {of.state}"
        )


@models.command()
def promote(
    version: Annotated[str, typer.Argument(help="Weights of the new version: path or URL of a checkpoint.")],
    store: StoreOption,
    data: DataOption = None,
    name: Annotated[
        str | None, typer.Option(help="The model it is a version of. Default: what its file is called.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Images of a set, at most. Default: all.")] = None,
    masks: Annotated[int, typer.Option(min=1, help="Masks of an image, at most, evenly spread.")] = 20,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
) -> None:
    """Put a new version in the place of the present one, if it is better where neither has learnt.

    Both answer with 1, 3 and 5 points on what is kept out of the labelled sets and of people's answers (a fifth). The new
    one is promoted if no task loses more than half a point of IoU and the mean gains; else it is refused, and the
    command ends with 3. The verdict and its numbers are rows of the table promotions.

    Example: gapmap models promote models/0f3a9c01b2c3/sam-nano.safetensors --store masks/ --data labelled/
    """
    from engine.judging import judge_version
    from engine.models.allocator import keep_freed_memory
    from engine.store import Store
    from flows.console import steps_progress

    opened = Store(store)
    opened.check_exists()
    keep_freed_memory()
    address = version if "://" in version or not Path(version).exists() else str(Path(version).absolute())
    with steps_progress("new against present") as progress:
        verdict = judge_version(
            opened,
            address,
            data or [],
            name=name,
            images=images,
            masks=masks,
            device=device,
            progress=lambda done, total: progress(done, total),
        )
    typer.echo(f"{'promoted' if verdict.passed else 'refused'}: {verdict.reason}")
    if not verdict.passed:
        raise typer.Exit(_REFUSED)


@models.command()
def rollback(
    store: StoreOption,
    name: Annotated[str, typer.Argument(help="The model whose last promotion is undone.")] = "sam-nano",
) -> None:
    """Put the version back that was in use before the present one.

    Example: gapmap models rollback sam-nano --store masks/
    """
    from engine.promotion import roll_back
    from engine.store import Store

    opened = Store(store)
    opened.check_exists()
    typer.echo(f"in use again: {roll_back(opened, name).model}")
