# SPDX-License-Identifier: Apache-2.0
"""Muon for matrices and convolutions, AdamW for everything else, in one optimizer.

Source: Jordan et al., "Muon", 2024; scale of the update as in Liu et al., arXiv 2502.16982, so
that both halves take the same learning rate.
"""

from __future__ import annotations

import torch
from torch import nn


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly, by a quintic Newton-Schulz iteration.

    Args:
        matrices: (batch, rows, columns).
        steps: Number of iterations.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x).contiguous()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Args: module (its parameters), learning rate, weight decay, and names (parts of parameter
    names) that stay with AdamW though they are matrices."""

    def __init__(
        self, module: nn.Module, lr: float, weight_decay: float = 0.01, plain: tuple[str, ...] = ()
    ) -> None:
        matrices, others = [], []
        for name, parameter in module.named_parameters():
            is_matrix = parameter.ndim in (2, 4) and not any(p in name for p in plain)
            (matrices if is_matrix else others).append(parameter)
        groups = [{'params': matrices, 'muon': True}, {'params': others, 'muon': False}]
        super().__init__(groups, {'lr': lr, 'weight_decay': weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group['lr'] * group['weight_decay'])
                if group['muon']:
                    by_shape.setdefault(parameter.flatten(1).shape, []).append(parameter)
                else:
                    self._adam(parameter, self.state[parameter], group['lr'])
        for parameters in by_shape.values():  # equal shapes together: fewer, larger products
            self._muon(parameters, self.param_groups[0]['lr'])

    def _muon(self, parameters: list[nn.Parameter], lr: float) -> None:
        updates = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state['momentum'] = torch.zeros_like(parameter)
            state['momentum'].lerp_(parameter.grad, 0.05)
            updates.append(parameter.grad.lerp(state['momentum'], 0.95).flatten(1))
        scale = 0.2 * max(updates[0].shape) ** 0.5
        for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
            parameter.add_(update.view(parameter.shape), alpha=-lr * scale)

    @staticmethod
    def _adam(parameter: nn.Parameter, state: dict, lr: float) -> None:
        if not state:
            state.update(
                step=torch.zeros(()),
                mean=torch.zeros_like(parameter),
                square=torch.zeros_like(parameter),
            )
        state['step'] += 1
        state['mean'].lerp_(parameter.grad, 0.1)
        state['square'].lerp_(parameter.grad.square(), 0.01)
        mean = state['mean'] / (1 - 0.9 ** state['step'])
        square = state['square'] / (1 - 0.99 ** state['step'])
        parameter.addcdiv_(mean, square.sqrt() + 1e-8, value=-lr)
