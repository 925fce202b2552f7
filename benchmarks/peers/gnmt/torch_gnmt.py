"""GNMT's reading of a sentence and its decoder step in PyTorch and in ONNX Runtime on one thread, on the dense weights,
the memory and the logits that `gnmt_latency --make DIR` wrote: checks the memory and the logits of two words, then
prints the median milliseconds a step and a sentence of either.

PyTorch: the better of fused LSTM layers and plain linear layers, inference mode, keys projected once a sentence. ONNX
Runtime: the better of its LSTM operator and matrix products for the step, the operator for the sentence. `--torch` or
`--onnx` times only one of them.
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
SENTENCE = [4 + i * 37 % 900 for i in range(25)]
PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def onnx_order(weight):
    """Gates i, f, g, o as ONNX's LSTM wants them: i, o, f, g."""
    return np.concatenate([weight.reshape(4, WIDTH, -1)[g] for g in (0, 3, 1, 2)]).reshape(weight.shape)


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
            weights = [arrays[f"{name}.{part}_l0"] for part in PARTS]
            if fused:
                cell = torch.nn.LSTM(weights[0].shape[1], WIDTH)
                cell.load_state_dict({f"{part}_l0": weight for part, weight in zip(PARTS, weights)})
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
            weights = [arrays[f"{name}.{part}_l0"].numpy() for part in PARTS]
            if fused:
                weights = [onnx_order(weight) for weight in weights]
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


class Encoder:
    """The memory of a sentence and its keys; `fused`: torch.nn.LSTM, else a linear layer for the inputs of all words
    and one a word for the state."""

    def __init__(self, arrays, keys, fused):
        self.keys, self.fused = keys, fused
        self.words = arrays["embedder.weight"]
        self.layers = []
        for i in range(LAYERS):
            directions = [{part: arrays[f"rnn_layers.{i}.{part}_l0{end}"] for part in PARTS}
                          for end in (("", "_reverse") if i == 0 else ("",))]
            if fused:
                layer = torch.nn.LSTM(directions[0]["weight_ih"].shape[1], WIDTH, bidirectional=i == 0)
                layer.load_state_dict({f"{part}_l0{end}": direction[part] for part in PARTS
                                       for direction, end in zip(directions, ("", "_reverse"))})
                self.layers.append(layer)
            else:
                self.layers.append(directions)

    @staticmethod
    def read(x, direction, backwards):
        inputs = F.linear(x, direction["weight_ih"], direction["bias_ih"] + direction["bias_hh"])
        weight, h, c, outputs = direction["weight_hh"].t(), torch.zeros(1, WIDTH), torch.zeros(1, WIDTH), []
        steps = range(len(x))
        for t in reversed(steps) if backwards else steps:
            i, f, g, o = torch.addmm(inputs[t:t + 1], h, weight).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.cat(outputs[::-1] if backwards else outputs)

    def __call__(self, sentence):
        x = self.words[sentence]
        for i, layer in enumerate(self.layers):
            if self.fused:
                y = layer(x.unsqueeze(1))[0][:, 0]
            else:
                y = torch.cat([self.read(x, direction, backwards) for direction, backwards in
                               zip(layer, (False, True))], 1)
            x = y + x if i > 1 else y
        return x, F.linear(x, *self.keys)


class OnnxEncoder:
    """The same as a graph of LSTM operators."""

    def __init__(self, arrays, keys):
        graph = Graph()
        node = graph.node
        x = node("Gather", graph.constant(arrays["embedder.weight"]), graph.input("words", [len(SENTENCE)],
                                                                                  TensorProto.INT64))
        for i in range(LAYERS):
            ends = ("", "_reverse") if i == 0 else ("",)
            parts = [np.stack([onnx_order(arrays[f"rnn_layers.{i}.{part}_l0{end}"].numpy()) for end in ends])
                     for part in PARTS]
            y = node("LSTM", node("Unsqueeze", x, graph.integers(1)), graph.constant(parts[0]),
                     graph.constant(parts[1]), graph.constant(np.concatenate(parts[2:], 1)), hidden_size=WIDTH,
                     direction="bidirectional" if i == 0 else "forward", results=3)[0]  # words, directions, 1, WIDTH
            y = node("Reshape", y, graph.integers(len(SENTENCE), len(ends) * WIDTH))
            x = node("Add", y, x) if i > 1 else y
        self.session = graph.session(x, graph.perceptron(x, keys[0], keys[1]))

    def __call__(self, sentence):
        return [torch.from_numpy(array) for array in self.session.run(None, {"words": sentence.numpy()})]


def main():
    directory = sys.argv[1]
    arrays = {name: torch.from_numpy(array) for name, array in
              read_safetensors(directory + "/dense.safetensors", "decoder.").items()}
    memory = torch.from_numpy(np.fromfile(directory + "/memory.f32", dtype="<f4").reshape(-1, WIDTH))
    expected = torch.from_numpy(np.fromfile(directory + "/logits.f32", dtype="<f4")).reshape(len(WORDS), -1)
    best = {}

    def note(name, form, milliseconds):
        print(f"{name} {form} {milliseconds:.2f}", file=sys.stderr)
        best[name] = min(best.get(name, milliseconds), milliseconds)

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
                note(name, "LSTM operator" if fused else "products",
                     median_milliseconds(lambda: decoder.step(77), 1.5))
                del decoder
        keys = [arrays["att_rnn.attn." + part] for part in ("linear_k.weight", "normalize_bias")]
        arrays = {name: torch.from_numpy(array) for name, array in
                  read_safetensors(directory + "/dense.safetensors", "encoder.").items()}
        sentence = torch.tensor(SENTENCE)
        for name, form, make in (("torch", "LSTM operator", lambda: Encoder(arrays, keys, True)),
                                 ("torch", "products", lambda: Encoder(arrays, keys, False)),
                                 ("onnx", "LSTM operator", lambda: OnnxEncoder(arrays, keys))):
            if len(sys.argv) > 2 and f"--{name}" not in sys.argv:
                continue
            encoder = make()
            difference = (encoder(sentence)[0] - memory).abs().max().item() / memory.abs().max().item()
            if not difference < 1e-3:
                sys.exit(f"{name}: memories differ by {difference:.2g} of the largest")
            note(f"{name}_sentence", form, median_milliseconds(lambda: encoder(sentence), 3))
    for name, value in best.items():
        print(f"{name} {value:.4f}")


main()
