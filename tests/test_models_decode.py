"""Prompting a model: both adapters must say exactly what the packages' own predictors say."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from engine.models.architecture import build_model
from engine.models.sam import SamSegmenter
from engine.models.sam2 import Sam2Segmenter
from engine.models.segmenter import Segmenter, choose_device
from schemas.errors import ConfigError
from schemas.records import Embedding, Prompts

TOLERANCE = 1e-4
SIZES = ((61, 97), (130, 44), (256, 256))  # odd landscape, portrait, square


def small_vit_sam(image_size: int = 256) -> Sam:
    """segment-anything's own classes around a ViT small enough for a test."""
    grid = image_size // 16
    return Sam(
        image_encoder=ImageEncoderViT(
            depth=2,
            embed_dim=64,
            img_size=image_size,
            num_heads=4,
            patch_size=16,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=[1],
            window_size=7,
            out_chans=256,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=256,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=512, num_heads=8),
        ),
    )


def make_lively(model: torch.nn.Module) -> torch.nn.Module:
    """Scale random weights so that prompts matter and logits are far from zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
            elif "hypernetworks" in name:
                weight.mul_(3)
            if "no_mem_embed" in name or "no_mask_embed" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    return model.eval()


def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (9, 9, 3), dtype=np.uint8) for _ in SIZES]
    return [
        np.kron(c, np.ones((h // 9 + 1, w // 9 + 1, 1), np.uint8))[:h, :w]
        for c, (h, w) in zip(coarse, SIZES, strict=True)
    ]


class Case(SimpleNamespace):
    """A segmenter, the package's predictor over the same weights, and their images."""

    segmenter: Segmenter
    predictor: Any
    images: list[np.ndarray]
    current: int | None = None  # the image the predictor has been given
    embedding: Embedding | None = None

    def embed(self) -> Embedding:
        self.embedding = self.embedding or self.segmenter.embed(self.images)
        return self.embedding


def sam_case(model: Sam) -> Case:
    segmenter = SamSegmenter(model, name="small", sha256="ab" * 32, device="cpu")
    return Case(segmenter=segmenter, predictor=SamPredictor(model), images=images())


