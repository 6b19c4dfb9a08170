"""Training of the small models that ship, from random weights.

    python -m engine.learn.pretrain sam-nano --data COCO…      (what `make weights` runs)

The curriculum is what makes it learn: dense small objects in zoomed crops first, which teaches that a
point means the thing under it, then everything mixed, then whole images at the full input size.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engine.learn.augment import View, draw_box, draw_points, draw_view
from engine.learn.data import LabelledImage, make_training_scenes, read_coco, split_groups
from engine.learn.losses import dice_loss, focal_loss, mask_iou
from engine.models.nano import build_sam2_mini, build_sam_nano

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_UNKNOWN = ("purple_", "bright_1024")  # modalities that the active-learning loop must discover by itself


@dataclass(frozen=True)
class Phase:
    """A stretch of the curriculum. `until` and the zoom range are shares; `mix` weighs crowd, scenes, photos."""

    until: float
    size: int
    zoom: tuple[float, float]
    mix: tuple[float, float, float]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training run, besides the data."""

    model: str
    steps: int = 6000
    images: int = 4
    masks: int = 8
    rate: float = 6e-4
    decay: float = 0.02
    seed: int = 0
    scenes: int = 3000


def curriculum(image_size: int) -> tuple[Phase, ...]:
    """The phases for a model of this input size; sizes are multiples of 32."""
    half = max(64, round(image_size * 0.6 / 64) * 64)
    return (
        Phase(0.30, half, (0.2, 0.6), (0.8, 0.2, 0.0)),
        Phase(0.70, half, (0.3, 1.2), (0.35, 0.45, 0.2)),
        Phase(1.00, image_size, (0.5, 1.6), (0.35, 0.4, 0.25)),
    )


