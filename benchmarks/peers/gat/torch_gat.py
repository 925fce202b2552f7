"""The two-layer GAT on a whole graph in hand-written PyTorch, one thread: sparse CSR features, edges sorted by target,
no framework in between. Inference sums neighbours up by a sparse CSR product per head, with one largest score for all
nodes: the fastest of six forms tried (index_add, segment_reduce or CSR products; largest score of all or of each node).
Training needs gradients that CSR products lack. Prints the median milliseconds of an inference, or the seconds of 200
training epochs."""
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(1)
directory, what = sys.argv[1], sys.argv[2]

labels = torch.tensor([int(line) for line in open(f"{directory}/labels.txt")])
rows = [sorted(map(int, line.split())) for line in open(f"{directory}/features.txt")]
nodes, width, classes = len(rows), max(max(r) for r in rows if r) + 1, int(labels.max()) + 1
offsets = torch.zeros(nodes + 1, dtype=torch.int64)
offsets[1:] = torch.tensor([len(r) for r in rows]).cumsum(0)
columns = torch.tensor([f for r in rows for f in r])
values = torch.tensor([1.0 / len(r) for r in rows for _ in r])
row_of = torch.repeat_interleave(torch.arange(nodes), offsets.diff())
pairs = [tuple(map(int, line.split())) for line in open(f"{directory}/edges.txt")]
edges = sorted([(v, u) for u, v in pairs] + [(u, v) for u, v in pairs] + [(i, i) for i in range(nodes)])
target, source = (torch.tensor(side) for side in zip(*edges))
train = torch.tensor([int(n) for line in open(f"{directory}/split.txt") if line.startswith("train")
                      for n in line.split()[1:]])


target_offsets = torch.zeros(nodes + 1, dtype=torch.int64)
target_offsets[1:] = torch.bincount(target, minlength=nodes).cumsum(0)


def incoming(weights):
    return torch.sparse_csr_tensor(target_offsets, source, weights.contiguous(), (nodes, nodes), check_invariants=False)


class Layer(nn.Module):
    def __init__(self, inputs, outputs, heads):
        super().__init__()
        self.heads, self.outputs = heads, outputs
        self.weight = nn.Parameter(torch.empty(inputs, heads * outputs))
        self.source = nn.Parameter(torch.empty(heads, outputs))
        self.target = nn.Parameter(torch.empty(heads, outputs))
        self.bias = nn.Parameter(torch.zeros(heads * outputs))
        for parameter in (self.weight, self.source, self.target):
            nn.init.xavier_uniform_(parameter)

    def forward(self, x):
        h = (torch.sparse.mm(x, self.weight) if x.layout != torch.strided else x @ self.weight)
        h = h.view(nodes, self.heads, self.outputs)
        score = F.leaky_relu((h * self.source).sum(-1)[source] + (h * self.target).sum(-1)[target], 0.2)
        if not self.training:
            weight = (score - score.amax(0)).exp()
            h = torch.cat([h, torch.ones(nodes, self.heads, 1)], -1)  # the last channel sums the weights
            sums = torch.stack([torch.sparse.mm(incoming(weight[:, head]), h[:, head])
                                for head in range(self.heads)], 1)
            return (sums[..., :-1] / sums[..., -1:]).flatten(1) + self.bias
        largest = torch.full((nodes, self.heads), -torch.inf).index_reduce_(0, target, score.detach(), "amax")
        weight = (score - largest[target]).exp()
        total = torch.zeros(nodes, self.heads).index_add(0, target, weight)
        weight = weight / total[target]
        if self.training:
            weight = F.dropout(weight, 0.6)
        message = weight.unsqueeze(-1) * h[source]
        y = torch.zeros(nodes, self.heads, self.outputs).index_add(0, target, message)
        return y.flatten(1) + self.bias


first, second = Layer(width, 8, 8), Layer(64, classes, 1)


def features():
    # Dropout acts on the entries; the sparse product of a CSR matrix has no gradient for its values, and needs none.
    kept = F.dropout(values, 0.6) if first.training else values
    if first.training:
        return torch.sparse_coo_tensor(torch.stack([row_of, columns]), kept, (nodes, width), is_coalesced=True)
    return torch.sparse_csr_tensor(offsets, columns, kept, (nodes, width))


def network(x):
    y = F.elu(first(x))
    return second(F.dropout(y, 0.6) if second.training else y)


if what == "inference":
    first.eval(), second.eval()
    x = features()
    seconds = []
    with torch.inference_mode():
        for _ in range(300):
            start = time.perf_counter()
            network(x)
            seconds.append(time.perf_counter() - start)
    print(f"{1000 * sorted(seconds)[len(seconds) // 2]:.4f}")
else:
    optimiser = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=0.005, weight_decay=5e-4)
    start = time.perf_counter()
    for _ in range(200):
        optimiser.zero_grad()
        F.cross_entropy(network(features())[train], labels[train]).backward()
        optimiser.step()
    print(f"{time.perf_counter() - start:.4f}")
