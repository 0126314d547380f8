"""What a command's log says of the device that it computes on."""

import warnings

import torch

from backend import gpus


def device_line(device: torch.device) -> str:
    """One line: the GPU and its memory as torch reports them, or why the one that is there is not used.

    "" on a machine without a GPU, where there is nothing to tell.
    """
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        count = torch.cuda.device_count()
        others = f" ({count} are here)" if count > 1 else ""
        return f"GPU: {found.name}, {gpus.in_gigabytes(found.total_memory)}{others}"
    if device.type != "cpu":
        return f"GPU: {device.type}"
    verdict = gpus.verdict()
    if verdict.unused:
        return verdict.line
    if not verdict.there:
        return ""
    if seen_by_torch():
        return f"The CPU computes, as was asked for; {verdict.line} is not used"
    return f"The GPU is not used ({verdict.line.removeprefix('GPU: ')}): torch says: {torchs_reason()}"


def seen_by_torch() -> bool:
    """Whether torch can use a GPU; what it warns of is told in the line of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def torchs_reason() -> str:
    """Why torch cannot use the GPU, in its own words."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return (str(error).strip().split("\n") or ["nothing"])[0].rstrip(".") + " (docs/gpus.md)"
    return "it sees none (docs/gpus.md)"
