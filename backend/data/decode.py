"""Pixels of an opened picture: any mode as 8-bit colours. Opening one is in `backend.images`. No torch."""

import numpy as np
from PIL import Image

from backend.threads import cpu_count as cpu_count


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits; every other mode as it is."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    # Pillow clips these modes at 255; a PNG holds 16 bits in them.
    return Image.fromarray((np.asarray(image, dtype=np.float64) / 257 + 0.5).clip(0, 255).astype(np.uint8))


def flatten(image: Image.Image, ground: int = 255) -> Image.Image:
    """Any mode to RGB: 16-bit scaled to 8, transparency on a ground of this grey, by default white."""
    image = eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    behind = Image.new("RGBA", rgba.size, (ground, ground, ground, 255))
    return Image.alpha_composite(behind, rgba).convert("RGB")


def opacity(image: Image.Image) -> Image.Image:
    """How opaque each pixel is, as 8-bit grey; all white where the picture knows no transparency."""
    if not image.has_transparency_data:
        return Image.new("L", image.size, 255)
    return image.convert("RGBA").getchannel("A")
