"""The mask decoder: gapmap's order of work beside the packages' own `MaskDecoder`, over the same weights.

    python benchmarks/decoder.py --model sam-vit-b sam-nano sam2.1-base-plus sam2-mini --points 64

Shipped models see a drawn scene; of the official ones only the sizes are taken: random weights, random
features. Each side decodes the points of one image, 64 at a time; the two take turns in one process,
and the ratio is the median over turns. Multiply-adds and bytes are counted while the operations run.
Peak memory is of a fresh process each. Writes a dated JSON file to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from generate import peak_memory, write_report
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from engine.models.allocator import keep_freed_memory
from engine.models.architecture import build_model
from engine.models.loading import load_segmenter
from engine.models.registry import MODELS
from engine.models.sam import SamSegmenter
from engine.models.sam2 import Sam2Segmenter
from engine.models.segmenter import Segmenter
from engine.scenes import make_scene
from schemas.records import Decoded, Embedding, Prompts

Decode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
BATCH = 64  # the packages' points_per_batch


def build_case(name: str, device: str) -> tuple[Segmenter, Embedding]:
    """A segmenter and the embedding of one square image of the model's input size."""
    if MODELS[name].kind == "shipped":
        segmenter = load_segmenter(name, device=device, precision="fp32")
        return segmenter, segmenter.embed([make_scene(3, segmenter.image_size).image])
    torch.manual_seed(0)
    model = build_model(name)
    adapter = SamSegmenter if MODELS[name].package == "segment-anything" else Sam2Segmenter
    segmenter = adapter(model, name=name, sha256="0" * 64, device=device, precision="fp32")
    # Fresh weights give logits near zero, on which any two decoders agree.
    for parameter_name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.add_(0.1 * torch.randn_like(weight))
        elif "hypernetworks" in parameter_name:
            weight.mul_(3)
    side = segmenter.image_size // 16
    fine = () if segmenter.package != "sam2" else ((32, 4 * side), (64, 2 * side))
    high_res = tuple(torch.randn(1, width, size, size).to(device) for width, size in fine)
    features = torch.randn(1, 256, side, side).to(device)
    return segmenter, Embedding(features, ((segmenter.image_size,) * 2,), high_res)


