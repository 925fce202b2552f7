"""PointNet++ (single scale) in PyTorch on one thread, as fast as we could make it, on the weights, the cloud and the
logits that `pointnet2_latency --save DIR` wrote: checks the logits, then prints the median milliseconds a cloud.

Tuned: norms folded into the convolutions, one matrix of distances for sampling and ball query, which leaves two small
operations a sampled point, ball query without sorting (cumulative sums of the hits), shared perceptrons as matrix
products on channels-last groups, inference mode. `--compile` also tries torch.compile, and the better of the two
counts; `--parts` prints what the parts of the first abstraction and all perceptrons take.
"""
import json
import statistics
import struct
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def read_safetensors(path):
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        first, last = entry["data_offsets"]
        values = np.frombuffer(data[8 + length + first:8 + length + last], dtype="<f4").copy()
        arrays[name] = torch.from_numpy(values).reshape(entry["shape"])
    return arrays


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


def milliseconds(f, seconds):
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        f()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main():
    directory = sys.argv[1]
    arrays = read_safetensors(directory + "/dense.safetensors")
    cloud = torch.from_numpy(np.fromfile(directory + "/cloud.f32", dtype="<f4").reshape(3, -1))
    expected = torch.from_numpy(np.fromfile(directory + "/logits.f32", dtype="<f4"))
    network = PointNet2(arrays)
    with torch.inference_mode():
        difference = (network(cloud)[0] - expected).abs().max().item() / expected.abs().max().item()
        if not difference < 1e-3:
            sys.exit(f"logits differ by {difference:.2g} of the largest")
        best = milliseconds(lambda: network(cloud), 2)
        if "--compile" in sys.argv:
            parts = torch.compile(network.perceptron, dynamic=False), torch.compile(network.ball, dynamic=False)
            network.perceptron, network.ball = parts
            network(cloud)
            best = min(best, milliseconds(lambda: network(cloud), 2))
        if "--parts" in sys.argv:
            distances = network.distances(cloud)
            chosen = network.sample(distances, 512)
            rows = torch.rand(16384, 3), torch.rand(8192, 131), torch.rand(128, 259)
            for name, f in {
                    "distances": lambda: network.distances(cloud),
                    "sampling": lambda: network.sample(distances, 512),
                    "ball query": lambda: network.ball(distances[chosen], 0.2, 32),
                    "perceptrons": lambda: [network.perceptron(m, x) for m, x in zip(network.mlp, rows)]}.items():
                print(f"{name} {milliseconds(f, 1):.3f}", file=sys.stderr)
    print(f"{best:.4f}")


main()
