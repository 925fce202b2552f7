"""GNMT's decoder step in PyTorch and in ONNX Runtime on one thread, on the dense weights, the memory and the logits that
`gnmt_latency --make DIR` wrote: checks the logits of two words, then prints the median milliseconds a step of either.

PyTorch: the better of fused LSTM layers and plain linear layers, inference mode, keys projected once a sentence. ONNX
Runtime: the better of its LSTM operator and matrix products. `--torch` or `--onnx` times only one of them.
"""
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from measurement import median_milliseconds, read_safetensors
from onnx_graph import Graph

torch.set_num_threads(1)
torch.set_grad_enabled(False)
WIDTH, LAYERS, WORDS = 1024, 4, (1, 77)


def names_of_cells():
    return ["att_rnn.rnn"] + [f"rnn_layers.{i}" for i in range(LAYERS - 1)]


class Decoder:
    """One step; `fused`: torch.nn.LSTM for the cells, else linear layers."""

    def __init__(self, arrays, memory, fused):
        self.arrays, self.memory, self.fused = arrays, memory, fused
        attention = "att_rnn.attn."
        direction = arrays[attention + "linear_att"]
        self.score = direction / direction.norm() * arrays[attention + "normalize_scalar"]
        self.keys = F.linear(memory, arrays[attention + "linear_k.weight"], arrays[attention + "normalize_bias"])
        self.query = arrays[attention + "linear_q.weight"]
        self.cells = []
        for name in names_of_cells():
            weights = [arrays[f"{name}.{part}_l0"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            if fused:
                cell = torch.nn.LSTM(weights[0].shape[1], WIDTH)
                cell.load_state_dict({f"{part}_l0": weight for part, weight in
                                      zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), weights)})
                self.cells.append(cell)
            else:
                self.cells.append((weights[0], weights[1], weights[2] + weights[3]))
        self.reset()

    def reset(self):
        self.state = [(torch.zeros(1, WIDTH), torch.zeros(1, WIDTH)) for _ in range(LAYERS)]

    def cell(self, i, x):
        h, c = self.state[i]
        if self.fused:
            y, (h, c) = self.cells[i](x.unsqueeze(0), (h.unsqueeze(0), c.unsqueeze(0)))
            self.state[i] = (h[0], c[0])
            return y[0]
        weight_ih, weight_hh, bias = self.cells[i]
        gates = F.linear(x, weight_ih, bias).addmm_(h, weight_hh.t())
        i_gate, f_gate, g_gate, o_gate = gates.chunk(4, 1)
        c = f_gate.sigmoid_() * c + i_gate.sigmoid_() * g_gate.tanh_()
        h = o_gate.sigmoid_() * c.tanh()
        self.state[i] = (h, c)
        return h

    def step(self, word):
        x = self.cell(0, self.arrays["embedder.weight"][word].unsqueeze(0))
        scores = torch.tanh(self.keys + F.linear(x, self.query)).mv(self.score)
        context = torch.softmax(scores, 0).unsqueeze(0).mm(self.memory)
        for i in range(1, LAYERS):
            y = self.cell(i, torch.cat((x, context), 1))
            x = y + x if i > 1 else y
        return F.linear(x, self.arrays["classifier.classifier.weight"], self.arrays["classifier.classifier.bias"])


