"""Random draws without a history: each one is a pure function of (seed, purpose, indices).

No generator of training is ever advanced from step to step. Whoever needs randomness names what it is for and where in
training it stands, and gets the same draw on every machine, in every worker process and after every resume.
"""

import hashlib
import random

KEY_BITS = 63


def draw_key(seed: int, purpose: str, *index: int) -> int:
    """Hash (seed, purpose, index...) to a number that seeds one draw.

    The parts are hashed with their boundaries, so that ("a", 1, 12) and ("a", 11, 2) differ. BLAKE2b (RFC 7693) is the
    same on every platform and Python version, unlike `hash`.

    Args:
        seed: the seed of the run.
        purpose: what the draw decides, for example "noise" or "flip".
        index: where in training it stands, for example the step and the index in the global batch.

    Returns:
        A non-negative integer below 2**63, which `torch.Generator.manual_seed` takes as it is.
    """
    text = repr((int(seed), str(purpose), *(int(i) for i in index)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - KEY_BITS)


def rng(seed: int, purpose: str, *index: int) -> random.Random:
    """A fresh generator for the draws of one purpose at one place; see `draw_key`."""
    return random.Random(draw_key(seed, purpose, *index))
