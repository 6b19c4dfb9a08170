"""Arrow schemas of rounds: what was decided of each mask, and how far each round has come."""

from __future__ import annotations

import pyarrow as pa

from schemas.fields import TIME, documented

DECISIONS = pa.schema(
    [
        documented("triage_id", pa.string(), "the triage it was decided in; sorts by time"),
        documented("mask_id", pa.string(), "mask that is decided on"),
        documented("image_id", pa.string(), "image the mask belongs to"),
        documented("model", pa.string(), "model whose masks they are, name@version; hive partition key"),
        documented("decision", pa.string(), "accept, larger model, better prompt or people"),
        documented(
            "p_good", pa.float32(), "probability that the mask is as good as is asked for (good_iou), 0..1"
        ),
        documented("cost", pa.float32(), "what the decision is expected to cost, seconds of a person's time"),
        documented(
            "gain",
            pa.float32(),
            "what it is expected to save against the cheaper of accepting and asking, seconds of a person's time; "
            "0 for those two",
        ),
        documented("decided_at", TIME, "UTC; of the triages of one image and model the newest is seen"),
    ]
)
"""One row a mask that holds and that people have not answered for, whenever it is decided on."""

ROUNDS = pa.schema(
    [
        documented("round_id", pa.string(), "the round; sorts by time"),
        documented(
            "step", pa.string(), "pseudolabel, triage, push, pull, finetune, promote, rescore or report"
        ),
        documented("model", pa.string(), "model the step worked with, name@version; hive partition key"),
        documented("outcome", pa.string(), "done, or skipped with the reason in numbers"),
        documented("numbers", pa.string(), "JSON: what the step came to"),
        documented("began_at", TIME, "when the step began, UTC"),
        documented("ended_at", TIME, "UTC; a step without a row was not finished and is done again"),
    ]
)
"""One row a step that ended."""
