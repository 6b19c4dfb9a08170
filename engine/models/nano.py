"""Small configurations of both packages' models: `sam-nano` and `sam2-mini`.

Both are the packages' own classes (prompt encoder, two-way transformer, mask decoder; for SAM 2 also its
image encoder) around one convolutional trunk and neck. Dense 3 x 3 convolutions learn locality from
little data and are what a CPU does fastest. The two share widths, and what sam2-mini has more starts as
no change, so that it begins as good as sam-nano ended.
"""

from __future__ import annotations

import itertools

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn
from torch.nn import functional as F

PROMPT_WIDTH = 256
_WIDTHS = (32, 64, 160, 224)
_DEPTHS = (1, 2, 4, 2)
_STRIDE = 16


class _Residual(nn.Module):
    """Two 3 x 3 convolutions around a skip. The last norm starts at zero; without the final activation a new
    block changes nothing, so that it can be added to a trained trunk."""

    def __init__(self, width: int, *, activate: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, width)
        self.activate = activate
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x)))))
        return F.gelu(y) if self.activate else y


class ConvTrunk(nn.Module):
    """Image B3HW -> four feature maps at strides 4, 8, 16 and 32, finest first.

    Args:
        deeper: blocks that each stage has more than sam-nano's.

    Attributes:
        channel_list: widths, coarsest first, as sam2's `ImageEncoder` wants them.
    """

    def __init__(self, deeper: tuple[int, int, int, int] = (0, 0, 0, 0)) -> None:
        super().__init__()
        self.channel_list = list(reversed(_WIDTHS))
        self.stem = nn.Sequential(
            nn.Conv2d(3, _WIDTHS[0], 4, stride=4), nn.GroupNorm(8, _WIDTHS[0]), nn.GELU()
        )
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 2, stride=2), nn.GroupNorm(8, b))
            for a, b in itertools.pairwise(_WIDTHS)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Residual(width, activate=block < depth) for block in range(depth + more)))
            for width, depth, more in zip(_WIDTHS, _DEPTHS, deeper, strict=True)
        )

    def forward(self, image_B3HW: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(image_B3HW)
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.downs[index - 1](x))
            features.append(x)
        return features


class ConvNeck(nn.Module):
    """Four feature maps -> one embedding at stride 16, of the decoder's width.

    It sums projections of three scales. The finer one is folded in whole (space to depth), because small
    objects are a fraction of one stride-16 cell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(_WIDTHS[1], PROMPT_WIDTH, 2, stride=2)
        self.middle = nn.Conv2d(_WIDTHS[2], PROMPT_WIDTH, 1)
        self.coarse = nn.Conv2d(_WIDTHS[3], PROMPT_WIDTH, 1)
        self.norm = nn.GroupNorm(8, PROMPT_WIDTH)
        self.mix = nn.Conv2d(PROMPT_WIDTH, PROMPT_WIDTH, 3, padding=1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        _, fine, middle, coarse = features
        coarse = F.interpolate(self.coarse(coarse), size=middle.shape[-2:], mode="bilinear")
        return self.mix(F.gelu(self.norm(self.fine(fine) + self.middle(middle) + coarse)))


class ConvEncoder(nn.Module):
    """Trunk and neck: the image encoder behind segment-anything's decoder. Image B3HW -> embedding BChw."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.img_size = image_size
        self.trunk = ConvTrunk()
        self.neck = ConvNeck()

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        return self.neck(self.trunk(image_B3HW))


class HighResNeck(ConvNeck):
    """The same with the stride-4 and stride-8 maps beside it: a neck for sam2's `ImageEncoder`.

    Returns:
        Feature maps at strides 4, 8 and 16, all of the decoder's width, and a positional encoding for
        each, which sam2 carries along for its memory and still images do not use.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone_channel_list = list(reversed(_WIDTHS))
        self.d_model = PROMPT_WIDTH
        self.stride_4 = nn.Conv2d(_WIDTHS[0], PROMPT_WIDTH, 1)
        self.stride_8 = nn.Conv2d(_WIDTHS[1], PROMPT_WIDTH, 1)

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:  # type: ignore[override]
        maps = [self.stride_4(features[0]), self.stride_8(features[1]), super().forward(features)]
        return maps, [torch.zeros_like(feature) for feature in maps]


def build_sam_nano(image_size: int = 384) -> Sam:
    """segment-anything's `Sam` with a small convolutional encoder; random weights.

    Args:
        image_size: side of the square input, a multiple of 32; masks come at a quarter of it.
    """
    grid = image_size // _STRIDE
    decoder = MaskDecoder(
        transformer_dim=PROMPT_WIDTH,
        transformer=TwoWayTransformer(depth=2, embedding_dim=PROMPT_WIDTH, num_heads=8, mlp_dim=1024),
    )
    prompts = PromptEncoder(
        embed_dim=PROMPT_WIDTH,
        image_embedding_size=(grid, grid),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )
    return Sam(image_encoder=ConvEncoder(image_size), prompt_encoder=prompts, mask_decoder=decoder)


def build_sam2_mini(image_size: int = 512) -> nn.Module:
    """sam2's `SAM2Base` for still images (no memory), high-resolution features on; random weights.

    Args:
        image_size: side of the square input, a multiple of 32; masks come at a quarter of it.
    """
    from sam2.modeling.backbones.image_encoder import ImageEncoder
    from sam2.modeling.sam2_base import SAM2Base

    model = SAM2Base(
        image_encoder=ImageEncoder(trunk=ConvTrunk((1, 1, 2, 0)), neck=HighResNeck()),
        memory_attention=nn.Identity(),
        memory_encoder=nn.Identity(),
        num_maskmem=0,
        image_size=image_size,
        backbone_stride=_STRIDE,
        use_high_res_features_in_sam=True,
        directly_add_no_mem_embed=True,
        multimask_output_in_sam=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        pred_obj_scores=False,
    )
    # High-resolution features come in gently: at first the decoder is SAM's.
    for projection in (model.sam_mask_decoder.conv_s0, model.sam_mask_decoder.conv_s1):
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    return model
