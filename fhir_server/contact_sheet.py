"""A contact sheet: small pictures in a grid, each with a caption below."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 8  # pixels between pictures
CAPTION = 22  # pixels for the line below a picture
BLACK, GREY = (0, 0, 0), (190, 190, 190)


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]], *, side: int) -> Image.Image:
    """Return all pictures, each fitted into a square of `side` pixels, on black, in a grid about as wide as 4:3."""
    columns = max(1, math.ceil(math.sqrt(len(pictures) * 4 / 3)))
    rows = max(1, math.ceil(len(pictures) / columns))
    cell_width, cell_height = side + MARGIN, side + CAPTION + MARGIN
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), BLACK)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for n, (caption, picture) in enumerate(pictures):
        left = MARGIN + n % columns * cell_width
        top = MARGIN + n // columns * cell_height
        fitted = picture.convert("RGB")
        fitted.thumbnail((side, side))
        sheet.paste(fitted, (left + (side - fitted.width) // 2, top + (side - fitted.height) // 2))
        draw.text((left + side / 2, top + side + 3), caption, fill=GREY, font=font, anchor="ma")
    return sheet
