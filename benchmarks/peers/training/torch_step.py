"""One training step of the quick-start network in PyTorch, batch 128: seconds a step, median of the steps."""
import sys
import time

import torch
from torch import nn

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(1)


def block(a, b):
    return [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]


network = nn.Sequential(*block(1, 32), *block(32, 96), *block(96, 192), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(192, 10)).to(memory_format=torch.channels_last)
optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
x = torch.rand(128, 1, 28, 28).to(memory_format=torch.channels_last)
y = torch.arange(128) % 10
seconds = []
for _ in range(60):
    start = time.perf_counter()
    optimiser.zero_grad()
    nn.functional.cross_entropy(network(x), y).backward()
    optimiser.step()
    seconds.append(time.perf_counter() - start)
print(f"{sorted(seconds)[len(seconds) // 2]:.6f}")
