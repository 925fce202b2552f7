"""The two-layer GAT on a whole graph in hand-written PyTorch, in ONNX Runtime and in PyTorch Geometric, one thread: edges
sorted by target. Hand-written PyTorch has sparse CSR features and no framework in between. Inference sums neighbours up by a sparse CSR product per head,
with one largest score for all nodes: the fastest of six forms tried (index_add, segment_reduce or CSR products; largest
score of all or of each node).
Training needs gradients that CSR products lack. ONNX Runtime has no sparse products: features are a dense matrix, and
messages are scattered to the nodes that they go to. PyTorch Geometric runs its GATConv as its examples do, on dense
features, and on sparse CSR ones if that is faster. Prints the median milliseconds of an inference of PyTorch, of ONNX
Runtime and of PyTorch Geometric, whose logits agree, or the seconds of 200 training epochs."""
import os
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from measurement import median_milliseconds
from onnx_graph import Graph

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


def onnx_network():
    """The same as a graph that takes the features as a dense matrix."""
    graph = Graph()
    node = graph.node
    sources, targets = (graph.constant(side, np.int64) for side in (source, target))
    target_rows = graph.constant(target.unsqueeze(1), np.int64)

    def attention(layer, x):
        heads, outputs = layer.heads, layer.outputs
        h = node("Reshape", node("MatMul", x, graph.constant(layer.weight)), graph.integers(nodes, heads, outputs))

        def scores(vector, ends):
            product = node("Mul", h, graph.constant(vector))
            return node("Gather", node("ReduceSum", product, graph.integers(2), keepdims=0), ends)

        score = node("LeakyRelu", node("Add", scores(layer.source, sources), scores(layer.target, targets)), alpha=0.2)
        weight = node("Exp", node("Sub", score, node("ReduceMax", score, graph.integers(0), keepdims=1)))
        weight = node("Unsqueeze", weight, graph.integers(2))
        messages = node("Concat", node("Mul", node("Gather", h, sources), weight), weight, axis=2)
        zeros = graph.constant(np.zeros((nodes, heads, outputs + 1)))
        sums = node("ScatterND", zeros, target_rows, messages, reduction="add")
        y, total = node("Split", sums, graph.integers(outputs, 1), results=2, axis=2)
        y = node("Reshape", node("Div", y, total), graph.integers(nodes, heads * outputs))
        return node("Add", y, graph.constant(layer.bias))

    x = graph.input("x", [nodes, width])
    return graph.session(attention(second, node("Elu", attention(first, x))))


def geometric_network():
    """The same by PyTorch Geometric's layers, with the weights of the others."""
    from torch_geometric.nn import GATConv
    convolutions = []
    for layer in (first, second):
        convolution = GATConv(layer.weight.shape[0], layer.outputs, layer.heads, add_self_loops=False).eval()
        with torch.no_grad():
            convolution.lin.weight.copy_(layer.weight.t())
            convolution.att_src.copy_(layer.source.unsqueeze(0))
            convolution.att_dst.copy_(layer.target.unsqueeze(0))
            convolution.bias.copy_(layer.bias)
        convolutions.append(convolution)
    ends = torch.stack([source, target])
    return lambda x: convolutions[1](F.elu(convolutions[0](x, ends)), ends)


if what == "inference":
    first.eval(), second.eval()
    x = features()
    with torch.inference_mode():
        expected = network(x).numpy()

        def check(name, logits):
            if not np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max():
                sys.exit(f"the logits of {name} differ")

        session, dense = onnx_network(), x.to_dense()
        inputs = {"x": dense.numpy()}
        check("ONNX Runtime", session.run(None, inputs)[0])
        geometric = geometric_network()
        times = []
        for features_of_nodes in (dense, x):
            check("PyTorch Geometric", geometric(features_of_nodes).numpy())
            times.append(median_milliseconds(lambda: geometric(features_of_nodes), 1))
        print(f"{median_milliseconds(lambda: network(x), 1):.4f}"
              f" {median_milliseconds(lambda: session.run(None, inputs), 1):.4f} {min(times):.4f}")
else:
    optimiser = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=0.005, weight_decay=5e-4)
    start = time.perf_counter()
    for _ in range(200):
        optimiser.zero_grad()
        F.cross_entropy(network(features())[train], labels[train]).backward()
        optimiser.step()
    print(f"{time.perf_counter() - start:.4f}")
