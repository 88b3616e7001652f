"""A `Drawing` as bytes: SVG (text stays text), PDF (vectors, base fonts) and PNG (drawn by Pillow)."""

import base64
import io
import itertools
import zlib
from html import escape

from PIL import Image, ImageDraw, ImageFont

from raydr.report.drawing import Drawing, Shape

# PNG pixels per px: 3 gives 288 dpi at the size of the page.
SCALE = 3
# Advance widths of Helvetica (Adobe's AFM), thousandths of the size, characters 32-126.
_WIDTHS = (
    "278 278 355 556 556 889 667 191 333 333 389 584 278 333 278 278 556 556 556 556 556 556 556 556 556 556 278 278 "
    "584 584 584 556 1015 667 667 722 722 667 611 778 722 278 500 667 556 833 722 778 667 778 722 667 611 722 667 944 "
    "667 667 611 278 278 278 469 556 333 556 556 500 556 556 278 556 556 222 222 500 222 833 556 556 556 556 333 500 "
    "278 556 500 722 500 500 500 334 260 334 584"
)
HELVETICA = {chr(32 + i): int(width) for i, width in enumerate(_WIDTHS.split())}
# Distance of a circle's Bezier handles from its ends, in radii.
_KAPPA = 0.5522847498


def svg(drawing: Drawing) -> bytes:
    """A standalone SVG file."""
    body = "".join(_svg_shape(shape) for shape in drawing.shapes)
    size = f'width="{drawing.width:g}" height="{drawing.height:g}" viewBox="0 0 {drawing.width:g} {drawing.height:g}"'
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" {size} '
        f'font-family="Helvetica, Arial, sans-serif"><rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'
    ).encode()


def _svg_shape(shape: Shape) -> str:
    x, y = shape.points[0]
    paint = f'fill="{shape.fill or "none"}" opacity="{shape.opacity:g}"'
    if shape.stroke:
        paint += f' stroke="{shape.stroke}" stroke-width="{shape.stroke_width:g}" stroke-linecap="round"'
    if shape.dashes:
        paint += f' stroke-dasharray="{" ".join(f"{dash:g}" for dash in shape.dashes)}"'
    path = " ".join(f"{px:.2f},{py:.2f}" for px, py in shape.points)
    if shape.kind == "line":
        return f'<polyline points="{path}" {paint}/>'
    if shape.kind == "polygon":
        return f'<polygon points="{path}" {paint}/>'
    if shape.kind == "circle":
        return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{shape.size:.2f}" {paint}/>'
    if shape.kind == "image":
        data = base64.b64encode(shape.data).decode()
        side = f'width="{shape.size:g}" height="{shape.size:g}"'
        return f'<image x="{x:.2f}" y="{y:.2f}" {side} href="data:image/jpeg;base64,{data}"/>'
    weight = ' font-weight="bold"' if shape.bold else ""
    place = f'x="{x:.2f}" y="{y:.2f}" font-size="{shape.size:g}" text-anchor="{shape.anchor}"{weight}'
    return f"<text {place} {paint}>{escape(shape.text)}</text>"


def png(drawing: Drawing) -> bytes:
    """A PNG of `SCALE` pixels per px on white, drawn twice as large and reduced (Pillow does not smooth lines)."""
    factor = 2 * SCALE
    size = (round(drawing.width * factor), round(drawing.height * factor))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas, "RGBA")  # blends what is translucent
    for shape in drawing.shapes:
        if shape.kind == "image":
            side = round(shape.size * factor)
            picture = Image.open(io.BytesIO(shape.data)).resize((side, side), Image.Resampling.LANCZOS)
            canvas.paste(picture, (round(shape.points[0][0] * factor), round(shape.points[0][1] * factor)))
        else:
            _draw(draw, shape, factor)
    buffer = io.BytesIO()
    canvas.reduce(2).save(buffer, "PNG", dpi=(96 * SCALE, 96 * SCALE))
    return buffer.getvalue()


def _draw(draw: ImageDraw.ImageDraw, shape: Shape, factor: float) -> None:
    points = [(x * factor, y * factor) for x, y in shape.points]
    width = max(1, round(shape.stroke_width * factor))
    fill, stroke = (_translucent(colour, shape.opacity) for colour in (shape.fill, shape.stroke))
    if shape.kind == "line" and stroke:
        for piece in _dashed(points, [dash * factor for dash in shape.dashes]):
            draw.line(piece, fill=stroke, width=width, joint="curve")
    elif shape.kind == "polygon" and fill:
        draw.polygon(points, fill=fill)
    elif shape.kind == "circle":
        (x, y), r = points[0], shape.size * factor
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=stroke, width=width if stroke else 0)
    elif shape.kind == "text" and fill:
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        font = ImageFont.load_default(shape.size * factor)
        # Pillow's own font has one weight: bold is the same outline, stroked.
        bold = round(0.025 * shape.size * factor) if shape.bold else 0
        text = shape.text.replace("−", "-").replace("–", "-")  # that font has neither
        draw.text(points[0], text, fill=fill, font=font, anchor=anchor, stroke_width=bold)


def _translucent(colour: str | None, opacity: float) -> tuple[int, int, int, int] | None:
    if colour is None:
        return None
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue, round(255 * opacity)


