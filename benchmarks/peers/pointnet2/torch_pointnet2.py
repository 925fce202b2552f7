"""PointNet++ (single scale) in PyTorch and in ONNX Runtime on one thread, as fast as we could make it, on the weights,
the cloud and the logits that `pointnet2_latency --save DIR` wrote: checks the logits, then prints the median
milliseconds a cloud of either.

Tuned: norms folded into the convolutions, one matrix of distances for sampling and ball query, which leaves two small
operations a sampled point, ball query without sorting (cumulative sums of the hits), shared perceptrons as matrix
products on channels-last groups, inference mode. ONNX Runtime computes the same graph. `--compile` also tries torch.compile, and the better of the two
counts; `--parts` prints what the parts of the first abstraction and all perceptrons take.
"""
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from measurement import median_milliseconds, read_safetensors
from onnx_graph import Graph

torch.set_num_threads(1)
torch.set_grad_enabled(False)


class PointNet2(torch.nn.Module):
    def __init__(self, arrays):
        super().__init__()
        self.mlp = []
        for stage in ("sa1", "sa2", "sa3"):
            layers = []
            for i in range(3):
                weight = arrays[f"{stage}.mlp_convs.{i}.weight"].flatten(1)
                scale = arrays[f"{stage}.mlp_bns.{i}.scale.0"]
                layers.append(((weight * scale[:, None]).contiguous(), arrays[f"{stage}.mlp_bns.{i}.bias.0"]))
            self.mlp.append(layers)
        self.fc = [((arrays[f"fc{i}.weight"] * arrays[f"bn{i}.scale.0"][:, None]).contiguous(),
                    arrays[f"bn{i}.bias.0"]) for i in (1, 2)]
        self.last = (arrays["fc3.weight"], arrays["fc3.bias"])

    @staticmethod
    def distances(points):
        """points: 3 x N; the squared distances N x N, which sampling and ball query share."""
        x, y, z = points
        result = (x.unsqueeze(1) - x).square_()
        result.add_((y.unsqueeze(1) - y).square_())
        return result.add_((z.unsqueeze(1) - z).square_())

    @staticmethod
    def sample(distances, count):
        """The indices of `count` farthest points, the first one being 0."""
        chosen = [0]
        nearest = distances[0].clone()
        for _ in range(1, count):
            place = nearest.argmax().item()
            chosen.append(place)
            torch.minimum(nearest, distances[place], out=nearest)
        return torch.tensor(chosen)

    @staticmethod
    def ball(distance, radius, samples):
        """distance: M x N; M x samples indices of points, in their order, padded with the first."""
        inside = distance < radius * radius
        rank = torch.cumsum(inside, 1, dtype=torch.int32)
        group, point = torch.nonzero(inside & (rank <= samples), as_tuple=True)
        first = inside.to(torch.uint8).argmax(1, keepdim=True)
        indices = first.expand(-1, samples).contiguous()
        indices[group, (rank[group, point] - 1).long()] = point
        return indices

    @staticmethod
    def perceptron(layers, x):
        for weight, bias in layers:
            x = F.relu_(torch.addmm(bias, x, weight.t()))
        return x

    def abstraction(self, points, features, count, radius, samples, layers):
        distances = self.distances(points)
        chosen = self.sample(distances, count)
        centroids = points[:, chosen]
        indices = self.ball(distances[chosen], radius, samples)
        rows = points.t() if features is None else torch.cat((points.t(), features), 1)
        groups = rows.index_select(0, indices.view(-1)).view(count, samples, -1)
        groups[:, :, :3] -= centroids.t().unsqueeze(1)
        y = self.perceptron(layers, groups.view(count * samples, -1))
        return centroids, y.view(count, samples, -1).amax(1)

    def forward(self, points):
        points, features = self.abstraction(points, None, 512, 0.2, 32, self.mlp[0])
        points, features = self.abstraction(points, features, 128, 0.4, 64, self.mlp[1])
        y = self.perceptron(self.mlp[2], torch.cat((points.t(), features), 1)).amax(0, keepdim=True)
        return F.linear(self.perceptron(self.fc, y), *self.last)