class PromptedModel(nn.Module):
    """One differentiable face for both packages' models: a view and its prompts -> four masks each.

    `forward(pixels_B3SS, prompts)` where prompts is a list over images of dicts with `points` (M,P,2),
    `labels` (M,P), `boxes` (M,4) or None and `masks` (M,1,h,w) or None, in view pixels. Returns lists of
    logits M4hw and IoU M4; output 0 is the single mask, 1..3 the multimask outputs.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.net = build_sam_nano() if name == "sam-nano" else build_sam2_mini()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    @property
    def image_size(self) -> int:
        return self.net.image_size if self.name == "sam2-mini" else self.net.image_encoder.img_size

    @property
    def prompt_encoder(self) -> nn.Module:
        return self.net.sam_prompt_encoder if self.name == "sam2-mini" else self.net.prompt_encoder

    def encode(
        self, pixels_B3SS: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Embedding BCss and high-resolution features (empty for SAM); padding is zero after normalisation."""
        x = (pixels_B3SS - self.mean) / self.std * valid
        if self.name == "sam-nano":
            return self.net.image_encoder(x), []
        *fine, embedding = self.net.forward_image(x)["backbone_fpn"]
        return embedding + self.net.no_mem_embed.view(1, -1, 1, 1), fine

    def decode(
        self, embedding_1C: torch.Tensor, fine: list[torch.Tensor], prompt: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks and IoU of all prompts of one image: logits M4hw, iou M4."""
        encoder = self.prompt_encoder
        side = embedding_1C.shape[-1]
        # Positions are relative to the input, so a model can be shown views of any size.
        encoder.image_embedding_size, encoder.input_image_size = (side, side), (side * 16, side * 16)
        points = None if prompt["points"] is None else (prompt["points"], prompt["labels"])
        sparse, dense = encoder(points=points, boxes=prompt["boxes"], masks=prompt["masks"])
        if self.name == "sam-nano":
            return self.net.mask_decoder.predict_masks(embedding_1C, encoder.get_dense_pe(), sparse, dense)
        logits, iou, _, _ = self.net.sam_mask_decoder.predict_masks(
            embedding_1C, encoder.get_dense_pe(), sparse, dense, repeat_image=True, high_res_features=fine
        )
        return logits, iou


def train(
    recipe: Recipe,
    data: list[Path],
    folder: Path,
    *,
    start: Path | None = None,
    device: str = "cpu",
    workers: int = 2,
) -> Path:
    """Train, or go on from `folder/last.pt`; returns the path of the exported safetensors.

    Args:
        data: COCO files that may be learnt from; their kept-out groups and unknown modalities are not touched.
        start: weights of the other small model to begin with (shared parts only).
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = PromptedModel(recipe.model).to(device)
    if start is not None and not (folder / "last.pt").exists():
        print(f"starting with {warm_start(model.net, start)} shared tensors of {start.name}")
    average = {key: value.detach().clone() for key, value in model.net.state_dict().items()}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.98), fused=True
    )
    first = 0
    if (folder / "last.pt").exists():
        saved = torch.load(folder / "last.pt", weights_only=True, map_location=device)
        if saved["recipe"] != asdict(recipe):
            raise SystemExit(
                f"{folder} holds a run with another recipe: {saved['recipe']}. Choose another --folder."
            )
        model.net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, first = saved["average"], saved["step"]
    sources = _sources(recipe, data, workers)
    batches = _Batches(recipe, sources, curriculum(model.image_size), letterbox=recipe.model == "sam-nano")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress, (folder / "log.jsonl").open("a") as log:
        bar = progress.add_task(recipe.model, total=recipe.steps, completed=first)
        began, sums = time.monotonic(), np.zeros(4)
        for step, views in batches.from_step(first):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * _schedule(step, recipe.steps)
            sums += train_step(model, optimizer, views, np.random.default_rng([recipe.seed, 1, step]), device)
            momentum = min(0.999, (step + 1) / (step + 20))
            with torch.no_grad():
                state = model.net.state_dict()
                torch._foreach_lerp_([average[key] for key in state], list(state.values()), 1 - momentum)
            done = step + 1
            progress.advance(bar)
            if done % 50 == 0:
                values = dict(
                    zip(("loss", "iou", "iou_error", "masks"), (sums / 50).round(4).tolist(), strict=True)
                )
                log.write(
                    json.dumps({"step": done, "seconds": round(time.monotonic() - began, 1), **values}) + "\n"
                )
                log.flush()
                progress.update(
                    bar, description=f"{recipe.model} loss {values['loss']:.3f} IoU {values['iou']:.3f}"
                )
                sums[:] = 0
            if done % 250 == 0 or done == recipe.steps:
                state = {
                    "recipe": asdict(recipe),
                    "model": model.net.state_dict(),
                    "average": average,
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                }
                torch.save(state, folder / "last.pt.new")
                (folder / "last.pt.new").replace(folder / "last.pt")
                export(average, recipe, model.image_size, done, folder / f"{recipe.model}.safetensors")
    return folder / f"{recipe.model}.safetensors"


def train_step(
    model: PromptedModel,
    optimizer: torch.optim.Optimizer,
    views: list[View],
    rng: np.random.Generator,
    device: str,
) -> np.ndarray:
    """One update on a batch of views, in one or two rounds of prompts; returns mean (loss, iou, iou error, masks)."""
    pixels = (
        torch.from_numpy(np.stack([view.pixels for view in views])).to(device).permute(0, 3, 1, 2).float()
    )
    valid = torch.zeros(len(views), 1, *pixels.shape[-2:], device=device)
    for index, view in enumerate(views):
        valid[index, :, : view.valid_hw[0], : view.valid_hw[1]] = 1
    targets = [_target(view, device) for view in views]
    prompts = [_first_prompt(rng, view, device) for view in views]
    rounds = 2 if rng.random() < 0.3 else 1
    total, report = torch.zeros((), device=device), np.zeros(4)
    # One autocast region: its cache of cast weights lives as long as the region does.
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        embedding, fine = model.encode(pixels, valid)
        for turn in range(rounds):
            for index, prompt in enumerate(prompts):
                logits, iou = model.decode(
                    embedding[index : index + 1], [f[index : index + 1] for f in fine], prompt
                )
                loss, figures, best = _loss(
                    logits.float(), iou.float(), targets[index], ambiguous=prompt["ambiguous"]
                )
                total = total + loss / (len(prompts) * rounds)
                report += figures / (len(prompts) * rounds)
                if turn + 1 < rounds:
                    prompts[index] = _next_prompt(rng, views[index], prompt, best.detach(), device)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    report[0] = total.item()
    return report


