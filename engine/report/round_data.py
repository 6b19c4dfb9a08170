"""What a store says of a round: counts, scores, decisions, answers and seconds, asked in SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.pool.address import last_name, redact
from engine.report.round_scope import RoundScope
from engine.store.people import ANSWERED, JUDGED, WAITING, find_answered

if TYPE_CHECKING:
    from engine.store.snapshot import Snapshot

GROUPS = ("accepted", "people", "answered", "others")
"""Masks that were accepted, that are for people, that people have answered for, and those none of this holds for."""
# Column: (steps to 1, first and last step that is counted; what lies beyond counts there).
_BINNED = {
    "predicted_iou": (20, 0, 19),
    "sam_score": (20, 0, 19),
    "model_gap": (50, -50, 49),
    "prompt_gap": (50, -50, 49),
    "task_gap": (50, -50, 49),
    "map_mean": (20, 0, 19),
}
_IMAGES = """
    SELECT count(*) FILTER (error_kind IS NULL) AS files, count(DISTINCT image_id) FILTER (error_kind IS NULL) AS images,
           count(*) FILTER (error_kind IS NOT NULL) AS errors, min(committed_at) AS first, max(committed_at) AS last
    FROM images WHERE model = $model
"""
_MASKS = """
    SELECT count(*) FILTER (replaced_by IS NULL) AS masks, count(*) FILTER (replaced_by IS NOT NULL) AS replaced,
           count(predicted_iou) FILTER (replaced_by IS NULL) AS scored, count(map_mean) FILTER (replaced_by IS NULL) AS mapped
    FROM masks WHERE model = $model
"""
_PLACES = """
    SELECT regexp_replace(uri, '[^/]*$', '') AS place, count(*) AS files FROM images WHERE model = $model
    GROUP BY place ORDER BY files DESC, place LIMIT 4
"""
_ERRORS = """
    SELECT error_kind AS kind, count(*) AS files, min(uri, 3) AS examples, min(error) AS reason FROM images
    WHERE model = $model AND error_kind IS NOT NULL GROUP BY kind ORDER BY files DESC, kind
"""
# Whoever has answered is not asked any more, whatever was decided before: so does triage count, too.
_SCORES = """
    SELECT CASE WHEN a.mask_id IS NOT NULL THEN 'answered' WHEN d.decision = 'accept' THEN 'accepted'
                WHEN d.decision = 'people' OR w.mask_id IS NOT NULL THEN 'people' ELSE 'others' END AS of, count(*) AS masks, {histograms}
    FROM (FROM masks WHERE model = $model AND replaced_by IS NULL) m
    LEFT JOIN (FROM decisions WHERE model = $model) d USING (mask_id)
    LEFT JOIN (SELECT mask_id FROM ({answered}) UNION SELECT unnest($answered::VARCHAR[])) a USING (mask_id)
    LEFT JOIN (SELECT DISTINCT mask_id FROM ({waiting})) w USING (mask_id)
    GROUP BY of
"""
_SENT = """
    SELECT coalesce(sum(len(mask_ids)), 0)::BIGINT AS sent, coalesce(sum(len(mask_ids)) FILTER ((queue, item_key) NOT IN
        (SELECT (queue, item_key) FROM labels WHERE verdict <> 'withdrawn')), 0)::BIGINT AS waiting
    FROM reviews WHERE state = 'sent'
"""
_DECISIONS = """
    SELECT decision, count(*) AS masks, count(*) / sum(count(*)) OVER () AS share, sum(gain) AS gain, sum(cost) AS cost,
           avg(p_good) AS p_good
    FROM decisions WHERE model = $model AND decided_at >= $began AND decided_at < $until
    GROUP BY decision ORDER BY masks DESC, decision
