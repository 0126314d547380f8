"""Where a frozen convolution is faster as a matrix product: what backend/generate/convolution.py chooses by.

    python -m benchmarks.convolution [--batch_size 1 2]

For the 3x3 convolutions of Stable Diffusion 1 on a CPU, in channels-last layout: milliseconds forwards and backwards
(with respect to the input) of the library's and of ours, the best of several, and what is chosen.
"""

import argparse
import time
from collections.abc import Callable

import torch

from backend.generate.convolution import LEAST_WEIGHT, MOST_POSITIONS, matrix_convolution

SHAPES = [(320, 320, 32), (320, 320, 16), (640, 640, 16), (640, 640, 8), (1920, 640, 8)]
SHAPES += [(1280, 1280, 16), (1280, 1280, 8), (1280, 1280, 4), (2560, 1280, 4), (1280, 1280, 2), (2560, 1280, 2)]


def best(action: Callable[[], object], times: int = 8) -> float:
    """The least milliseconds that an action takes."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return min(found) * 1000


def both_ways(convolve: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor) -> tuple[float, float]:
    """Milliseconds forwards and backwards."""
    output = convolve(x, weight, None, 1, 1)
    gradient = torch.randn_like(output)
    forwards = best(lambda: convolve(x, weight, None, 1, 1))
    return forwards, best(lambda: torch.autograd.grad(output, x, gradient, retain_graph=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 2])
    for count in parser.parse_args().batch_size:
        for inputs, outputs, edge in SHAPES:
            x = torch.randn(count, inputs, edge, edge).to(memory_format=torch.channels_last).requires_grad_()
            weight = torch.randn(outputs, inputs, 3, 3).to(memory_format=torch.channels_last)
            library, own = both_ways(torch.nn.functional.conv2d, x, weight), both_ways(matrix_convolution, x, weight)
            chosen = weight.numel() >= LEAST_WEIGHT and count * edge * edge <= MOST_POSITIONS
            print(
                f"{count} x {inputs} -> {outputs}, {edge} x {edge}: forwards {library[0]:.1f} and {own[0]:.1f} ms, "
                f"backwards {library[1]:.1f} and {own[1]:.1f} ms; {'ours' if chosen else 'the library'} is taken",
                flush=True,
            )


if __name__ == "__main__":
    main()
