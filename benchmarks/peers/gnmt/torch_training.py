"""A training step of the small GNMT in PyTorch on all cores: 256 wide, 2 + 2 layers, 8,000 words, batch 64, length 20,
dropout 0.2, label smoothing 0.1. Prints the median milliseconds of forward and backward pass, and of clipping with
AdamW."""
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, WORDS, BATCH, LENGTH = 256, 8000, 64, 20


class Gnmt(nn.Module):
    def __init__(self):
        super().__init__()
        self.source = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.target = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.encoder = nn.ModuleList([nn.LSTM(WIDTH, WIDTH, bidirectional=True), nn.LSTM(2 * WIDTH, WIDTH)])
        self.decoder = nn.ModuleList([nn.LSTM(WIDTH, WIDTH), nn.LSTM(2 * WIDTH, WIDTH)])
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.score = nn.Parameter(torch.rand(WIDTH) - 0.5)
        self.gain = nn.Parameter(torch.ones(1))
        self.classifier = nn.Linear(WIDTH, WORDS)
        self.drop = nn.Dropout(0.2)

    def forward(self, source, target):
        x = self.drop(self.source(source))
        x, _ = self.encoder[0](x)
        memory, _ = self.encoder[1](self.drop(x))
        x, _ = self.decoder[0](self.drop(self.target(target)))
        hidden = torch.tanh(self.query(x).transpose(0, 1).unsqueeze(2) + self.key(memory).transpose(0, 1).unsqueeze(1))
        alpha = torch.softmax(hidden @ (self.gain * self.score / self.score.norm()), -1)
        context = (alpha @ memory.transpose(0, 1)).transpose(0, 1)
        x, _ = self.decoder[1](self.drop(torch.cat((x, context), 2)))
        return self.classifier(x)


def main():
    torch.manual_seed(1)
    network = Gnmt()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    source, words, targets = (torch.randint(4, WORDS, (LENGTH, BATCH)) for _ in range(3))
    passes, updates = [], []
    for _ in range(15):
        start = time.perf_counter()
        optimiser.zero_grad()
        logits = network(source, words)
        loss = F.cross_entropy(logits.view(-1, WORDS), targets.view(-1), label_smoothing=0.1, ignore_index=0)
        loss.backward()
        middle = time.perf_counter()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        passes.append(1e3 * (middle - start))
        updates.append(1e3 * (time.perf_counter() - middle))
    print(f"{statistics.median(passes):.2f} {statistics.median(updates):.2f}")


main()
