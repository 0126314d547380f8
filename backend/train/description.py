"""What a file says of itself (ModelSpec's fields that a user fills in), and the small picture that it carries."""

import base64
from io import BytesIO
from pathlib import Path

from backend.config.training.description import Description
from backend.errors import UserError
from backend.images import DECODE_ERRORS, opened, reason, upright

# The size that ModelSpec recommends.
THUMBNAIL = (256, 256)
PREFIX = "metadata_"


def describe_file(options: Description) -> dict[str, str]:
    """The fields of ModelSpec by name, without those that are not given.

    Raises:
        UserError: the thumbnail is no picture.
    """
    given = {
        name.removeprefix(PREFIX): value for name, value in options.model_dump().items() if value not in (None, "")
    }
    return {name: thumbnail(value) if name == "thumbnail" else value for name, value in given.items()}


def thumbnail(path: Path) -> str:
    """A picture of at most 256x256 pixels as a data URL: JPEG, or PNG where it is transparent in places.

    Raises:
        UserError: there is no picture at this path.
    """
    try:
        with opened(path) as image:
            picture = upright(image)
            picture.thumbnail(THUMBNAIL)
            clear = "A" in picture.getbands() or "transparency" in picture.info
            kind = "png" if clear and picture.convert("RGBA").getextrema()[3][0] < 255 else "jpeg"
            content = BytesIO()
            picture.convert("RGBA" if kind == "png" else "RGB").save(content, kind, quality=85)
    except DECODE_ERRORS as error:
        raise UserError(f"{path} is no picture that can be read ({reason(error)})", "metadata_thumbnail") from None
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
