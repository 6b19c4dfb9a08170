"""Arrow schemas of what people are asked and what they answer."""

from __future__ import annotations

import pyarrow as pa

from schemas.fields import TIME, documented

REVIEWS = pa.schema(
    [
        documented("queue", pa.string(), "where people answer: its kind, address and project"),
        documented(
            "item_key", pa.string(), "one task of the queue, 32 hex digits; the same masks give the same"
        ),
        documented(
            "task_id", pa.string(), "the queue's own name of the task; NULL until it is there", nullable=True
        ),
        documented(
            "state",
            pa.string(),
            "planned = to be sent, sent, or closed = not asked any more, because the store has none of its masks any more",
        ),
        documented("image_id", pa.string(), "image that is asked about"),
        documented("model", pa.string(), "model that made the masks, name@version; hive partition key"),
        documented("mask_ids", pa.list_(pa.string()), "masks that the task shows now; none if it is closed"),
        documented(
            "chosen_by",
            pa.list_(pa.string()),
            "of each of them, the strategy that chose it; random = drawn from the accepted ones, each as likely; random of all "
            "= so drawn where nothing was triaged; random strategy = drawn from those that are for people",
            nullable=True,
        ),
        documented(
            "uncertainty",
            pa.float32(),
            "of the most uncertain of them, 0..1",
        ),
        documented(
            "priority",
            pa.float32(),
            "0..1: tasks are answered in its descending order; of those drawn at random it says nothing about the mask. NULL: the uncertainty",
            nullable=True,
        ),
        documented("width", pa.int32(), "of the image, pixels"),
        documented("height", pa.int32(), "of the image, pixels"),
        documented("written_at", TIME, "UTC; of the rows of one item of a queue the newest is seen"),
    ]
)
"""One row whenever an item is planned, sent or changed. A plan is written before anything is sent, so that a push
that was killed is gone on with and sends nothing twice."""

LABELS = pa.schema(
    [
        documented(
            "label_id",
            pa.string(),
            "hash of what was answered, then of queue, task, annotation, region and time of the answer: 16 hex digits each",
        ),
        documented("queue", pa.string(), "where it was answered"),
        documented("item_key", pa.string(), "task that was answered"),
        documented("task_id", pa.string(), "the queue's own name of the task"),
        documented(
            "annotation_id", pa.string(), "the queue's own name of the answer; one annotator, one task"
        ),
        documented("annotator", pa.string(), "who answered, as the queue calls them", nullable=True),
        documented("image_id", pa.string(), "image that was asked about"),
        documented("model", pa.string(), "model that made the masks shown, name@version; hive partition key"),
        documented("mask_id", pa.string(), "mask that was shown; NULL for a new one", nullable=True),
        documented("region", pa.string(), "the queue's name of the region; empty for an answer without any"),
        documented(
            "verdict",
            pa.string(),
            "correct = left as it was, fixed = changed, new = drawn by the annotator, no object, deleted = taken away, "
            "skipped, withdrawn = the answer was deleted later, unreadable (see comment), nothing = an empty answer",
        ),
        documented(
            "said", pa.string(), "what the annotator chose as verdict; NULL for nothing", nullable=True
        ),
        documented(
            "task",
            pa.string(),
            "what the mask is: salient, entity or part; NULL where nobody said",
            nullable=True,
        ),
        documented(
            "rle",
            pa.string(),
            "COCO compressed run lengths of the mask that holds now; NULL for none",
            nullable=True,
        ),
        documented("height", pa.int32(), "height of the image the RLE is for, pixels"),
        documented("width", pa.int32(), "width of the image the RLE is for, pixels"),
        documented("area", pa.int64(), "pixels in the mask; NULL for none", nullable=True),
        documented(
            "iou",
            pa.float32(),
            "IoU of the mask shown with the answer, 0..1; NULL where one is missing",
            nullable=True,
        ),
        documented(
            "agreement",
            pa.float32(),
            "mean IoU with what the others drew for the same mask, 0..1 (none counts as 0); NULL with one annotator",
            nullable=True,
        ),
        documented(
            "seconds",
            pa.float32(),
            "time spent on the whole task, s; NULL where the queue does not tell",
            nullable=True,
        ),
        documented(
            "comment", pa.string(), "what the annotator wrote, or why it is unreadable", nullable=True
        ),
        documented("answered_at", TIME, "when the answer was last changed, UTC"),
        documented(
            "task_changed_at", TIME, "when the task was last changed, UTC: a pull goes on from the latest"
        ),
        documented("pulled_at", TIME, "UTC; of the pulls of one answer the newest is seen"),
    ]
)
"""One row a region of an answer. An answer that was changed comes again, whole."""