def build_package(segmenter: Segmenter, embedding: Embedding) -> Decode:
    """The package's own prompt encoder and mask decoder."""
    encoder, decoder = (getattr(segmenter.model, name) for name in segmenter.decoder_modules)
    more: dict[str, Any] = {}
    if segmenter.package == "sam2":
        more = {"repeat_image": True, "high_res_features": list(embedding.high_res)}

    def decode(points_N2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points_N2 = points_N2.to(segmenter.device)
        labels_N1 = torch.ones(len(points_N2), 1, dtype=torch.int64, device=segmenter.device)
        sparse, dense = encoder(points=(points_N2[:, None], labels_N1), boxes=None, masks=None)
        logits, iou, *_ = decoder(
            image_embeddings=embedding.features_BCHW,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            **more,
        )
        return logits, iou

    return decode


def build_ours(segmenter: Segmenter, embedding: Embedding, min_iou: float | None = None) -> Decode:
    """`Segmenter.decode`; with `min_iou` only what promises more is drawn."""

    def decode(points_N2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(points_N2)
        prompts = Prompts(
            torch.zeros(n, dtype=torch.int64), points_N2[:, None], torch.ones(n, 1, dtype=torch.int64)
        )
        decoded: Decoded = segmenter.decode(embedding, prompts, min_iou=min_iou)
        return decoded.logits_NMhw, decoded.iou_NM

    return decode


class _Traffic(TorchDispatchMode):
    """Bytes that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.__name__:
            for tensor in torch.utils._pytree.tree_leaves((args, kwargs, out)):
                if isinstance(tensor, torch.Tensor):
                    self.bytes += tensor.untyped_storage().nbytes() if 0 in tensor.stride() else tensor.nbytes
        return out


def count(decode: Decode, points_N2: torch.Tensor) -> dict[str, float]:
    """Millions of multiply-adds, and MB moved by operations, a prompt."""
    traffic = _Traffic()
    with FlopCounterMode(display=False) as flops:
        decode(points_N2)
    with traffic:
        decode(points_N2)
    n = len(points_N2)
    return {
        "multiply_adds_m": round(flops.get_total_flops() / 2e6 / n, 1),
        "moved_mb": round(traffic.bytes / 1e6 / n, 1),
    }


def finish(device: str) -> None:
    """Wait for what a GPU still has to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def measure_machine(device: str) -> dict[str, float]:
    """What the machine reaches at best on these threads, in fp32: matrix products, and copies larger than its cache."""

    def best(run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            run()
            finish(device)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    side = 2048 if device == "cpu" else 8192
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    source = torch.randn(1 << (26 if device == "cpu" else 28), device=device)
    target = torch.empty_like(source)
    return {
        "gemm_gflop_s": round(2 * side**3 / best(lambda: a @ b) / 1e9, 1),
        "copy_gb_s": round(2 * source.nbytes / best(lambda: target.copy_(source)) / 1e9, 1),
    }


@torch.inference_mode()
def race(name: str, points: int, turns: int, device: str) -> dict[str, Any]:
    """Seconds of both on the same points, taking turns; what they say, and what they do for it."""
    segmenter, embedding = build_case(name, device)
    sides = {"package": build_package(segmenter, embedding), "gapmap": build_ours(segmenter, embedding)}
    points_P2 = torch.rand(points, 2, generator=torch.Generator().manual_seed(1)) * segmenter.image_size
    counted = {side: count(decode, points_P2[:BATCH]) for side, decode in sides.items()}  # warms up, too
    seconds: dict[str, list[float]] = {}
    differences, spread = [], 0.0
    for turn in range(turns):
        took = dict.fromkeys([*sides, *(f"{side}_cpu" for side in sides)], 0.0)
        for number, part_N2 in enumerate(points_P2.split(BATCH)):
            said = {}
            for side in list(sides)[:: 1 if (turn + number) % 2 else -1]:
                wall, cpu = time.perf_counter(), time.process_time()
                said[side] = sides[side](part_N2)
                finish(device)
                took[side] += time.perf_counter() - wall
                took[f"{side}_cpu"] += time.process_time() - cpu
            differences.append([(a - b).abs().max().item() for a, b in zip(*said.values(), strict=True)])
            spread = said["package"][0].std().item()
        for side, value in took.items():
            seconds.setdefault(side, []).append(value)
        print(f"  turn {turn + 1}: {took['package'] / took['gapmap']:.2f}x", flush=True)
    ratios, in_cpu_time = (
        [a / b for a, b in zip(seconds[f"package{kind}"], seconds[f"gapmap{kind}"], strict=True)]
        for kind in ("", "_cpu")
    )
    result: dict[str, Any] = {"model": name, "points": points, "turns": turns}
    for side in sides:
        result[f"{side}_ms_a_prompt"] = round(statistics.median(seconds[side]) / points * 1e3, 4)
    result["ratio"] = round(statistics.median(ratios), 2)
    result["ratio_cpu_time"] = round(statistics.median(in_cpu_time), 2)
    result["ratios"] = [round(ratio, 2) for ratio in ratios]
    result["logits_difference"], result["iou_difference"] = (
        max(kind) for kind in zip(*differences, strict=True)
    )
    result["logits_deviation"] = round(spread, 2)
    for side in sides:
        result |= {f"{side}_{what}": value for what, value in counted[side].items()}
    result["fewer_multiply_adds"] = round(
        counted["package"]["multiply_adds_m"] / counted["gapmap"]["multiply_adds_m"], 2
    )
    return result


def measure_memory(side: str, name: str, threads: int, device: str) -> int:
    """MiB that one side needs for 64 points on top of the loaded model, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", side, "--model", name, "--threads", str(threads)]
    command += ["--device", device]
    return round(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    )


@torch.inference_mode()
def print_memory(side: str, name: str, device: str) -> None:
    """Child process of `measure_memory`."""
    segmenter, embedding = build_case(name, device)
    decode = {"package": build_package, "gapmap": build_ours}[side](segmenter, embedding)
    points_N2 = torch.rand(BATCH, 2) * segmenter.image_size
    if device == "cpu":
        print(peak_memory(lambda: torch.inference_mode()(decode)(points_N2)))
        return
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    decode(points_N2)
    print((torch.cuda.max_memory_allocated() - before) / 2**20)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["sam-vit-b", "sam-nano"], help="registry names")
    parser.add_argument("--points", nargs="+", type=int, default=[64, 1024], help="points of the image")
    parser.add_argument(
        "--turns", type=int, default=3, help="turns of each number of points; on a CPU one from 1,000 on"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of both sides")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="fp32 on both sides")
    parser.add_argument("--memory-of", choices=["package", "gapmap"], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False  # fp32 on both sides
    keep_freed_memory()
    if arguments.memory_of:
        print_memory(arguments.memory_of, arguments.model[0], arguments.device)
        return
    load_before = os.getloadavg()
    ceilings = measure_machine(arguments.device)
    results = []
    for name in arguments.model:
        memory = {
            f"{side}_peak_mib": measure_memory(side, name, arguments.threads, arguments.device)
            for side in ("package", "gapmap")
        }
        for points in arguments.points:
            turns = arguments.turns if points < 1000 or arguments.device != "cpu" else 1
            result = race(name, points, turns, arguments.device) | memory
            for side in ("package", "gapmap"):
                reached = 2 * result[f"{side}_multiply_adds_m"] / result[f"{side}_ms_a_prompt"]
                result[f"{side}_share_of_gemm"] = round(reached / ceilings["gemm_gflop_s"], 2)
            print(json.dumps(result, indent=2), flush=True)
            results.append(result)
    name = "decoder" if arguments.device == "cpu" else f"decoder-{arguments.device}"
    write_report(
        name, results, load_before, threads=arguments.threads, device=arguments.device, ceilings=ceilings
    )


if __name__ == "__main__":
    main()
