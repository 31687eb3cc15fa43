"""Writes networks.safetensors: kinds of networks beside PyTorch's example, as PyTorch computes them.

    benches/compare/python.sh tests/goldens/make_networks.py    # or any Python with torch 2.11

For each case: parameters and buffers by the names of a state dict, what goes in, what comes out, and
the gradient of the sum of (output × cost) by every parameter. `src/model/goldens.rs` has the same
cases.
"""

from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.utils import spectral_norm

N, CLASSES = 6, 5
out = {}


class Maxout(nn.Module):
    def __init__(self, pieces):
        super().__init__()
        self.pieces = pieces

    def forward(self, x):
        return x.unflatten(1, (-1, self.pieces)).amax(2)


class Network(nn.Module):
    """`main`, and what it is told of labels, split latents and noise."""

    def __init__(self, layers, label=None, projection=None):
        super().__init__()
        self.main = nn.Sequential(*layers)
        if label is not None:
            self.label = label
        if projection is not None:
            self.projection = projection


def start(network, seed):
    torch.manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)):
            module.weight.data += 1
    return network


def record(name, network, forward, **inputs):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    y = forward(network, **inputs)
    cost = torch.randn_like(y)
    (y * cost).sum().backward()
    for key, value in before.items():
        if value.dtype == torch.float32:
            out[f"{name}/{key}"] = value
    for key, value in network.named_parameters():
        out[f"{name}/grad/{key}"] = value.grad
    for key, value in network.state_dict().items():
        if key.endswith("_u") or key.endswith("_v"):
            out[f"{name}/next/{key}"] = value.clone()
    for key, value in inputs.items():
        out[f"{name}/in/{key}"] = value
    out[f"{name}/out"] = y.detach()
    out[f"{name}/cost"] = cost


def one_hot(labels):
    return F.one_hot(labels, CLASSES).float()


def images(channels, side):
    return torch.rand(N, channels, side, side) * 2 - 1


def labels():
    return torch.randint(0, CLASSES, (N,))


def leaky():
    return nn.LeakyReLU(0.2)


def plain(network, x):
    y = network.main(x)
    return y.flatten() if y[0].numel() == 1 else y


# Spectral norm on every convolution; no batch norm, so biases.
network = start(
    Network(
        [
            nn.Conv2d(1, 4, 4, 2, 1, bias=False),
            leaky(),
            nn.Conv2d(4, 8, 4, 2, 1),
            leaky(),
            nn.Conv2d(8, 16, 4, 2, 1),
            leaky(),
            nn.Conv2d(16, 1, 4, 1, 0, bias=False),
        ]
    ),
    1,
)
for index in (0, 2, 4, 6):
    spectral_norm(network.main[index])
record("spectral", network, plain, x=images(1, 32))

# Layer norm: of one group.
network = start(
    Network(
        [
            nn.Conv2d(1, 4, 4, 2, 1, bias=False),
            leaky(),
            nn.Conv2d(4, 8, 4, 2, 1, bias=False),
            nn.GroupNorm(1, 8),
            leaky(),
            nn.Conv2d(8, 16, 4, 2, 1, bias=False),
            nn.GroupNorm(1, 16),
            leaky(),
            nn.Conv2d(16, 1, 4, 1, 0, bias=False),
        ]
    ),
    2,
)
record("layer", network, plain, x=images(1, 32))

