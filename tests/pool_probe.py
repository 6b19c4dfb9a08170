"""Reads the files named on the command line under a memory limit; prints one JSON line for each.

Run as a process of its own, because a hostile file may take the process with it.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from engine.pool import list_pool, read_image
from schemas.errors import ImageError
from schemas.settings import PoolSettings

ADDRESS_SPACE_BYTES = 3 << 30


def main(settings_json: str, paths: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    settings = PoolSettings.model_validate_json(settings_json)
    for path in paths:
        (item,) = list_pool(path, settings)
        print(json.dumps({"name": Path(path).name, **outcome(item, settings)}), flush=True)


def outcome(item, settings) -> dict[str, object]:
    try:
        image = read_image(item, settings)
    except ImageError as error:
        return {"kind": error.kind, "error": str(error)}
    height, width, channels = image.pixels.shape
    assert channels == 3
    assert image.pixels.dtype == "uint8"
    assert image.pixels.flags.writeable
    assert image.pixels.flags.c_contiguous
    low, high = int(image.pixels.min()), int(image.pixels.max())
    return {"mode": image.mode, "width": width, "height": height, "low": low, "high": high}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