def sam2_case(name: str, image_size: int | None = None) -> Case:
    torch.manual_seed(0)
    model = make_lively(build_model(name, image_size=image_size))
    predictor = SAM2ImagePredictor(model)
    side = int(model.image_size)  # type: ignore[arg-type]  # the predictor has the sizes for 1024 written down
    predictor._bb_feat_sizes = [(side // 4, side // 4), (side // 8, side // 8), (side // 16, side // 16)]
    segmenter = Sam2Segmenter(model, name=name, sha256="cd" * 32, device="cpu")
    return Case(segmenter=segmenter, predictor=predictor, images=images())


@pytest.fixture(scope="module")
def sam() -> Case:
    torch.manual_seed(0)
    return sam_case(make_lively(small_vit_sam()))


@pytest.fixture(scope="module")
def sam2_mini() -> Case:
    return sam2_case("sam2-mini", image_size=256)


@pytest.fixture(params=["sam", "sam2_mini"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


def random_prompts(kinds: str, n: int, segmenter: Segmenter) -> Prompts:
    """Prompts over all images, back and forth; kinds is some of `point`, `points`, `box`, `mask`."""
    rng = np.random.default_rng(1)
    image_index = np.array([2, 0, 0, 1, 2, 1])[:n]
    scale = np.array([SIZES[i][::-1] for i in image_index], np.float32).reshape(n, 1, 2)
    n_points = 3 if "points" in kinds else 1 if "point" in kinds else 0
    points = labels = boxes = masks = None
    if n_points:
        points = torch.from_numpy((rng.random((n, n_points, 2), np.float32) * scale).astype(np.float32))
        labels = torch.from_numpy(rng.integers(0, 2, (n, n_points)))
        labels[:, 0] = 1
    if "box" in kinds:
        corners = np.sort(rng.random((n, 2, 2), np.float32), axis=1) * scale
        boxes = torch.from_numpy(corners.reshape(n, 4).astype(np.float32))
    if "mask" in kinds:
        side = segmenter.grid_size
        masks = torch.from_numpy(rng.normal(0, 4, (n, 1, side, side)).astype(np.float32))
    return Prompts(torch.from_numpy(image_index), points, labels, boxes, masks)


def predict(case: Case, prompts: Prompts, i: int, multimask: bool) -> tuple[np.ndarray, ...]:
    """What the package says of prompt i: full-size logits, predicted IoU, low-resolution logits."""

    def of(tensor: torch.Tensor | None) -> np.ndarray | None:
        return None if tensor is None else tensor[i].numpy()

    image = int(prompts.image_index_N[i])
    if case.current != image:
        case.predictor.set_image(case.images[image])
        case.current = image
    return case.predictor.predict(
        point_coords=of(prompts.points_NP2),
        point_labels=of(prompts.labels_NP),
        box=of(prompts.boxes_N4),
        mask_input=of(prompts.masks_N1hw),
        multimask_output=multimask,
        return_logits=True,
    )


def assert_says_the_same(case: Case, prompts: Prompts, multimask: bool) -> None:
    segmenter = case.segmenter
    embedding = case.embed()
    decoded = segmenter.decode(embedding, prompts, multimask=multimask)
    n, side = len(prompts.image_index_N), segmenter.grid_size
    assert decoded.logits_NMhw.shape == (n, 3 if multimask else 1, side, side)
    assert decoded.logits_NMhw.std() > 0.5, "a test on logits that are all alike shows nothing"
    for i in range(n):
        full, iou, low = predict(case, prompts, i, multimask)
        ours = decoded.logits_NMhw[i]
        if segmenter.package == "sam2":
            ours = ours.clamp(-32, 32)  # the package clamps what it returns, we do not
        assert np.abs(ours.numpy() - low).max() <= TOLERANCE
        assert np.abs(decoded.iou_NM[i].numpy() - iou).max() <= TOLERANCE
        size = embedding.image_sizes[int(prompts.image_index_N[i])]
        upscaled = segmenter.upscale(decoded.logits_NMhw[i], size)
        assert upscaled.shape[1:] == size
        assert np.abs(upscaled.numpy() - full).max() <= TOLERANCE


@pytest.mark.parametrize("multimask", [True, False], ids=["three masks", "one mask"])
@pytest.mark.parametrize("kinds", ["point", "points", "box", "points box", "point mask", "box mask", "mask"])
def test_prompts_over_several_images_give_the_predictors_masks(
    case: Case, kinds: str, multimask: bool
) -> None:
    assert_says_the_same(case, random_prompts(kinds, 4, case.segmenter), multimask)


def test_prompts_without_a_promising_output_are_left_out_before_they_are_drawn(case: Case) -> None:
    embedding, prompts = case.embed(), random_prompts("point", 6, case.segmenter)
    everything = case.segmenter.decode(embedding, prompts)
    best_N = everything.iou_NM.amax(1)
    for cut in (best_N.median().item(), best_N.max().item() + 1):
        promising = case.segmenter.decode(embedding, prompts, min_iou=cut)
        expected_N = (best_N > cut).nonzero()[:, 0]
        assert torch.equal(promising.prompt_N, expected_N)
        for name in ("logits_NMhw", "iou_NM", "iou_token_NC", "mask_tokens_N4C"):
            ours, theirs = getattr(promising, name), getattr(everything, name)[expected_N]
            assert ours.shape == theirs.shape
            assert torch.allclose(ours, theirs, atol=TOLERANCE)
    assert torch.equal(everything.prompt_N, torch.arange(6))


def test_points_of_one_image_give_the_predictors_masks(case: Case) -> None:
    case = Case(**{**vars(case), "images": case.images[:1], "current": None, "embedding": None})
    prompts = random_prompts("points", 3, case.segmenter)
    here = Prompts(torch.zeros(3, dtype=torch.int64), prompts.points_NP2, prompts.labels_NP)
    assert_says_the_same(case, here, True)


def test_padding_points_change_nothing(sam2_mini: Case, sam: Case) -> None:
    """One prompt with fewer points than its neighbours is padded with label -1.

    SAM itself appends one padding point, and attention counts each; so two paddings are not one,
    and what must hold is that the padding point's place does not matter.
    """
    for case in (sam, sam2_mini):
        embedding = case.embed()
        prompts = random_prompts("points", 3, case.segmenter)
        assert prompts.points_NP2 is not None
        labels = torch.tensor([[1, 0, -1]]).expand(3, 3)
        moved = prompts.points_NP2.clone()
        moved[:, 2] = 5.0
        a = case.segmenter.decode(embedding, Prompts(prompts.image_index_N, prompts.points_NP2, labels))
        b = case.segmenter.decode(embedding, Prompts(prompts.image_index_N, moved, labels))
        assert torch.equal(a.logits_NMhw, b.logits_NMhw)


def test_an_unstable_single_mask_falls_back_as_in_the_package(sam2_mini: Case) -> None:
    decoder = sam2_mini.predictor.model.sam_mask_decoder
    prompts = random_prompts("point", 6, sam2_mini.segmenter)
    embedding = sam2_mini.embed()
    plain = sam2_mini.segmenter.decode(embedding, prompts, multimask=False).logits_NMhw
    scores = decoder._get_stability_scores(plain)
    decoder.dynamic_multimask_via_stability = True
    decoder.dynamic_multimask_stability_thresh = float(scores.median())
    try:
        assert_says_the_same(sam2_mini, prompts, False)
        changed = sam2_mini.segmenter.decode(embedding, prompts, multimask=False).logits_NMhw
    finally:
        decoder.dynamic_multimask_via_stability = False
    falls_back = scores.flatten() < scores.median()
    assert 0 < falls_back.sum() < 6
    assert torch.equal(falls_back, (changed - plain).flatten(1).abs().amax(1) > 0.1)


def test_tokens_are_those_the_package_predicts_from(case: Case) -> None:
    """Hooks on the package's own heads see the tokens that `decode` hands out."""
    model = case.predictor.model
    decoder = model.mask_decoder if isinstance(model, Sam) else model.sam_mask_decoder
    prompts = random_prompts("points", 2, case.segmenter)
    decoded = case.segmenter.decode(case.embed(), prompts)
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, _module: Any, inputs: tuple[torch.Tensor], _output: Any) -> None:
        seen[name] = inputs[0].detach().clone()

    heads = {"iou": decoder.iou_prediction_head}
    heads |= {f"mask{i}": mlp for i, mlp in enumerate(decoder.output_hypernetworks_mlps)}
    handles = [head.register_forward_hook(partial(keep, name)) for name, head in heads.items()]
    try:
        for i in range(2):
            predict(case, prompts, i, True)
            assert torch.allclose(decoded.iou_token_NC[i], seen["iou"][0], atol=TOLERANCE)
            for token in range(4):
                ours = decoded.mask_tokens_N4C[i, token]
                assert torch.allclose(ours, seen[f"mask{token}"][0], atol=TOLERANCE)
    finally:
        for handle in handles:
            handle.remove()
    assert decoded.mask_tokens_N4C.shape == (2, 4, 256)


def test_the_object_score_token_is_not_taken_for_the_iou_token() -> None:
    """Official SAM 2 models put one more token first; small sizes of our own do not."""
    case = sam2_case("sam2.1-tiny", image_size=256)
    assert case.predictor.model.sam_mask_decoder.pred_obj_scores
    test_tokens_are_those_the_package_predicts_from(case)


@pytest.mark.parametrize("size", SIZES)
def test_the_mask_extent_says_where_a_cell_lies_in_the_image(case: Case, size: tuple[int, int]) -> None:
    """A ramp on the grid, enlarged, must read off each pixel's own grid coordinate."""
    side = case.segmenter.grid_size
    rows, columns = case.segmenter.mask_extent(size)
    ramp = torch.arange(side) + 0.5
    up = case.segmenter.upscale(torch.stack([ramp.expand(side, side).T, ramp.expand(side, side)]), size)
    y = (torch.arange(size[0]) + 0.5) * rows / size[0]
    x = (torch.arange(size[1]) + 0.5) * columns / size[1]
    inner = slice(8, -8)  # edges are extrapolated
    assert (up[0, :, 0] - y)[inner].abs().max() < 0.05
    assert (up[1, 0, :] - x)[inner].abs().max() < 0.05


def test_a_model_is_named_by_its_weights(sam: Case) -> None:
    assert sam.segmenter.model_id == "small@" + "ab" * 6
    assert sam.segmenter.parameters == sum(p.numel() for p in sam.predictor.model.parameters())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"points_NP2": None}, "come together"),
        ({"points_NP2": None, "labels_NP": None}, "needs points, a box or a mask"),
        ({"points_NP2": torch.zeros(2, 1, 2)}, "points_NP2"),
        ({"labels_NP": torch.tensor([[1], [0], [2]])}, "labels_NP must be 1"),
        ({"boxes_N4": torch.zeros(3, 5)}, "boxes_N4"),
        ({"masks_N1hw": torch.zeros(3, 1, 8, 8)}, "masks_N1hw"),
        ({"image_index_N": torch.tensor([0, 1, 3])}, r"within 0\.\.2"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(sam: Case, change: dict[str, Any], says: str) -> None:
    prompts = random_prompts("point", 3, sam.segmenter)
    embedding = sam.embed()
    with pytest.raises(ValueError, match=says):
        sam.segmenter.decode(embedding, Prompts(**{**vars(prompts), **change}))


def test_a_single_mask_is_not_left_out_by_what_the_others_promise(sam2_mini: Case) -> None:
    prompts = random_prompts("point", 2, sam2_mini.segmenter)
    with pytest.raises(ValueError, match="min_iou goes with multimask"):
        sam2_mini.segmenter.decode(sam2_mini.embed(), prompts, multimask=False, min_iou=0.5)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_an_array_that_is_no_image_is_refused(case: Case, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 HW3"):
        case.segmenter.embed([image])
    with pytest.raises(ValueError, match="at least one"):
        case.segmenter.embed([])


def test_no_prompts_give_no_masks(case: Case) -> None:
    decoded = case.segmenter.decode(case.embed(), random_prompts("point", 0, case.segmenter))
    assert decoded.logits_NMhw.shape == (0, 3, case.segmenter.grid_size, case.segmenter.grid_size)


def test_a_device_that_is_not_there_is_a_setting_to_mend() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="not a device"):
        choose_device("gpu")
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(ConfigError, match=f"no {missing}"):
        choose_device(missing)
    with pytest.raises(ConfigError, match="bf16 needs a CUDA device"):
        SamSegmenter(small_vit_sam(64), name="x", sha256="0" * 64, device="cpu", precision="bf16")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam-vit-b", "sam2-tiny", "sam2.1-tiny"])
def test_official_configurations_give_the_predictors_masks(name: str) -> None:
    if name == "sam-vit-b":
        torch.manual_seed(0)
        case = sam_case(make_lively(build_model(name)))
    else:
        case = sam2_case(name)
    case.images = case.images[:1]
    prompts = random_prompts("points box", 2, case.segmenter)
    here = Prompts(**{**vars(prompts), "image_index_N": torch.zeros(2, dtype=torch.int64)})
    for multimask in (True, False):
        assert_says_the_same(case, here, multimask)
