"""The command `gapmap label`: its options, and the flow run in this process behind a bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.own_prefect import quiet_prefect, tether_server
from flows.store_commands import StoreOption, absolute_address, check_writable

if TYPE_CHECKING:
    from schemas.settings import PoolSettings


def label(
    pool: Annotated[
        str,
        typer.Argument(
            help="Folder, bucket, zip or list of images: any fsspec URL; globs allowed (quote them)."
        ),
    ],
    store: StoreOption,
    model: Annotated[
        str,
        typer.Option(
            help="Registry name (see: gapmap models), path or URL of a checkpoint, or current:NAME for the version that was "
            "promoted."
        ),
    ] = "sam-nano",
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:N, mps or cpu. Default: the best there is.")
    ] = None,
    points_per_side: Annotated[
        int | None, typer.Option(help="Grid of point prompts, per side. Default: 32.")
    ] = None,
    points: Annotated[
        str | None,
        typer.Option(help="grid, or adaptive: fewer points, nearly the same masks. Default: grid."),
    ] = None,
    pred_iou_thresh: Annotated[
        float | None, typer.Option(help="Drop masks the model scores lower. Default: the model's own.")
    ] = None,
    stability_score_thresh: Annotated[
        float | None, typer.Option(help="Drop masks less stable than this. Default: the model's own.")
    ] = None,
    box_nms_thresh: Annotated[
        float | None, typer.Option(help="Box IoU above which the lower score goes. Default: 0.7.")
    ] = None,
    crop_n_layers: Annotated[
        int | None, typer.Option(help="Layers of overlapping crops besides the whole image. Default: 0.")
    ] = None,
    min_mask_region_area: Annotated[
        int | None, typer.Option(help="Remove smaller holes and islands, pixels. Default: 0.")
    ] = None,
    tile_size: Annotated[
        int | None,
        typer.Option(help="Cut images with a longer side into tiles of this side, pixels. Default: never."),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Glob below the pool; may be given several times.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob to leave out; may be given several times.")
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, max=4096, help="Images committed together.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, max=256, help="Images encoded together.")] = 4,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many images; the next run goes on.")
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Try images again that could not be read before.")
    ] = False,
    heads: Annotated[
        str | None,
        typer.Option(
            help="File or URL of heads that score the masks (see: gapmap fit-heads), or none. Default: those beside the "
            "weights."
        ),
    ] = None,
    maps: Annotated[
        str | None,
        typer.Option(
            help="File or URL of the refiner that draws uncertainty maps (see: gapmap fit-refiner), self (the model is "
            "asked itself: weak), or none. Default: the refiner beside the weights, else self."
        ),
    ] = None,
) -> None:
    """Mask every image of a pool; what is in the store already is not done again.

    Stop it whenever you like, even with kill -9: the same command goes on where it was.

    Example: gapmap label photos/ --store masks/
    """
    from engine.pool import check_addresses
    from schemas.settings import GenerateSettings, PoolSettings

    check_addresses(pool=pool, store=store, model=model, heads_file=heads, refiner_file=maps)
    chosen: dict[str, Any] = {
        "points_per_side": points_per_side,
        "points": points,
        "pred_iou_thresh": pred_iou_thresh,
        "stability_score_thresh": stability_score_thresh,
        "box_nms_thresh": box_nms_thresh,
        "crop_n_layers": crop_n_layers,
        "min_mask_region_area": min_mask_region_area,
        "tile_size": tile_size,
    }
    generate = GenerateSettings(**{key: value for key, value in chosen.items() if value is not None})
    files = PoolSettings(include=tuple(include or ()), exclude=tuple(exclude or ()))
    heads = heads if heads in (None, "none") else absolute_address(heads)
    maps = maps if maps in (None, "none", "self") else absolute_address(maps)
    _check_inputs(absolute_address(pool), files, model, {"heads": heads, "maps": maps})
    check_writable(absolute_address(store))
    quiet_prefect()
    tether_server()
    from flows.console import LabelBar
    from tasks.progress import listening

    with LabelBar() as bar, listening(bar):
        from flows.pseudolabel import pseudolabel

        summary = pseudolabel(
            absolute_address(pool),
            absolute_address(store),
            model,
            generate=generate,
            files=files,
            shard_size=shard_size,
            batch_size=batch_size,
            limit=limit,
            device=device,
            retry_errors=retry_errors,
            heads=heads,
            maps=maps,
        )
    bar.summarise(summary)


def _check_inputs(pool: str, files: PoolSettings, model: str, scorers: dict[str, str | None]) -> None:
    """Find a typing error before Prefect and torch are started, which takes much longer: the flow would find it, too."""
    from engine.models.loading import check_model
    from engine.pool import list_pool
    from schemas.errors import ConfigError

    next(list_pool(pool, files))
    if not model.startswith("current:"):  # what that stands for the store says
        check_model(model)
    for option, asked in scorers.items():
        if asked not in (None, "none", "self") and "://" not in asked and not Path(asked).is_file():
            raise ConfigError(f"There is no file {asked}: check the name given with --{option}.")
