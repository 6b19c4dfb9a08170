"""Automatic masks: gapmap beside the packages' own generators.

    python benchmarks/generate.py --model sam-nano sam2-mini --data ../shared/data/everyday ../shared/data/nuclei/labelled
    python benchmarks/generate.py --adaptive --points-per-side 32 --model sam-nano --data ../shared/data/*

With `--adaptive`, the adaptive points beside the full grid, ours both, on the half of the image groups that
its settings were not chosen on.

Same weights, same thresholds, same images, one process. The two take turns on each group of images,
so that other load on the machine falls on both; ratios are medians over groups. Peak memory is of a
fresh process each. Writes a dated JSON file to benchmarks/results.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.generate.defaults import complete_settings  # noqa: E402
from engine.generate.generator import generate_masks  # noqa: E402
from engine.masks.rle import mask_iou  # noqa: E402
from engine.models.allocator import keep_freed_memory  # noqa: E402
from engine.models.loading import load_segmenter  # noqa: E402
from engine.models.segmenter import Segmenter  # noqa: E402
from schemas.settings import GenerateSettings  # noqa: E402

Maker = Callable[[list[np.ndarray]], list[list[str]]]
DATA = [ROOT.parent / "shared/data/everyday", ROOT.parent / "shared/data/nuclei/labelled"]
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}


def read_images(folder: Path, count: int, half: int | None = None) -> list[np.ndarray]:
    """`count` images of a folder, evenly spread over its sorted names, as RGB arrays.

    With `half`, every second group of images alone, from the first or the second on; groups are as the
    folder's annotations say, else each image is one.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
    if half is not None:
        paths = split_groups(folder, paths, half)
    if not paths:
        sys.exit(f"No images below {folder}. Name a folder that has some with --data.")
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int))
    return [np.array(Image.open(paths[i]).convert("RGB")) for i in chosen]


def split_groups(folder: Path, paths: list[Path], half: int) -> list[Path]:
    """Images of every second group."""
    notes = folder / "annotations.json"
    images = json.loads(notes.read_text())["images"] if notes.exists() else []
    said = {Path(image["file_name"]).name: image.get("group") for image in images}
    groups = [str(said.get(path.name) or path.name) for path in paths]
    chosen = sorted(set(groups))[half::2]
    return [path for path, group in zip(paths, groups, strict=True) if group in chosen]