def warm_start(net: nn.Module, weights: Path) -> int:
    """Copy every tensor whose name (across the two packages' spellings) and shape agree; returns how many."""
    from safetensors.torch import load_file

    spelling = (
        ("sam_prompt_encoder.", "prompt_encoder."),
        ("sam_mask_decoder.", "mask_decoder."),
        ("mlp.layers.0", "mlp.lin1"),
        ("mlp.layers.1", "mlp.lin2"),
    )
    given = load_file(weights)
    state, copied = net.state_dict(), 0
    for key, value in state.items():
        other = key
        for ours, theirs in spelling:
            if ".transformer." in key or not ours.startswith("mlp"):
                other = other.replace(ours, theirs)
        if other in given and given[other].shape == value.shape:
            value.copy_(given[other])
            copied += 1
    return copied


def export(weights: dict[str, torch.Tensor], recipe: Recipe, image_size: int, step: int, path: Path) -> None:
    """Write fp16 safetensors whose metadata name the architecture, the input size and the recipe."""
    from safetensors.torch import save_file

    metadata = {
        "architecture": recipe.model,
        "image_size": str(image_size),
        "step": str(step),
        "recipe": json.dumps(asdict(recipe)),
    }
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in weights.items()}
    save_file(tensors, path.with_suffix(".new"), metadata)
    path.with_suffix(".new").replace(path)


def _loss(
    logits_M4hw: torch.Tensor, iou_M4: torch.Tensor, target_M1hw: torch.Tensor, *, ambiguous: bool
) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """The best of the three outputs is taught (and the single output, where the prompt says enough), and every IoU."""
    target = target_M1hw.expand_as(logits_M4hw)
    masks_M4 = 20 * focal_loss(logits_M4hw, target) + dice_loss(logits_M4hw, target)
    truth_M4 = mask_iou(logits_M4hw, target)
    best_M = masks_M4[:, 1:].argmin(1, keepdim=True)
    # A little for the others keeps all three outputs alive while one of them is still winning everywhere.
    taught = (
        masks_M4[:, 1:].gather(1, best_M).mean()
        + 0.05 * masks_M4[:, 1:].mean()
        + (0.2 if ambiguous else 0.6) * masks_M4[:, 0].mean()
    )
    error = (iou_M4 - truth_M4).square()
    picked = logits_M4hw[:, 1:].gather(1, best_M[..., None, None].expand(-1, -1, *logits_M4hw.shape[-2:]))
    figures = np.array(
        [0.0, truth_M4[:, 1:].amax(1).mean().item(), (iou_M4 - truth_M4).abs().mean().item(), len(truth_M4)]
    )
    return taught + error.mean(), figures, picked


def _first_prompt(rng: np.random.Generator, view: View, device: str) -> dict:
    """One point (most often), up to eight points, a box, or a box and a point; one kind for all masks of a view."""
    kind = rng.choice(["point", "points", "box", "both"], p=[0.6, 0.15, 0.18, 0.07])
    count = int(rng.integers(2, 9)) if kind == "points" else 1
    points = torch.from_numpy(np.stack([draw_points(rng, mask, count) for mask in view.masks_MSS])).to(device)
    boxes = torch.from_numpy(np.stack([draw_box(rng, mask) for mask in view.masks_MSS])).to(device)
    return {
        "points": None if kind == "box" else points,
        "labels": None if kind == "box" else torch.ones(points.shape[:2], dtype=torch.int64, device=device),
        "boxes": boxes if kind in ("box", "both") else None,
        "masks": None,
        "ambiguous": kind == "point",
    }