class OnnxPointNet2:
    """The same as a graph, in which a loop samples."""

    def __init__(self, network, points):
        graph = Graph()
        node = graph.node
        coordinates = graph.input("points", [3, points])  # planes, as a cloud lies
        features = None
        for (count, radius, samples), layers in zip(((512, 0.2, 32), (128, 0.4, 64)), network.mlp):
            distances = self.distances(graph, coordinates, points)
            chosen = self.sample(graph, distances, points, count)
            centroids = node("Gather", coordinates, chosen, axis=1)
            indices = self.ball(graph, node("Gather", distances, chosen, axis=0), radius, samples, count)
            groups = node("Sub", node("Gather", node("Transpose", coordinates, perm=[1, 0]), indices),
                          node("Unsqueeze", node("Transpose", centroids, perm=[1, 0]), graph.integers(1)))
            if features is not None:
                groups = node("Concat", groups, node("Gather", features, indices), axis=2)
            y = self.perceptrons(graph, layers, node("Reshape", groups, graph.integers(count * samples, -1)))
            features = node("ReduceMax", node("Reshape", y, graph.integers(count, samples, -1)), graph.integers(1),
                            keepdims=0)
            coordinates, points = centroids, count
        y = node("Concat", node("Transpose", coordinates, perm=[1, 0]), features, axis=1)
        y = node("ReduceMax", self.perceptrons(graph, network.mlp[2], y), graph.integers(0), keepdims=1)
        self.session = graph.session(graph.perceptron(self.perceptrons(graph, network.fc, y), *network.last))

    @staticmethod
    def distances(graph, coordinates, points):
        planes = graph.node("Split", coordinates, graph.integers(1, 1, 1), results=3, axis=0)
        column = graph.integers(points, 1)
        squares = []
        for plane in planes:
            difference = graph.node("Sub", graph.node("Reshape", plane, column), plane)
            squares.append(graph.node("Mul", difference, difference))
        return graph.node("Add", graph.node("Add", squares[0], squares[1]), squares[2])

    @staticmethod
    def sample(graph, distances, points, count):
        """A loop over the nearest distances and the last place, which collects the places."""
        value = helper.make_tensor_value_info
        body = helper.make_graph(
            [helper.make_node("Gather", [distances, "place"], ["row"]),
             helper.make_node("Min", ["nearest", "row"], ["nearer"]),
             helper.make_node("ArgMax", ["nearer"], ["farthest"], axis=0, keepdims=0),
             helper.make_node("Identity", ["go_on"], ["going_on"]),
             helper.make_node("Identity", ["farthest"], ["found"])], "step",
            [value("i", TensorProto.INT64, []), value("go_on", TensorProto.BOOL, []),
             value("nearest", TensorProto.FLOAT, [points]), value("place", TensorProto.INT64, [])],
            [value("going_on", TensorProto.BOOL, []), value("nearer", TensorProto.FLOAT, [points]),
             value("farthest", TensorProto.INT64, []), value("found", TensorProto.INT64, [])])
        start = [graph.constant(count - 1, np.int64), graph.constant(True, np.bool_),
                 graph.constant(np.full(points, np.inf)), graph.constant(0, np.int64)]
        found = graph.node("Loop", *start, results=3, body=body)[2]
        return graph.node("Concat", graph.integers(0), found, axis=0)

    @staticmethod
    def ball(graph, distance, radius, samples, count):
        """The first `samples` points within the ball, in their order, padded with the first one."""
        node = graph.node
        inside = node("Less", distance, graph.constant(radius * radius))
        ones = node("Cast", inside, to=TensorProto.INT32)
        rank = node("CumSum", ones, graph.constant(1, np.int32))
        kept = node("And", inside, node("LessOrEqual", rank, graph.constant(samples, np.int32)))
        places = node("NonZero", kept)  # groups, points
        group, point = node("Split", places, graph.integers(1, 1), results=2, axis=0)
        slot = node("Sub", node("Cast", node("GatherND", rank, node("Transpose", places, perm=[1, 0])),
                                to=TensorProto.INT64), graph.integers(1))
        slots = node("Transpose", node("Concat", group, node("Unsqueeze", slot, graph.integers(0)), axis=0),
                     perm=[1, 0])
        first = node("Expand", node("ArgMax", ones, axis=1, keepdims=1), graph.integers(count, samples))
        return node("ScatterND", first, slots, node("Squeeze", point, graph.integers(0)))

    @staticmethod
    def perceptrons(graph, layers, x):
        for weight, bias in layers:
            x = graph.node("Relu", graph.perceptron(x, weight, bias))
        return x

    def __call__(self, points):
        return torch.from_numpy(self.session.run(None, {"points": points.numpy()})[0])


def main():
    directory = sys.argv[1]
    arrays = {name: torch.from_numpy(array) for name, array in
              read_safetensors(directory + "/dense.safetensors").items()}
    cloud = torch.from_numpy(np.fromfile(directory + "/cloud.f32", dtype="<f4").reshape(3, -1))
    expected = torch.from_numpy(np.fromfile(directory + "/logits.f32", dtype="<f4"))
    network = PointNet2(arrays)
    onnx = OnnxPointNet2(network, cloud.shape[1])

    def checked(name, f):
        difference = (f(cloud)[0] - expected).abs().max().item() / expected.abs().max().item()
        if not difference < 1e-3:
            sys.exit(f"{name}: logits differ by {difference:.2g} of the largest")
        return median_milliseconds(lambda: f(cloud), 2)

    with torch.inference_mode():
        best = {"torch": checked("torch", network), "onnx": checked("onnx", onnx)}
        if "--compile" in sys.argv:
            parts = torch.compile(network.perceptron, dynamic=False), torch.compile(network.ball, dynamic=False)
            network.perceptron, network.ball = parts
            best["torch"] = min(best["torch"], checked("torch", network))
        if "--parts" in sys.argv:
            distances = network.distances(cloud)
            chosen = network.sample(distances, 512)
            rows = torch.rand(16384, 3), torch.rand(8192, 131), torch.rand(128, 259)
            for name, f in {
                    "distances": lambda: network.distances(cloud),
                    "sampling": lambda: network.sample(distances, 512),
                    "ball query": lambda: network.ball(distances[chosen], 0.2, 32),
                    "perceptrons": lambda: [network.perceptron(m, x) for m, x in zip(network.mlp, rows)]}.items():
                print(f"{name} {median_milliseconds(f, 1):.3f}", file=sys.stderr)
    for name, value in best.items():
        print(f"{name} {value:.4f}")


main()