"""
_DECIDED_SINCE = "SELECT EXISTS (FROM decisions WHERE model = $model AND decided_at >= $until) AS since"
_REPAIRS = """
    SELECT c.repair, count(*) AS tried, count(*) FILTER (c.replaced_by IS NULL) AS held,
           avg(c.predicted_iou - p.predicted_iou) AS change,
           avg(c.predicted_iou - p.predicted_iou) FILTER (c.replaced_by IS NULL) AS change_held
    FROM (FROM masks WHERE model = $model AND repair IS NOT NULL) c
    LEFT JOIN (FROM masks WHERE model = $model) p ON p.mask_id = c.parent_mask_id AND p.image_id = c.image_id
    GROUP BY c.repair ORDER BY tried DESC, c.repair
"""
_VERDICTS = """
    SELECT verdict, count(*) FILTER (pulled_at >= $began) AS masks, count(*) AS so_far, avg(iou) AS iou,
           avg(agreement) AS agreement
    FROM labels WHERE pulled_at < $until GROUP BY verdict ORDER BY so_far DESC, verdict
"""
# A region a row, but the seconds are the whole task's.
_PEOPLE = """
    SELECT count(*) FILTER (pulled_at >= $began) AS answers, sum(seconds) FILTER (pulled_at >= $began) AS seconds,
           coalesce(sum(masks) FILTER (pulled_at >= $began), 0)::BIGINT AS masks,
           count(*) AS answers_so_far, sum(seconds) AS seconds_so_far, coalesce(sum(masks), 0)::BIGINT AS masks_so_far,
           count(DISTINCT annotator) AS annotators
    FROM (SELECT queue, task_id, annotation_id, any_value(annotator) AS annotator, max(seconds) AS seconds,
                 max(pulled_at) AS pulled_at, count(*) FILTER (verdict IN {judged}) AS masks
          FROM labels WHERE pulled_at < $until GROUP BY queue, task_id, annotation_id)
"""
_GATE = """
    SELECT model, previous, action, reason, numbers, decided_at FROM promotions
    WHERE name = $name AND action <> 'restored' AND decided_at >= $began AND decided_at < $until
    ORDER BY decided_at DESC LIMIT 1
