"""Which masks are people's: those that they have answered for, and those that wait for their answer. A machine leaves both alone."""

from __future__ import annotations

JUDGED = "('correct', 'fixed', 'new', 'no object', 'deleted')"
"""Verdicts by which people say something of a mask, as SQL."""
ANSWERED = "SELECT mask_id FROM labels WHERE mask_id IS NOT NULL AND verdict NOT IN ('withdrawn', 'skipped')"
"""SQL of the masks that have an answer, `mask_id`."""
WAITING = """
    SELECT unnest(mask_ids) AS mask_id FROM reviews WHERE (queue, item_key) NOT IN
        (SELECT (queue, item_key) FROM labels WHERE verdict <> 'withdrawn')
"""
"""SQL of the masks that are in a task which nobody has answered, `mask_id`: to mend one would let people answer for a mask that
no longer holds."""

COUNTING = """
    FROM labels WHERE verdict IN ('correct', 'fixed', 'new') AND area > 0 AND coalesce(agreement, 1) > 0
    QUALIFY row_number() OVER (PARTITION BY image_id, coalesce(mask_id, label_id)
                               ORDER BY agreement DESC NULLS LAST, answered_at DESC) = 1
"""
"""SQL of the rows of `labels` whose masks count. Of several answers to one mask it is the one that agrees most with the others, of
equal ones the latest; one that nobody agrees with, as when the others took the mask away, does not."""
SAME_OBJECT = 0.5
"""IoU above which a mask is of an object that people have answered for."""
