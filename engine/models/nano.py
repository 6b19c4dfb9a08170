"""Small configurations of both packages' models: `sam-nano` and `sam2-mini`.

Both are the packages' own classes (prompt encoder, two-way transformer, mask decoder; for SAM 2 also
the image encoder with its FPN neck) around one convolutional trunk. Dense 3 x 3 convolutions learn
locality from little data and are what a CPU does fastest. The two share widths, so that sam2-mini can
start where sam-nano ended.
"""

from __future__ import annotations

import itertools

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn
from torch.nn import functional as F

PROMPT_WIDTH = 256
_WIDTHS = (32, 64, 160, 224)
_STRIDE = 16


class _Residual(nn.Module):
    """Two 3 x 3 convolutions around a skip. The last norm starts at zero: a new block changes nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.norm1(self.conv1(x)))
        return F.gelu(x + self.norm2(self.conv2(y)))


class ConvTrunk(nn.Module):
    """Image B3HW -> four feature maps at strides 4, 8, 16 and 32, finest first (the trunk of a sam2 ImageEncoder).

    Attributes:
        channel_list: widths, coarsest first, as sam2's FpnNeck wants them.
    """

    def __init__(self, depths: tuple[int, int, int, int]) -> None:
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
            nn.Sequential(*(_Residual(width) for _ in range(depth)))
            for width, depth in zip(_WIDTHS, depths, strict=True)
        )

    def forward(self, image_B3HW: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(image_B3HW)
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.downs[index - 1](x))
            features.append(x)
        return features


class ConvEncoder(nn.Module):
    """The trunk and a neck to one stride-16 embedding: the image encoder behind segment-anything's decoder.

    The neck sums projections of three scales; the finer one is folded in whole (space to depth), because
    small objects are a fraction of one stride-16 cell.
    """

    def __init__(self, image_size: int, depths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.img_size = image_size
        self.trunk = ConvTrunk(depths)
        self.fine = nn.Conv2d(_WIDTHS[1], PROMPT_WIDTH, 2, stride=2)
        self.middle = nn.Conv2d(_WIDTHS[2], PROMPT_WIDTH, 1)
        self.coarse = nn.Conv2d(_WIDTHS[3], PROMPT_WIDTH, 1)
        self.norm = nn.GroupNorm(8, PROMPT_WIDTH)
        self.mix = nn.Conv2d(PROMPT_WIDTH, PROMPT_WIDTH, 3, padding=1)

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        _, fine, middle, coarse = self.trunk(image_B3HW)
        coarse = F.interpolate(self.coarse(coarse), size=middle.shape[-2:], mode="bilinear")
        return self.mix(F.gelu(self.norm(self.fine(fine) + self.middle(middle) + coarse)))


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
    return Sam(
        image_encoder=ConvEncoder(image_size, (1, 2, 4, 2)), prompt_encoder=prompts, mask_decoder=decoder
    )


def build_sam2_mini(image_size: int = 512) -> nn.Module:
    """sam2's `SAM2Base` for still images (no memory), high-resolution features on; random weights.

    Args:
        image_size: side of the square input, a multiple of 32; masks come at a quarter of it.
    """
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam2_base import SAM2Base

    trunk = ConvTrunk((2, 3, 6, 2))
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(num_pos_feats=PROMPT_WIDTH),
        d_model=PROMPT_WIDTH,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    return SAM2Base(
        image_encoder=ImageEncoder(trunk=trunk, neck=neck, scalp=1),
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
