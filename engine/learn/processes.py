"""The processes of one run, as torchrun starts them: what they tell each other so that the result is that of one process.

Without torchrun there is one, which nobody has to tell anything.
"""

from __future__ import annotations

import torch
from torch import distributed


def find_place() -> tuple[int, int]:
    """(which of the processes this is, how many there are)."""
    return (distributed.get_rank(), distributed.get_world_size()) if _are_several() else (0, 1)


def share_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Sum of all processes' gradients, in every process.

    What no process has a gradient for stays without one, as in one process: with zeros, weight decay would change it.
    """
    if not _are_several():
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    reached = torch.tensor([int(of.grad is not None) for of in parameters], device=parameters[0].device)
    distributed.all_reduce(reached)
    for parameter, count in zip(parameters, reached.tolist(), strict=True):
        if count:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)


def add_up(total: torch.Tensor) -> None:
    """Sum of all processes' totals, in place, in every process."""
    if _are_several():
        distributed.all_reduce(total)


def agree(number: float, device: torch.device) -> float:
    """The first process's, in every process, as fp32: what they decide by has to be the same in all of them."""
    if not _are_several():
        return number
    agreed = torch.tensor([number], device=device)
    distributed.broadcast(agreed, 0)
    return float(agreed)


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
