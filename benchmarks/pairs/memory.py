"""The most memory that this process has in use: its own pages on a CPU, what the allocator has given out on a GPU."""

import os
import threading
import time
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")
INTERVAL = 0.004


def own_bytes() -> int:
    """RssAnon of this process: resident pages that no file is behind."""
    _, resident, shared, *_ = STATM.read_text(encoding="ascii").split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


class Meter:
    """Watches the memory from its making on.

    Args:
        device: cpu or cuda. The CPU's pages are looked at every few milliseconds by a thread, the GPU's allocator
            keeps count itself.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._since = self._life = 0
        if not self._cuda:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._since = max(self._since, own_bytes())
            time.sleep(INTERVAL)

    @property
    def peak(self) -> int:
        """Bytes at most since the last `restart`."""
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        return max(self._since, own_bytes())

    @property
    def life(self) -> int:
        """Bytes at most since the making."""
        return max(self._life, self.peak)

    def restart(self) -> None:
        """Begin a new `peak`."""
        self._life, self._since = self.life, 0
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
