"""The numbering of the U-Net's blocks that block-wise rates and ranks refer to.

SD1 and SD2 have 25: 0 is empty, then every row of the way down (two residual rows and a downsampler per level), the
middle as one, and every row of the way up. A row is `level * rows_per_level + layer`.
"""

from typing import Literal

Part = Literal["down", "mid", "up"]


def block_index(part: Part, row: int, levels: int = 4, rows_per_level: int = 3) -> int:
    """The block that a row of the U-Net belongs to.

    Args:
        part: the way down, the middle or the way up.
        row: `level * rows_per_level + layer`; the sampler of a level counts as its last layer. The middle has no rows.
        levels: resolutions of the U-Net.
        rows_per_level: residual rows per level on the way down, plus one for the downsampler.
    """
    middle = levels * rows_per_level
    return {"down": 1 + row, "mid": middle, "up": middle + 1 + row}[part]
