"""One evaluation of a model's scores from labelled images to tables: who is asked what, and on which groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from engine.evaluate.automatic_masks import judge_automatic
from engine.evaluate.monte_carlo import monte_carlo_entropies
from engine.evaluate.uncertainty import INPUTS, ablate_inputs, evaluate_uncertainty
from engine.learn.data import LabelledImage, leave_out_groups
from engine.learn.gap_targets import TargetMaker
from engine.learn.head_fitting import LEAST_GROUPS, fit_heads
from engine.learn.perceptron import FitSettings
from engine.learn.splits import keep_out_everywhere, split_groups
from engine.learn.token_store import Samples, collect_tokens
from engine.models.segmenter import Segmenter
from engine.store import Store
from engine.uncertainty.heads import HeadSet
from schemas.errors import ConfigError

Step = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Shows a step of the work by name; what it gives is told (done, in all)."""

Sets = Mapping[str, Sequence[LabelledImage]]


@dataclass(frozen=True)
class UncertaintyRun:
    """What is to be evaluated, and how thoroughly.

    Attributes:
        segmenter, larger: the model, and the one that uncertain work goes to.
        heads: that are judged; None fits them to the data, each seed anew, and judges on its kept-out groups.
        fitted: digests of the images the heads were fitted to; their groups are left out.
        store: keeps tokens and true IoU.
        seeds: rounds that the mean and the spread are of.
        objects: of an image, at most.
        baselines: also the Monte-Carlo entropies.
        ablation: also heads that see only some of their inputs, where the data has groups enough to fit them.
        automatic: so many prompts of an image at most whose automatic masks are judged, too; 0 for none.
    """

    segmenter: Segmenter
    larger: Segmenter | None
    heads: HeadSet | None
    fitted: frozenset[str]
    store: Store
    seeds: int = 5
    objects: int = 20
    baselines: bool = True
    ablation: bool = True
    automatic: int = 64

    def evaluate(self, sets: Sets, step: Step) -> dict[str, Any]:
        """The tables of `evaluate_uncertainty`, with `token_ablation` and `automatic` where asked for.

        Raises:
            ConfigError: nothing is left to judge on, the heads speak of another larger model, or the groups are
                too few to fit to.
        """
        self._check_larger()
        sets = keep_out_everywhere(sets)
        kept_out = {name: split_groups(images)[1] for name, images in sets.items()}
        tests = kept_out
        if self.heads:
            tests = {name: leave_out_groups(images, self.fitted) for name, images in sets.items()}
        tests = {name: images for name, images in tests.items() if images}
        if not tests:
            advice = "other data, or use --refit" if self.heads else "sets of two groups of images or more"
            raise ConfigError(f"Nothing of this data is left to judge on. Give {advice}.")
        test = self._collect(tests, step, "asking the models", baselines=self.baselines)
        train = None
        fitting = {name: split_groups(images)[0] for name, images in sets.items()}
        groups = sum(len({image.group for image in images}) for images in fitting.values())
        ablation = self.ablation and groups >= LEAST_GROUPS and any(kept_out.values())
        if self.heads is None or ablation:
            train = self._collect(fitting, step, "asking the models, to fit", baselines=False)
        with step("evaluating") as progress:
            tables = evaluate_uncertainty(self._rounds(test, train), lambda done: progress(done, self.seeds))
        result = {
            "model": self.segmenter.model_id,
            "larger": self._larger_id or None,
            "heads": self.heads.version if self.heads else None,
            "seeds": self.seeds,
            **tables,
        }
        if ablation and train is not None:
            held = test.of_groups({f"{name}/{image.group}" for name, of in kept_out.items() for image in of})
            with step("leaving out inputs") as progress:
                result["token_ablation"] = ablate_inputs(
                    (train, held),
                    self.segmenter.model_id,
                    self._larger_id,
                    self.seeds,
                    lambda done: progress(done, (len(INPUTS) + 1) * self.seeds),
                )
        if test.automatic_N.any():
            heads = self.heads or self._fit(train, 0)
            result["automatic"] = judge_automatic(test, heads.to(torch.device("cpu")))
        return result

    @property
    def _larger_id(self) -> str:
        return self.larger.model_id if self.larger else ""

    def _check_larger(self) -> None:
        if self.heads and self.larger and self.heads.larger != self._larger_id:
            raise ConfigError(
                f"These heads speak of {self.heads.larger or 'no larger model'}, not of {self._larger_id}. "
                "Name that one with --larger, or fit heads for this pair."
            )

    def _collect(self, sets: Sets, step: Step, what: str, *, baselines: bool) -> Samples:
        maker = TargetMaker(
            self.segmenter,
            self.larger,
            objects=self.objects,
            automatic=self.automatic,
            baselines=monte_carlo_entropies if baselines else None,
        )
        with step(what) as progress:
            return collect_tokens(self.store, sets, self.segmenter, maker, progress)

    def _rounds(self, test: Samples, train: Samples | None) -> Iterator[tuple[Samples, HeadSet]]:
        for seed in range(self.seeds):
            heads = self.heads or self._fit(train, seed)
            yield test, heads.to(torch.device("cpu"))

    def _fit(self, train: Samples | None, seed: int) -> HeadSet:
        assert train is not None
        return fit_heads(train, self.segmenter.model_id, self._larger_id, FitSettings(seed=seed)).heads
