"""Every model by name.

Names, addresses, sizes and checksums of the official checkpoints are the publisher's. Importing
this module is cheap: no torch, no packages of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.models import cache

WEIGHTS_DIR = Path(__file__).resolve().parents[2] / "weights"
"""Where the weights that come with gapmap are."""


@dataclass(frozen=True)
class ModelEntry:
    """One model that has a name.

    Attributes:
        name: registry name.
        package: package of the architecture, `segment-anything` or `sam2`.
        kind: `official` (fetched once, into the cache) or `shipped` (in the checkout).
        architecture: what the package calls it; for sam2 a configuration file inside the package.
        url: official address; empty where shipped.
        size_bytes: published size; None where shipped.
        sha256: SHA-256 of the published file, hex; None where shipped. (The digits in SAM's file
            names are the beginning of the MD5, not of this.)
        licence: SPDX name of the licence of the weights.
    """

    name: str
    package: Literal["segment-anything", "sam2"]
    kind: Literal["official", "shipped"]
    architecture: str
    url: str
    size_bytes: int | None
    sha256: str | None
    licence: str = "Apache-2.0"

    @property
    def path(self) -> Path:
        """Where the weights are, or will be once fetched."""
        if self.kind == "shipped":
            return WEIGHTS_DIR / f"{self.name}.safetensors"
        return cache.cache_dir() / "models" / self.url.rpartition("/")[2]


def _sam(size: str, digits: str, size_bytes: int, sha256: str) -> ModelEntry:
    url = f"https://dl.fbaipublicfiles.com/segment_anything/sam_vit_{size}_{digits}.pth"
    return ModelEntry(
        f"sam-vit-{size}", "segment-anything", "official", f"vit_{size}", url, size_bytes, sha256
    )


def _sam2(generation: str, size: str, size_bytes: int, sha256: str) -> ModelEntry:
    released = {"sam2": "072824", "sam2.1": "092824"}[generation]
    short = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}[size]
    return ModelEntry(
        f"{generation}-{size.replace('_', '-')}",
        "sam2",
        "official",
        f"configs/{generation}/{generation}_hiera_{short}.yaml",
        f"https://dl.fbaipublicfiles.com/segment_anything_2/{released}/{generation}_hiera_{size}.pt",
        size_bytes,
        sha256,
    )


_ENTRIES = (
    ModelEntry("sam-nano", "segment-anything", "shipped", "sam-nano", "", None, None),
    ModelEntry("sam2-mini", "sam2", "shipped", "sam2-mini", "", None, None),
    _sam("b", "01ec64", 375042383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    _sam("l", "0b3195", 1249524607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    _sam("h", "4b8939", 2564550879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    _sam2("sam2", "tiny", 155906050, "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125"),
    _sam2("sam2", "small", 184309650, "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3"),
    _sam2("sam2", "base_plus", 323493298, "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071"),
    _sam2("sam2", "large", 897952466, "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b"),
    _sam2("sam2.1", "tiny", 156008466, "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
    _sam2("sam2.1", "small", 184416285, "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
    _sam2(
        "sam2.1", "base_plus", 323606802, "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"
    ),
    _sam2("sam2.1", "large", 898083611, "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}


def entry_of(name: str, sha256: str, source: str) -> ModelEntry | None:
    """The entry that a loaded model is of; None for another version that has the same name."""
    entry = MODELS.get(name)
    if entry and (entry.sha256 == sha256 or source == f"weights/{entry.path.name}"):
        return entry
    return None