"""


@dataclass(frozen=True)
class ScoreHistogram:
    """How many masks have which score.

    Attributes:
        column: of `masks`.
        edges: of the bins, one more than those.
        counts: of each bin, by which of `GROUPS` the masks are in; a group without masks is left out.
    """

    column: str
    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class RoundData:
    """Rows of a round by what they tell; empty where the store has nothing.

    Attributes:
        labelled: `files` that could be used, `images` (contents) among them, `errors`, `first` and `last` commit, `masks`
            that hold, `replaced` ones, how many are `scored` by heads and `mapped`.
        places: `place` (folder or bucket) and `files`, the largest first.
        errors: `kind`, `files`, `examples` (names), `reason`.
        groups: masks in each of `GROUPS`, where there are any.
        scores: histograms, of columns that are not NULL throughout.
        decisions: `decision`, `masks`, `share`, `gain` and `cost` in seconds, `p_good`.
        repairs: `repair`, `tried`, `held`, mean `change` of predicted IoU, and `change_held`.
        verdicts: `verdict`, `masks` of the round, `so_far`, mean `iou`, `agreement`.
        people: `answers`, `seconds`, `masks` of the round, the same `_so_far`, `annotators`; masks that were `sent` to any queue, and
            those of them that are `waiting` for an answer.
        gate: `model`, `previous`, `action`, `reason`, `decided_at`, `images`, `differences`, and those as `rows`, IoU and
            boundary IoU beside each other; None without a verdict.
    """

    scope: RoundScope
    labelled: dict[str, Any]
    places: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    groups: dict[str, int]
    scores: list[ScoreHistogram]
    decisions: list[dict[str, Any]]
    repairs: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    people: dict[str, Any]
    gate: dict[str, Any] | None

    @property
    def accepted(self) -> int:
        """Masks that were accepted."""
        return sum(int(row["masks"]) for row in self.decisions if row["decision"] == "accept")


def read_round(snapshot: Snapshot, scope: RoundScope) -> RoundData:
    """Ask for everything that one query can tell; answers are held against masks in `round_answers`."""
    of_model = {"model": scope.model}
    groups, scores = _read_scores(snapshot, scope.model)
    window = {"began": scope.began, "until": scope.until}
    images, masks = snapshot.rows(_IMAGES, of_model), snapshot.rows(_MASKS, of_model)
    places = snapshot.rows(_PLACES, of_model)
    errors = snapshot.rows(_ERRORS, of_model)
    return RoundData(
        scope=scope,
        labelled=images[0] | masks[0],
        places=[row | {"place": redact(row["place"])} for row in places],
        errors=[
            row | {"examples": [image_name(uri) for uri in row["examples"]], "reason": redact(row["reason"])}
            for row in errors
        ],
        groups=groups,
        scores=scores,
        decisions=_read_decisions(snapshot, scope),
        repairs=snapshot.rows(_REPAIRS, of_model),
        verdicts=snapshot.rows(_VERDICTS, window),
        people=snapshot.rows(_PEOPLE.format(judged=JUDGED), window)[0] | snapshot.rows(_SENT, {})[0],
        gate=_read_gate(snapshot.rows(_GATE, {"name": scope.name, **window})),
    )


def image_name(uri: str) -> str:
    """The name that people know an image by: the last part of its address, without what may be secret."""
    if uri.startswith(("http://", "https://")):
        return last_name(uri)
    return redact(uri.rstrip("/").rpartition("/")[2])


def _read_scores(snapshot: Snapshot, model: str) -> tuple[dict[str, int], list[ScoreHistogram]]:
    """One pass over the masks, however many there are."""
    histograms = ", ".join(
        f"histogram(greatest({low}, least({high}, floor({column} * {steps})))::INT) FILTER ({column} IS NOT NULL) AS {column}"
        for column, (steps, low, high) in _BINNED.items()
    )
    sql = _SCORES.format(histograms=histograms, answered=ANSWERED, waiting=WAITING)
    asked = {"model": model, "answered": sorted(find_answered(snapshot, model))}
    rows = {row["of"]: row for row in snapshot.rows(sql, asked)}
    scores = []
    for column, (steps, low, high) in _BINNED.items():
        found = {of: dict(rows[of][column] or ()) for of in GROUPS if of in rows}
        used = [place for of in found.values() for place in of]
        if not used:
            continue
        if low < 0:  # gaps seldom fill their range
            low, high = min(used), max(used)
        counts = {
            of: tuple(bins.get(place, 0) for place in range(low, high + 1))
            for of, bins in found.items()
            if bins
        }
        edges = tuple(place / steps for place in range(low, high + 2))
        scores.append(ScoreHistogram(column, edges, counts))
    return {of: rows[of]["masks"] for of in GROUPS if of in rows}, scores


def _read_decisions(snapshot: Snapshot, scope: RoundScope) -> list[dict[str, Any]]:
    """As the store shows them, with those that were made while people were answering; once a later round has decided on the same
    masks, as the step wrote its totals down."""
    of_model, step = {"model": scope.model, "until": scope.until}, scope.step("triage")
    if step is None or not snapshot.rows(_DECIDED_SINCE, of_model)[0]["since"]:
        return snapshot.rows(_DECISIONS, {**of_model, "began": scope.began})
    totals = [
        {"decision": name, **of} for name, of in step.numbers.get("decisions", {}).items() if of["masks"]
    ]
    masks = sum(row["masks"] for row in totals)
    shares = [row | {"masks": int(row["masks"]), "share": row["masks"] / masks} for row in totals]
    return sorted(shares, key=lambda row: (-row["masks"], row["decision"]))


def _read_gate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not rows:
        return None
    numbers = json.loads(rows[0]["numbers"] or "{}")
    differences = numbers.get("differences", [])
    beside: dict[tuple[str, int], dict[str, Any]] = {}
    for of in differences:
        row = {"task": of["task"], "points": of["points"], "n": of["n"], "miou": None, "mbiou": None}
        beside.setdefault((of["task"], of["points"]), row)[of["metric"]] = of
    return {
        **rows[0],
        "differences": differences,
        "rows": list(beside.values()),
        "images": numbers.get("images", {}),
    }