def _next_prompt(
    rng: np.random.Generator, view: View, prompt: dict, logits_M1hw: torch.Tensor, device: str
) -> dict:
    """A correction: a point where the best mask is wrong, and that mask's logits as mask prompt."""
    size = view.pixels.shape[0]
    enlarged = nn.functional.interpolate(logits_M1hw.float(), (size, size), mode="bilinear") > 0
    points, labels = [], []
    for mask, now in zip(view.masks_MSS, enlarged[:, 0].cpu().numpy(), strict=True):
        wrong = mask ^ now
        wrong[view.valid_hw[0] :], wrong[:, view.valid_hw[1] :] = False, False
        point = draw_points(rng, wrong if wrong.any() else mask, 1)
        points.append(point)
        labels.append([int(mask[int(point[0, 1]), int(point[0, 0])])])
    new_points, new_labels = (
        torch.from_numpy(np.stack(points)).to(device),
        torch.tensor(labels, device=device),
    )
    if prompt["points"] is not None:
        new_points, new_labels = (
            torch.cat([prompt["points"], new_points], 1),
            torch.cat([prompt["labels"], new_labels], 1),
        )
    return {
        **prompt,
        "points": new_points,
        "labels": new_labels,
        "masks": logits_M1hw.float(),
        "ambiguous": False,
    }


def _target(view: View, device: str) -> torch.Tensor:
    """Share of each low-resolution cell that the mask covers, M1hw."""
    masks = torch.from_numpy(view.masks_MSS).to(device).float()[:, None]
    return nn.functional.avg_pool2d(masks, 4)


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _sources(recipe: Recipe, data: list[Path], workers: int) -> list[list[LabelledImage]]:
    """Crowds (dense labelled sets and crowd scenes), scenes, photos; in this order."""
    dense: list[LabelledImage] = []
    photos: list[LabelledImage] = []
    for path in data:
        known = [image for image in read_coco(path) if not image.modality.startswith(_UNKNOWN)]
        training = [image.preload() for image in split_groups(known)[0]]
        (dense if any(image.modality for image in training) else photos).extend(training)
    scenes = make_training_scenes(recipe.scenes, 384, workers)
    crowds = [scene for scene in scenes if scene.modality == "crowd"]
    return [dense + crowds[: max(len(dense), 50)], scenes, photos or scenes]


class _Batches:
    """The views of every step; a step's views depend on the seed and the step alone, so a resumed run sees the same."""

    def __init__(
        self,
        recipe: Recipe,
        sources: list[list[LabelledImage]],
        phases: tuple[Phase, ...],
        *,
        letterbox: bool,
    ) -> None:
        self.recipe, self.sources, self.phases, self.letterbox = recipe, sources, phases, letterbox

    def from_step(self, first: int):
        """(step, views) from step `first` on, made ahead in a thread."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as ahead:
            waiting = [
                (step, ahead.submit(self._views, step))
                for step in range(first, min(first + 3, self.recipe.steps))
            ]
            while waiting:
                step, views = waiting.pop(0)
                if step + 3 < self.recipe.steps:
                    waiting.append((step + 3, ahead.submit(self._views, step + 3)))
                yield step, views.result()

    def _views(self, step: int) -> list[View]:
        rng = np.random.default_rng([self.recipe.seed, 0, step])
        phase = next(p for p in self.phases if step < p.until * self.recipe.steps)
        views: list[View] = []
        while len(views) < self.recipe.images:
            source = self.sources[int(rng.choice(3, p=phase.mix))]
            image = source[int(rng.integers(len(source)))]
            view = (
                draw_view(rng, image, phase.size, phase.zoom, self.recipe.masks, letterbox=self.letterbox)
                if image.masks
                else None
            )
            if view is not None:
                views.append(view)
        return views


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=["sam-nano", "sam2-mini"])
    parser.add_argument(
        "--data", type=Path, nargs="*", default=[], help="COCO files or their folders that may be learnt from"
    )
    parser.add_argument(
        "--folder", type=Path, help="checkpoints and log; a run there goes on (default runs/MODEL)"
    )
    parser.add_argument("--start", type=Path, help="safetensors of the other small model to start from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that paint scenes")
    for name, value in asdict(Recipe("")).items():
        if name != "model":
            parser.add_argument(f"--{name}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    folder = arguments.pop("folder") or Path("runs") / arguments["model"]
    options = {key: arguments.pop(key) for key in ("data", "start", "device", "workers")}
    print(f"wrote {train(Recipe(**arguments), folder=folder, **options)}")


if __name__ == "__main__":
    main()