def build_package(segmenter: Segmenter, settings: GenerateSettings) -> Maker:
    """The package's generator over the same modules; masks as compressed run lengths, as ours."""
    names = ["points_per_side", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset"]
    names += ["box_nms_thresh", "crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio"]
    names += ["crop_n_points_downscale_factor"]
    options: dict[str, Any] = {name: getattr(settings, name) for name in names} | {"output_mode": "coco_rle"}
    if segmenter.package == "sam2":
        from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

        generator: Any = SAM2AutomaticMaskGenerator(segmenter.model, **options)
        # The package writes down the feature sizes of 1024-pixel inputs.
        size = segmenter.image_size
        generator.predictor._bb_feat_sizes = [(size // stride,) * 2 for stride in (4, 8, 16)]
    else:
        from segment_anything import SamAutomaticMaskGenerator

        generator = SamAutomaticMaskGenerator(segmenter.model, **options)
    return lambda images: [
        [mask["segmentation"]["counts"] for mask in generator.generate(image)] for image in images
    ]


def build_ours(segmenter: Segmenter, settings: GenerateSettings) -> Maker:
    """Our generator."""
    return lambda images: [masks.rles for masks in generate_masks(segmenter, images, settings)]


def compare(theirs: list[str], ours: list[str], height: int, width: int) -> dict[str, Any]:
    """Agreement of two sets of masks of one image, paired one to one by IoU."""
    iou = mask_iou(theirs, ours, height, width)
    return {
        "masks": len(ours),
        "equal_counts": len(theirs) == len(ours),
        "identical": sorted(theirs) == sorted(ours),
        "paired_iou": iou[linear_sum_assignment(iou, maximize=True)].tolist(),
        "reference_masks": len(theirs),
        "found_again": int((iou.max(1, initial=0) >= 0.9).sum()),
    }


def race(makers: dict[str, Maker], images: list[np.ndarray], group: int) -> dict[str, Any]:
    """Seconds of both on each group of images, taking turns; and how far the second agrees with the first."""
    reference, ours = makers
    for make in makers.values():
        make(images[:1])  # warm up
    turns: list[dict[str, float]] = []
    agreement = []
    for number, start in enumerate(range(0, len(images), group)):
        part = images[start : start + group]
        masks, turn = {}, {"images": float(len(part))}
        # Who goes first alternates.
        for name in list(makers)[:: 1 if number % 2 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            masks[name] = makers[name](part)
            turn[name], turn[f"{name}_cpu"] = time.perf_counter() - wall, time.process_time() - cpu
        turns.append(turn)
        for image, theirs, found in zip(part, masks[reference], masks[ours], strict=True):
            agreement.append(compare(theirs, found, *image.shape[:2]))
        print(f"  {start + len(part)}/{len(images)} images, {turn[reference] / turn[ours]:.2f}x", flush=True)

    def median(value: Callable[[dict[str, float]], float]) -> float:
        return round(statistics.median(value(turn) for turn in turns), 3)

    paired = [iou for item in agreement for iou in item["paired_iou"]]
    return {
        "images": len(images),
        f"{reference}_images_per_s": median(lambda turn: turn["images"] / turn[reference]),
        f"{ours}_images_per_s": median(lambda turn: turn["images"] / turn[ours]),
        "ratio": median(lambda turn: turn[reference] / turn[ours]),
        "ratio_cpu_time": median(lambda turn: turn[f"{reference}_cpu"] / turn[f"{ours}_cpu"]),
        "masks_per_image": round(statistics.mean(item["masks"] for item in agreement), 1),
        "matched_iou": round(statistics.mean(paired), 6) if paired else None,
        "equal_counts": round(statistics.mean(item["equal_counts"] for item in agreement), 4),
        "identical_masks": round(statistics.mean(item["identical"] for item in agreement), 4),
        "reference_masks": sum(item["reference_masks"] for item in agreement),
        "found_again": sum(item["found_again"] for item in agreement),
    }


def measure_memory(
    settings: GenerateSettings, arguments: argparse.Namespace, side: str, model: str, data: Path
) -> float:
    """MiB that one side needs on top of the loaded model, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", side, "--model", model, "--data", str(data)]
    options = {name: getattr(arguments, name) for name in ("images", "threads", "device")}
    for name in ("points_per_side", "pred_iou_thresh", "stability_score_thresh"):
        options[name] = getattr(settings, name)
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def print_memory(arguments: argparse.Namespace, settings: GenerateSettings) -> None:
    """Child process of `measure_memory`."""
    segmenter = load_segmenter(arguments.model[0], device=arguments.device, precision="fp32")
    images = read_images(arguments.data[0], min(arguments.images, 4))
    make = {"package": build_package, "gapmap": build_ours}[arguments.memory_of](segmenter, settings)
    print(peak_memory(lambda: make(images)))


def peak_memory(run: Callable[[], object]) -> float:
    """MiB of resident memory that a call needs at most on top of what the process has."""
    process = psutil.Process()
    before = peak = process.memory_info().rss
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        while not running.done():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.005)
    running.result()
    return (peak - before) / 2**20


def describe_machine() -> dict[str, Any]:
    """Hardware and versions, for the result file."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    packages = ("torch", "torchvision", "numpy", "segment-anything", "sam2", "pycocotools")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def write_report(
    name: str, results: list[dict[str, Any]], load_before: tuple[float, float, float], **more: Any
) -> None:
    """Write the dated result file of a benchmark, with the machine it ran on."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    report = {
        "date": today,
        "machine": describe_machine(),
        **more,
        # Above the number of cores, something else was running as well.
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
        "results": results,
    }
    path = ROOT / "benchmarks" / "results" / f"{name}-{today}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Written: {path.relative_to(ROOT)}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["sam-nano", "sam2-mini"], help="names or checkpoints")
    parser.add_argument("--data", nargs="+", type=Path, default=DATA, help="folders with images")
    parser.add_argument("--images", type=int, default=20, help="images of each folder")
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--pred-iou-thresh", type=float, help="by default the model's own")
    parser.add_argument("--stability-score-thresh", type=float, help="by default the model's own")
    parser.add_argument("--group", type=int, default=4, help="images a turn")
    parser.add_argument("--adaptive", action="store_true", help="adaptive points beside the full grid")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; fp32 on both sides")
    parser.add_argument("--memory-of", choices=["package", "gapmap"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # for both sides
    names = ("points_per_side", "pred_iou_thresh", "stability_score_thresh")
    chosen = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.memory_of:
        print_memory(arguments, GenerateSettings(**chosen))
        return
    load_before = os.getloadavg()
    results = []
    for model in arguments.model:
        segmenter = load_segmenter(model, device=arguments.device, precision="fp32")
        settings = complete_settings(GenerateSettings(**chosen), segmenter)
        for data in arguments.data:
            print(f"{segmenter.model_id} on {data.name}", flush=True)
            result: dict[str, Any] = {"model": segmenter.model_id, "data": "/".join(data.parts[-2:])}
            makers = {
                "package": build_package(segmenter, settings),
                "gapmap": build_ours(segmenter, settings),
            }
            if arguments.adaptive:
                adaptive = settings.model_copy(update={"points": "adaptive"})
                makers = {
                    "grid": build_ours(segmenter, settings),
                    "adaptive": build_ours(segmenter, adaptive),
                }
            images = read_images(data, arguments.images, 1 if arguments.adaptive else None)
            result |= race(makers, images, arguments.group)
            for side in () if arguments.adaptive else ("package", "gapmap"):
                result[f"{side}_peak_mib"] = round(measure_memory(settings, arguments, side, model, data))
            result["settings"] = settings.model_dump()
            print(json.dumps(result, indent=2), flush=True)
            results.append(result)
    name = "generate-adaptive" if arguments.adaptive else "generate"
    write_report(name, results, load_before, threads=arguments.threads, device=arguments.device)


if __name__ == "__main__":
    main()