class OnnxDecoder:
    """One step as a graph; `fused`: the LSTM operator for the cells, else matrix products."""

    def __init__(self, arrays, memory, fused):
        graph, outputs = Graph(), []
        node = graph.node

        def cell(i, name, x):
            state = [graph.input(f"{part}{i}", [1, WIDTH]) for part in "hc"]
            weights = [arrays[f"{name}.{part}_l0"].numpy() for part in
                       ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            if fused:
                order = [0, 3, 1, 2]  # ONNX: i, o, f, c
                weights = [np.concatenate([w.reshape(4, WIDTH, -1)[g] for g in order]).reshape(w.shape)
                           for w in weights]
                axis = graph.integers(0)
                h, c = (node("Unsqueeze", part, axis) for part in state)
                y, h, c = node("LSTM", node("Unsqueeze", x, axis), graph.constant(weights[0][None]),
                               graph.constant(weights[1][None]), graph.constant(np.concatenate(weights[2:])[None]), "",
                               h, c, results=3, hidden_size=WIDTH)
                h, c = node("Squeeze", h, axis), node("Squeeze", c, axis)
                y = node("Squeeze", y, graph.integers(0, 1))
            else:
                gates = graph.perceptron(node("Concat", x, state[0], axis=1), np.concatenate(weights[:2], 1),
                                         weights[2] + weights[3])
                a, f, g, o = node("Split", gates, graph.integers(*[WIDTH] * 4), results=4, axis=1)
                c = node("Add", node("Mul", node("Sigmoid", f), state[1]),
                         node("Mul", node("Sigmoid", a), node("Tanh", g)))
                y = h = node("Mul", node("Sigmoid", o), node("Tanh", c))
            outputs.extend([h, c])
            return y

        attention = "att_rnn.attn."
        word = graph.input("word", [1], TensorProto.INT64)
        graph.input("keys", [memory.shape[0], WIDTH])
        graph.input("memory", list(memory.shape))
        names = names_of_cells()
        x = cell(0, names[0], node("Gather", graph.constant(arrays["embedder.weight"]), word))
        query = node("MatMul", x, graph.constant(arrays[attention + "linear_q.weight"].T))
        direction = arrays[attention + "linear_att"]
        score = direction / direction.norm() * arrays[attention + "normalize_scalar"]
        scores = node("MatMul", node("Tanh", node("Add", "keys", query)), graph.constant(score[:, None]))
        context = node("MatMul", node("Softmax", node("Transpose", scores, perm=[1, 0]), axis=1), "memory")
        for i in range(1, LAYERS):
            y = cell(i, names[i], node("Concat", x, context, axis=1))
            x = node("Add", y, x) if i > 1 else y
        logits = graph.perceptron(x, arrays["classifier.classifier.weight"], arrays["classifier.classifier.bias"])
        self.session = graph.session(logits, *outputs)
        keys = F.linear(memory, arrays[attention + "linear_k.weight"], arrays[attention + "normalize_bias"])
        self.fixed = {"keys": keys.numpy(), "memory": memory.numpy()}
        self.reset()

    def reset(self):
        self.state = {f"{part}{i}": np.zeros((1, WIDTH), np.float32) for i in range(LAYERS) for part in "hc"}

    def step(self, word):
        logits, *state = self.session.run(None, {"word": np.array([word], np.int64), **self.fixed, **self.state})
        for i in range(LAYERS):
            self.state[f"h{i}"], self.state[f"c{i}"] = state[2 * i:2 * i + 2]
        return torch.from_numpy(logits)


def main():
    directory = sys.argv[1]
    arrays = {name: torch.from_numpy(array) for name, array in
              read_safetensors(directory + "/dense.safetensors", "decoder.").items()}
    memory = torch.from_numpy(np.fromfile(directory + "/memory.f32", dtype="<f4").reshape(-1, WIDTH))
    expected = torch.from_numpy(np.fromfile(directory + "/logits.f32", dtype="<f4")).reshape(len(WORDS), -1)
    best = {}
    with torch.inference_mode():
        for name, kind in (("torch", Decoder), ("onnx", OnnxDecoder)):
            if len(sys.argv) > 2 and f"--{name}" not in sys.argv:
                continue
            for fused in (True, False):
                decoder = kind(arrays, memory, fused)
                for word, wanted in zip(WORDS, expected):
                    found = decoder.step(word)[0]
                    difference = (found - wanted).abs().max().item() / wanted.abs().max().item()
                    if not difference < 1e-3:
                        sys.exit(f"{name}: logits differ by {difference:.2g} of the largest")
                time_of_it = median_milliseconds(lambda: decoder.step(77), 1.5)
                print(f"{name} {'LSTM operator' if fused else 'products'} {time_of_it:.2f}", file=sys.stderr)
                best[name] = min(best.get(name, time_of_it), time_of_it)
                del decoder
    for name, value in best.items():
        print(f"{name} {value:.4f}")


main()
