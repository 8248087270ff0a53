"""Draws the README's picture of the rendered set: python scripts/contact_sheet.py"""

import argparse
import pathlib
import sys

from PIL import Image, ImageDraw

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_tfds.rendered import renderer, vehicle  # noqa: E402

MODALITIES = ("visible", "near-infrared", "thermal")
COLUMNS = ("no flare", "no flare, another view", "flare, visible + near-infrared blinded")
TILE, GAP, HEADER = (160, 80), 6, 34


def choose(seed: int, identity: int) -> list[renderer.Sample]:
    """Two views of an identity by day and night without flare, and one with two flared pictures."""
    clean = [renderer.render(seed, identity, sample, flare=False) for sample in range(16)]
    slanting = [i for i, sample in enumerate(clean) if sample.view % 2 == 0]
    day = next(i for i in slanting if not clean[i].night)
    night = next((i for i in slanting if clean[i].night and clean[i].view != clean[day].view), None)
    second = night if night is not None and identity % 2 else next(
        i for i in slanting if clean[i].view != clean[day].view and not clean[i].night
    )  # fmt: skip
    for sample in slanting + list(range(16)):
        flared = renderer.render(seed, identity, sample, flare=True)
        if all(flared.flared):
            return [clean[day], clean[second], flared]
    raise SystemExit(f"Identity {identity} has no sample with two flared pictures; choose another.")


def draw(seed: int, identities: list[int]) -> Image.Image:
    """The sheet: one row per identity, three modalities for each of the `COLUMNS`."""
    block = 3 * TILE[0] + GAP
    size = (len(COLUMNS) * block + GAP, HEADER + len(identities) * (TILE[1] + GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(COLUMNS):
        left = GAP + column * block
        pen.text((left, 3), title, fill="black")
        for place, name in enumerate(MODALITIES):
            pen.text((left + place * TILE[0], 18), name, fill=(110, 110, 110))
    for row, identity in enumerate(identities):
        for column, sample in enumerate(choose(seed, identity)):
            for place, image in enumerate(sample.images):
                at = (GAP + column * block + place * TILE[0], HEADER + row * (TILE[1] + GAP))
                sheet.paste(image.resize(TILE, Image.Resampling.LANCZOS), at)
    return sheet


def reduce_colours(sheet: Image.Image) -> Image.Image:
    """The sheet in 256 colours, a third of the size: 64 are greys, the rest adapted."""
    step = 3 * TILE[0] + GAP
    visible = Image.new("RGB", (len(COLUMNS) * TILE[0], sheet.height - HEADER))
    for column in range(len(COLUMNS)):
        left = GAP + column * step
        part = sheet.crop((left, HEADER, left + TILE[0], sheet.height))
        visible.paste(part, (column * TILE[0], 0))
    adapted = visible.quantize(192, method=Image.Quantize.MAXCOVERAGE).getpalette()[: 3 * 192]
    greys = [level for k in range(64) for level in (round(k * 255 / 63),) * 3]
    palette = Image.new("P", (1, 1))
    palette.putpalette(adapted + greys)
    return sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def one_of_each_kind(seed: int) -> list[int]:
    """The first identity of every kind of body."""
    first = {}
    for identity in range(200):
        first.setdefault(vehicle.vehicle(seed, identity).kind, identity)
    return sorted(first.values())


def main() -> None:
    """Writes the sheet and prints where it lies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(ROOT / "docs" / "contact_sheet.png"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--identities", type=int, nargs="+", help="default: one of each kind")
    options = parser.parse_args()
    sheet = draw(options.seed, options.identities or one_of_each_kind(options.seed))
    reduce_colours(sheet).save(options.out, optimize=True)
    print(options.out)


if __name__ == "__main__":
    main()
