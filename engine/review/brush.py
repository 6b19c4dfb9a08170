"""Label Studio's run lengths of a brush mask, byte for byte as its SDK writes them, vectorised.

The format is that of the package rle-pack (thi.ng/umbrella), over the RGBA picture of the mask: a count of values (32 bits), the
size of a value less one (5 bits), four sizes of run lengths less one (4 bits each), then tokens: a bit that says run or
literals, which of the four sizes (2 bits), length less one, and one value or as many as the length says.

Shape suffixes: H W image, B bits, K tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CHANNELS = 4
_SIZES = (3, 4, 8, 16)
_LONGEST = 2**16
_HEAD_BITS = 32 + 5 + 4 * len(_SIZES)


def encode_brush(mask_HW: np.ndarray) -> list[int]:
    """Bytes of a mask, equal to `label_studio_sdk.converter.brush.mask2rle(255 * mask)`.

    Args:
        mask_HW: bool.
    """
    flat_X = np.ascontiguousarray(mask_HW).ravel()
    ends_K = np.append(np.flatnonzero(flat_X[1:] != flat_X[:-1]), len(flat_X) - 1) + 1
    lengths_K = np.diff(ends_K, prepend=0) * _CHANNELS
    values_K = flat_X[ends_K - 1].astype(np.int64) * 255
    # A run that is too long is cut into pieces, the last one at most as long as the others.
    pieces_K = (lengths_K - 1) // _LONGEST + 1
    last_K = lengths_K - (pieces_K - 1) * _LONGEST
    values_K = np.repeat(values_K, pieces_K)
    lengths = np.full(len(values_K), _LONGEST)
    lengths[np.cumsum(pieces_K) - 1] = last_K
    which_K = np.repeat(np.searchsorted([2**size for size in _SIZES[:-1]], lengths_K), pieces_K)
    size_K = np.array(_SIZES)[which_K]
    tokens_K = ((4 | which_K) << size_K | lengths - 1) << 8 | values_K
    bits_K = 3 + size_K + 8
    head = flat_X.size * _CHANNELS
    for width, value in ((5, 7), *((4, size - 1) for size in _SIZES)):
        head = head << width | value
    head_B = np.array([head >> place & 1 for place in reversed(range(_HEAD_BITS))], np.uint8)
    starts_K = np.cumsum(bits_K) - bits_K
    shift_B = np.repeat(bits_K + starts_K, bits_K) - 1 - np.arange(bits_K.sum())
    tokens_B = (np.repeat(tokens_K, bits_K) >> shift_B & 1).astype(np.uint8)
    total_B = np.concatenate([head_B, tokens_B])
    # The SDK fills up to the next byte, and adds a whole one where there is nothing to fill.
    return np.packbits(np.append(total_B, np.zeros(8 - len(total_B) % 8, np.uint8))).tolist()


def decode_brush(rle: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Opacity of a brush mask, alpha_HW, 0..255; after a person's stroke its edge has many levels (128 is half).

    Args:
        rle: bytes, as Label Studio gives them.
        size: (height, width) of the image.

    Raises:
        ValueError: the bytes are no such picture, or one of another size.
    """
    try:
        bytes_X = np.array(rle, np.uint8)
    except (ValueError, TypeError, OverflowError):
        raise ValueError("These are no bytes.") from None
    bits = 8 * len(bytes_X)
    if bytes_X.ndim != 1 or bits < _HEAD_BITS:
        raise ValueError("These bytes are too few for a brush mask.")
    # The 32 bits that begin at each bit: whatever a token says is read from one number.
    padded_X = np.concatenate([bytes_X, np.zeros(8, np.uint8)]).astype(np.uint64)
    five_X = sum(padded_X[place : place + len(bytes_X)] << np.uint64(8 * (4 - place)) for place in range(5))
    windows_B = (five_X[:, None] >> np.arange(8, 0, -1, dtype=np.uint64) & np.uint64(2**32 - 1)).ravel()  # type: ignore[index]
    count = int(windows_B[0])
    head = int(windows_B[32]) >> 11
    if head >> 16 != 7:
        raise ValueError("These bytes are no brush mask: its values have not eight bits.")
    if count != size[0] * size[1] * _CHANNELS:
        raise ValueError(f"This brush mask is of another size than {size[0]} x {size[1]} pixels.")
    sizes = [(head >> place & 15) + 1 for place in (12, 8, 4, 0)]
    out_X = np.empty(count, np.uint8)
    windows = windows_B.tolist()
    place, at = _HEAD_BITS, 0
    while at < count:
        if place + 3 > bits:
            raise ValueError("This brush mask ends too early.")
        window = windows[place]
        bits_of_length = sizes[window >> 29 & 3]
        length = (window >> (29 - bits_of_length) & ((1 << bits_of_length) - 1)) + 1
        data = place + 3 + bits_of_length
        place = data + 8 * (1 if window >> 31 else length)
        if at + length > count or place > bits:
            raise ValueError("This brush mask ends too early.")
        if window >> 31:
            out_X[at : at + length] = windows[data] >> 24
        else:
            out_X[at : at + length] = windows_B[data:place:8] >> np.uint64(24)
        at += length
    return out_X.reshape(*size, _CHANNELS)[..., 3]
