# SPDX-License-Identifier: Apache-2.0
"""The mock device refuses what CUDA refuses, and computes what the CPU computes."""

import os

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def only_there(device):
    if device.type != 'mock':
        pytest.skip('needs --device mock')


@pytest.mark.parametrize(
    'mix',
    [
        lambda here, there: here + there,
        lambda here, there: here.add_(there.sum()),
        lambda here, there: torch.cat([there, here]),
        lambda here, there: torch.stack([there.sum(), here.sum()]),
        lambda here, there: nn.functional.linear(here, there),
        lambda here, there: nn.functional.cross_entropy(there, torch.zeros(3, dtype=torch.long)),
        lambda here, there: nn.functional.embedding(torch.zeros(3, dtype=torch.long), there),
        lambda here, there: torch.equal(there, here),
    ],
)
def test_tensors_of_two_devices_are_refused(mix, device):
    with pytest.raises(RuntimeError, match='found at least two devices'):
        mix(torch.ones(3, 3), torch.ones(3, 3, device=device))


def test_numpy_needs_a_copy_on_the_host(device):
    with pytest.raises(TypeError, match='mock:0 device type tensor to numpy'):
        torch.ones(3, device=device).numpy()


def test_a_generator_belongs_to_a_device(device):
    with pytest.raises(RuntimeError, match="'mock' device type for generator but found 'cpu'"):
        torch.rand(3, device=device, generator=torch.Generator())


def test_a_number_and_indices_may_be_on_the_host(device):
    there = torch.arange(3.0, device=device)
    assert ((there + torch.tensor(1.0))[torch.tensor([0, 2])]).tolist() == [1, 3]


def test_a_forked_process_cannot_use_it(device):
    child = os.fork()
    if child == 0:
        try:
            torch.ones(3, device=device)
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_it_trains_as_the_cpu_does(device):
    def trained(there):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(144, 2),
        )
        images = torch.rand(5, 3, 8, 8)
        known = list(net.parameters())
        net.to(there)
        assert all(a is b for a, b in zip(known, net.parameters(), strict=True))
        optimizer = torch.optim.Adam(net.parameters())
        for _ in range(3):
            loss = net(images.to(there)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [parameter.detach().cpu() for parameter in net.parameters()]

    torch.testing.assert_close(trained(device), trained('cpu'))


def test_views_and_kernels_that_resize_keep_their_memory(device):
    tensor = torch.zeros(2, 3, device=device)
    tensor.T[1].fill_(2)
    assert tensor.tolist() == [[0, 2, 0], [0, 2, 0]]
    out = torch.empty(0, device=device)
    assert torch.add(tensor, 1, out=out) is out
    assert out.shape == (2, 3)
    assert out.view(-1)[1:].sum() == 9