def _dashed(points: list[tuple[float, float]], dashes: list[float]) -> list[list[tuple[float, float]]]:
    """The drawn pieces of a polyline; the line itself without dashes."""
    if not dashes:
        return [points]
    pieces, on, left = [], True, dashes[0]
    turn = 0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        done = 0.0
        while done < length:
            step = min(left, length - done)
            ends = [(x0 + (x1 - x0) * share / length, y0 + (y1 - y0) * share / length) for share in (done, done + step)]
            pieces += [ends] if on else []
            done, left = done + step, left - step
            if left <= 0:
                turn, on = turn + 1, not on
                left = dashes[turn % len(dashes)]
    return pieces


def pdf(drawing: Drawing) -> bytes:
    """A PDF page of the drawing's size (1 px = .75 pt): vectors, Helvetica, JPEGs as they are."""
    opacities = sorted({shape.opacity for shape in drawing.shapes})
    pictures = [shape for shape in drawing.shapes if shape.kind == "image"]
    operators = [f".75 0 0 -.75 0 {0.75 * drawing.height:.2f} cm 1 J 1 j"]
    operators += [f"q /O{opacities.index(s.opacity)} gs {_pdf_shape(s, pictures)} Q" for s in drawing.shapes]
    content = zlib.compress("\n".join(operators).encode("cp1252", "replace"))
    fonts = [
        f"<</Type/Font/Subtype/Type1/BaseFont/{name}/Encoding/WinAnsiEncoding>>".encode()
        for name in ("Helvetica", "Helvetica-Bold")
    ]
    states = "".join(f"/O{i}<</ca {value:g}/CA {value:g}>>" for i, value in enumerate(opacities))
    images = "".join(f"/I{i} {6 + i + 1} 0 R" for i in range(len(pictures)))
    resources = f"<</Font<</F0 4 0 R/F1 5 0 R>>/ExtGState<<{states}>>/XObject<<{images}>>>>"
    box = f"[0 0 {0.75 * drawing.width:.2f} {0.75 * drawing.height:.2f}]"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        f"<</Type/Page/Parent 2 0 R/MediaBox{box}/Contents 6 0 R/Resources{resources}>>".encode(),
        *fonts,
        _stream("/Filter/FlateDecode", content),
        *(_pdf_image(picture) for picture in pictures),
    ]
    out = io.BytesIO(b"%PDF-1.4\n")
    out.seek(0, io.SEEK_END)
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
    out.write(b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start))
    return out.getvalue()


def _stream(entries: str, data: bytes) -> bytes:
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (entries.encode(), len(data), data)


def _pdf_image(shape: Shape) -> bytes:
    width, height = Image.open(io.BytesIO(shape.data)).size
    size = f"/Width {width}/Height {height}/ColorSpace/DeviceRGB/BitsPerComponent 8"
    return _stream(f"/Type/XObject/Subtype/Image{size}/Filter/DCTDecode", shape.data)


def _pdf_shape(shape: Shape, pictures: list[Shape]) -> str:
    x, y = shape.points[0]
    paint = f"{_rgb(shape.fill)} rg " if shape.fill else ""
    if shape.stroke:
        dashes = " ".join(f"{dash:g}" for dash in shape.dashes)
        paint += f"{_rgb(shape.stroke)} RG {shape.stroke_width:g} w [{dashes}] 0 d "
    finish = {(True, True): "B", (True, False): "f", (False, True): "S"}.get(
        (bool(shape.fill), bool(shape.stroke)), "n"
    )
    if shape.kind == "image":
        return f"{shape.size:g} 0 0 {-shape.size:g} {x:.2f} {y + shape.size:.2f} cm /I{pictures.index(shape)} Do"
    if shape.kind == "text":
        width = sum(HELVETICA.get(letter, 556) for letter in shape.text) * shape.size / 1000
        x -= {"start": 0, "middle": width / 2, "end": width}[shape.anchor]
        # WinAnsi has no minus sign; an en dash is as wide as a digit.
        text = shape.text.replace("−", "–").replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        return f"{paint}BT /F{int(shape.bold)} {shape.size:g} Tf 1 0 0 -1 {x:.2f} {y:.2f} Tm ({text}) Tj ET"
    if shape.kind == "circle":
        r, k = shape.size, shape.size * _KAPPA
        curves = [
            (x + r, y + k, x + k, y + r, x, y + r),
            (x - k, y + r, x - r, y + k, x - r, y),
            (x - r, y - k, x - k, y - r, x, y - r),
            (x + k, y - r, x + r, y - k, x + r, y),
        ]
        path = f"{x + r:.2f} {y:.2f} m " + " ".join(" ".join(f"{v:.2f}" for v in curve) + " c" for curve in curves)
        return f"{paint}{path} h {finish}"
    path = " ".join(f"{px:.2f} {py:.2f} {'l' if i else 'm'}" for i, (px, py) in enumerate(shape.points))
    return f"{paint}{path}{' h' if shape.kind == 'polygon' else ''} {finish}"


def _rgb(colour: str) -> str:
    return " ".join(f"{int(colour[i : i + 2], 16) / 255:.3f}" for i in (1, 3, 5))
