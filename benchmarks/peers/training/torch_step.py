"""One dense training step (forward, backward, SGD) in PyTorch, channels last: seconds a step, median of the steps.

torch_step.py THREADS [NETWORK [BATCH [STEPS [PRECISION]]]]; NETWORK: quickstart, resnet20 or resnet50-small, as
strata's training_step builds them; PRECISION: float32, or bfloat16 by autocast.
"""
import sys
import time

import torch
from torch import nn
from torch.nn import functional


def convolution(a, b, kernel, stride=1):
    return nn.Sequential(nn.Conv2d(a, b, kernel, stride=stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(b))


class Block(nn.Module):
    """relu(F(x) + shortcut(x)), two 3x3 convolutions or 1x1, 3x3, 1x1."""

    def __init__(self, a, width, b, stride, bottleneck):
        super().__init__()
        if bottleneck:
            layers = [convolution(a, width, 1), convolution(width, width, 3, stride), convolution(width, b, 1)]
        else:
            layers = [convolution(a, width, 3, stride), convolution(width, b, 3)]
        self.layers = nn.ModuleList(layers)
        self.shortcut = convolution(a, b, 1, stride) if stride != 1 or a != b else nn.Identity()

    def forward(self, x):
        y = x
        for layer in self.layers[:-1]:
            y = functional.relu(layer(y), inplace=True)
        return functional.relu(self.layers[-1](y) + self.shortcut(x), inplace=True)


def resnet(width, blocks, bottleneck, classes=10):
    layers = [convolution(3, width, 3), nn.ReLU(inplace=True)]
    a = width
    for stage, count in enumerate(blocks):
        inner = width << stage
        b = 4 * inner if bottleneck else inner
        for i in range(count):
            layers.append(Block(a, inner, b, 2 if i == 0 and stage > 0 else 1, bottleneck))
            a = b
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(a, classes))


def quickstart():
    def block(a, b):
        return [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(*block(1, 32), *block(32, 96), *block(96, 192), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(192, 10))


threads = int(sys.argv[1])
name = sys.argv[2] if len(sys.argv) > 2 else "quickstart"
batch = int(sys.argv[3]) if len(sys.argv) > 3 else 128
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 60
bfloat16 = len(sys.argv) > 5 and sys.argv[5] == "bfloat16"
torch.set_num_threads(threads)
torch.manual_seed(1)
network, shape = {
    "quickstart": (quickstart, (1, 28, 28)),
    "resnet20": (lambda: resnet(16, (3, 3, 3), False), (3, 32, 32)),
    "resnet50-small": (lambda: resnet(64, (3, 4, 6, 3), True), (3, 32, 32)),
}[name]
network = network().to(memory_format=torch.channels_last)
optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
x = torch.rand(batch, *shape).to(memory_format=torch.channels_last)
y = torch.arange(batch) % 10
seconds = []
for _ in range(steps):
    start = time.perf_counter()
    optimiser.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = functional.cross_entropy(network(x), y)
    loss.backward()
    optimiser.step()
    seconds.append(time.perf_counter() - start)
print(f"{sorted(seconds)[len(seconds) // 2]:.6f}")
