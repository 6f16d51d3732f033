"""The PyTorch side of `benchmarks.speed.client_step`: a hand-written loop, in a process of its own.

Reads one command a line, "channels_last STEPS" or "default STEPS", trains that many steps and
answers with the seconds they took as JSON. Blocked on its input it uses no processor.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

BATCH = 50


def make_model() -> nn.Module:
    """The federated CNN, in the order our own has: a pool before its ReLU is the cheaper one."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(32, 64, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1600, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, 10),
    )  # fmt: skip


def train(layout: str, steps: int) -> float:
    """Seconds that the given number of local steps take: one client, global-norm clip, SGD."""
    torch.manual_seed(0)
    format_ = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model = make_model().to(memory_format=format_)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=1e-4)
    images = torch.randn(steps, BATCH, 3, 32, 32)
    batches = [batch.contiguous(memory_format=format_) for batch in images]
    labels = torch.randint(0, 10, (steps, BATCH))
    begin = time.perf_counter()
    for batch, label in zip(batches, labels, strict=True):
        optimizer.zero_grad()
        cross_entropy(model(batch), label).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return time.perf_counter() - begin


def peak_mib() -> float:
    """Largest resident memory of this process; rusage would count the parent at the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        layout, steps = line.split()
        seconds = train(layout, int(steps))
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), flush=True)


if __name__ == "__main__":
    main()