# 28×28 pixels with 5×5 kernels: sides 28, 14, 7, 4, 2.
network = start(
    Network(
        [
            nn.ConvTranspose2d(6, 32, 2, 1, 0, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 5, 2, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 8, 5, 2, 2, 0, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 4, 5, 2, 2, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 3, 5, 2, 2, 1, bias=False),
            nn.Tanh(),
        ]
    ),
    3,
)
record("generator5", network, plain, x=torch.randn(N, 6, 1, 1))
network = start(
    Network(
        [
            nn.Conv2d(3, 4, 5, 2, 2, bias=False),
            leaky(),
            nn.Conv2d(4, 8, 5, 2, 2, bias=False),
            nn.BatchNorm2d(8),
            leaky(),
            nn.Conv2d(8, 16, 5, 2, 2, bias=False),
            nn.BatchNorm2d(16),
            leaky(),
            nn.Conv2d(16, 32, 5, 2, 2, bias=False),
            nn.BatchNorm2d(32),
            leaky(),
            nn.Conv2d(32, 1, 2, 1, 0, bias=False),
        ]
    ),
    4,
)
record("discriminator5", network, plain, x=images(3, 28))


# Split latents (4, 3 and 3 of 10), additive noise in hidden layers, a label; 28×28 with 4×4 kernels.
def split(network, x, noise, labels):
    main, (a, b, c) = network.main, x.split([4, 3, 3], 1)
    noise = noise.split([16 * 9, 8 * 49, 4 * 196], 1)
    y = main[2](main[1](main[0](torch.cat([a, one_hot(labels)[:, :, None, None]], 1))))
    y = y + 0.5 * noise[0].view_as(y)
    y = torch.cat([y, b.expand(-1, -1, 3, 3)], 1)
    y = main[5](main[4](main[3](y)))
    y = y + 0.5 * noise[1].view_as(y)
    y = torch.cat([y, c.expand(-1, -1, 7, 7)], 1)
    y = main[8](main[7](main[6](y)))
    y = y + 0.5 * noise[2].view_as(y)
    return main[10](main[9](y))


network = start(
    Network(
        [
            nn.ConvTranspose2d(4 + CLASSES, 16, 3, 1, 0, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16 + 3, 8, 4, 2, 1, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8 + 3, 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 1, 4, 2, 1, bias=False),
            nn.Tanh(),
        ]
    ),
    5,
)
noise = torch.randn(N, 16 * 9 + 8 * 49 + 4 * 196)
record("split", network, split, x=torch.randn(N, 10, 1, 1), noise=noise, labels=labels())


# The label as a plane of D's input.
def concatenation(network, x, labels):
    plane = network.label(labels).view(N, 1, 28, 28)
    return network.main(torch.cat([x, plane], 1)).flatten()


def judge(inputs):
    return [
        nn.Conv2d(inputs, 4, 4, 2, 1, bias=False),
        leaky(),
        nn.Conv2d(4, 8, 4, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        leaky(),
        nn.Conv2d(8, 16, 4, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        leaky(),
        nn.Conv2d(16, 1, 3, 1, 0, bias=False),
    ]


network = start(Network(judge(2), label=nn.Embedding(CLASSES, 28 * 28)), 6)
record("concatenation", network, concatenation, x=images(1, 28), labels=labels())


# The label's vector times the last features.
def projection(network, x, labels):
    features = network.main[:-1](x)
    products = network.projection(labels) * features.sum((2, 3))
    return network.main[-1](features).flatten() + products.sum(1)


network = start(Network(judge(1), projection=nn.Embedding(CLASSES, 16)), 7)
record("projection", network, projection, x=images(1, 28), labels=labels())

# Points.
network = start(
    Network(
        [
            nn.Linear(6, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 2),
        ]
    ),
    8,
)
record("perceptron", network, lambda network, x: network.main(x.flatten(1)), x=torch.randn(N, 6, 1, 1))
network = start(
    Network(
        [nn.Linear(2, 24), Maxout(3), nn.Linear(8, 24), Maxout(3), nn.Linear(8, 1)],
    ),
    9,
)
record("maxout", network, lambda network, x: network.main(x.flatten(1)).flatten(), x=torch.randn(N, 2, 1, 1))

path = Path(__file__).parent / "networks.safetensors"
save_file({key: value.contiguous() for key, value in out.items()}, path)
print(f"{path}: {len(out)} tensors, {path.stat().st_size} bytes")
