"""The perceptrons of a head set while they are fitted: all heads share their layers.

Shape suffixes: X rows, I inputs, K heads, S members, O channels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from engine.uncertainty.features import FEATURES

_BATCH = 256


@dataclass(frozen=True)
class FitSettings:
    """How heads are fitted; the values were chosen on training groups.

    Attributes:
        members: perceptrons whose answers are averaged.
        hidden: width of their two hidden layers.
        epochs, rate, decay: of AdamW with a one-cycle schedule.
        dropout: in the hidden layers.
        token_dropout: of the tokens alone; features are always shown.
        seed: of splits, initial weights and draws.
    """

    members: int = 4
    hidden: int = 256
    epochs: int = 20
    rate: float = 2e-3
    decay: float = 0.05
    dropout: float = 0.3
    token_dropout: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class FitRows:
    """Standardised inputs, targets and weights of all rows, and which of them are fitted to.

    A target without a value has the weight zero.
    """

    inputs_XI: torch.Tensor
    targets_XK: torch.Tensor
    weights_XK: torch.Tensor
    fit_X: torch.Tensor
    stop_X: torch.Tensor


def fit_perceptron(
    data: FitRows,
    scale_K: torch.Tensor,
    offset_K: torch.Tensor,
    settings: FitSettings,
    seed: int,
    tell: Callable[[int], None] | None,
) -> list[nn.Linear]:
    """The layers of one perceptron, as they were when the stopping groups were told best."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    inputs, heads, hidden = data.inputs_XI.shape[1], len(scale_K), settings.hidden
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, heads)]
    there_XK = data.weights_XK[data.fit_X] > 0
    count_K = there_XK.sum(0).clamp(min=1)
    mean_K = (data.targets_XK[data.fit_X] * there_XK).sum(0) / count_K
    spread_K = (
        (((data.targets_XK[data.fit_X] - mean_K).square() * there_XK).sum(0) / count_K).sqrt().clamp(min=1e-3)
    )
    with torch.no_grad():  # begin at the mean
        layers[2].weight.mul_(0.1)
        layers[2].bias.copy_(torch.logit(((mean_K + offset_K) / scale_K).clamp(0.01, 0.99)))
    drop, tokens = nn.Dropout(settings.dropout), inputs - len(FEATURES)

    def answer(x_XI: torch.Tensor) -> torch.Tensor:
        x = drop(layers[0](x_XI).relu())
        return layers[2](drop(layers[1](x).relu())).sigmoid() * scale_K - offset_K

    def lose(x_XI: torch.Tensor, rows_X: torch.Tensor) -> torch.Tensor:
        error_XK = (answer(x_XI) - data.targets_XK[rows_X]) / spread_K
        weights_XK = data.weights_XK[rows_X]
        return ((error_XK.square() * weights_XK).sum(0) / weights_XK.sum(0).clamp(min=1e-6)).mean()

    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=settings.decay)
    batches = -(-len(data.fit_X) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.rate, total_steps=batches * settings.epochs + 1, pct_start=0.1
    )
    least, best = float("inf"), [p.detach().clone() for p in parameters]
    for epoch in range(settings.epochs):
        drop.train()
        for rows_X in data.fit_X[torch.randperm(len(data.fit_X), generator=generator)].split(_BATCH):
            x_XI = data.inputs_XI[rows_X]
            x_XI = torch.cat(
                [nn.functional.dropout(x_XI[:, :tokens], settings.token_dropout), x_XI[:, tokens:]], 1
            )
            loss = lose(x_XI, rows_X)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        drop.eval()
        with torch.no_grad():
            now = float(lose(data.inputs_XI[data.stop_X], data.stop_X))
        if now < least:
            least, best = now, [p.detach().clone() for p in parameters]
        if tell:
            tell(epoch + 1)
    with torch.no_grad():
        for parameter, value in zip(parameters, best, strict=True):
            parameter.copy_(value)
    return layers


def stack_members(
    members: Sequence[Sequence[nn.Linear]], mean_I: np.ndarray, std_I: np.ndarray
) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """weight_SOI and bias_SO of each layer; the first one takes inputs as they come."""
    stacked = []
    for index, layer in enumerate(zip(*members, strict=True)):
        weight_SOI = torch.stack([linear.weight.detach() for linear in layer])
        bias_SO = torch.stack([linear.bias.detach() for linear in layer])
        if index == 0:
            weight_SOI = weight_SOI / torch.from_numpy(std_I).float()
            bias_SO = bias_SO - weight_SOI @ torch.from_numpy(mean_I).float()
        stacked.append((weight_SOI, bias_SO))
    return tuple(stacked)
