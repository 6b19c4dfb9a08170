"""The gate: may a new version of a model take the place of the present one?

Both answer the interactive protocol on human masks that neither learnt from. The new one passes if no task loses more
than half a point of IoU, none loses for certain (its interval lies below zero), and the mean gains. Of a single group of
images there is no interval, so that only the half point counts: the verdict says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from engine.evaluate.bootstrap import ALL_TASKS, Difference, paired_bootstrap
from engine.evaluate.interactive import evaluate_interactive
from engine.learn.data import LabelledImage
from engine.models.segmenter import Segmenter

MOST_LOSS = 0.005
"""IoU that a task may lose at most: half a point."""
POINTS = (1, 3, 5)


@dataclass(frozen=True)
class Verdict:
    """Whether a model passes, why, and the differences to the present one (new - present).

    Attributes:
        passed: whether it may take the present one's place.
        reason: why, and judged on how much, in a sentence.
        differences: mean IoU and boundary IoU by task and over all, for each number of clicks.
    """

    passed: bool
    reason: str
    differences: list[Difference]

    @property
    def numbers(self) -> list[dict[str, object]]:
        """The differences as plain values."""
        return [asdict(difference) for difference in self.differences]


def compare_models(
    new: Segmenter,
    present: Segmenter,
    sets: Mapping[str, Sequence[LabelledImage]],
    progress: Callable[[str, int, int], None] | None = None,
) -> Verdict:
    """Let both models answer for the same masks, and decide.

    Args:
        new, present: versions of a model.
        sets: human masks that neither learnt from, by name of the set.
        progress: called with (which model, images done, images in all).
    """
    answers = []
    for segmenter in (new, present):
        tell = None
        if progress:

            def tell(done: int, total: int, model: str = segmenter.model_id) -> None:
                progress(model, done, total)

        answers.append(evaluate_interactive(segmenter, sets, POINTS, progress=tell))
    return decide(paired_bootstrap(*answers))


def decide(differences: list[Difference]) -> Verdict:
    """The verdict that follows from differences of `paired_bootstrap`."""
    of_iou = [difference for difference in differences if difference.metric == "miou"]
    tasks = [difference for difference in of_iou if difference.task != ALL_TASKS]
    overall = [difference for difference in of_iou if difference.task == ALL_TASKS]
    lost = [d for d in tasks if d.mean < -MOST_LOSS or (d.high is not None and d.high < 0)]
    gain = sum(d.mean for d in overall) / len(overall)
    if lost:
        worst = min(lost, key=lambda d: d.mean)
        interval = (
            ""
            if worst.low is None or worst.high is None
            else f" ({100 * worst.low:+.1f} … {100 * worst.high:+.1f})"
        )
        reason = (
            f"{worst.task} loses {-100 * worst.mean:.1f} points of IoU at {worst.points} clicks{interval}"
        )
    elif gain <= 0:
        reason = f"the mean over all masks does not gain ({100 * gain:+.1f} points of IoU)"
    else:
        reason = f"no task loses more than {100 * MOST_LOSS:.1f} points, and the mean gains {100 * gain:.1f}"
    return Verdict(not lost and gain > 0, f"{reason}; {_tell_amount(overall[0], tasks)}", differences)


def _tell_amount(overall: Difference, tasks: Sequence[Difference]) -> str:
    """On how much was judged, and for which tasks that is too little to tell a loss from luck."""
    masks, groups = (
        f"{n} {of}{'s' * (n != 1)}" for n, of in ((overall.n, "mask"), (overall.groups, "group"))
    )
    amount = f"judged on {masks} in {groups} of images"
    if alone := dict.fromkeys(d.task for d in tasks if d.groups < 2):
        amount += (
            f". For {', '.join(alone)} one group gives no interval, so what is lost or gained may be luck: judge on more "
            "labelled images (--data)"
        )
    return amount
