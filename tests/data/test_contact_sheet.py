"""Contact sheets: which pixels are where, and the room that texts get."""

import numpy as np
import pytest

from vitcifar.data import fonts
from vitcifar.data.contact_sheet import GAP, MARGIN, PANEL, PAPER, Tile, contact_sheet, tile_sheet
from vitcifar.data.dataset import ImageDataset

SHADES = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 0), (0, 90, 90))


def shade(colour, height=8, width=8):
    return np.full((height, width, 3), colour, np.uint8)


def dataset_of(labels, class_names):
    images = np.stack([shade(SHADES[index]) for index in range(len(labels))])
    ids = tuple(map(str, range(len(labels))))
    return ImageDataset(images=images, labels=np.array(labels, np.int64), class_names=class_names, ids=ids)


def squares(sheet, colour):
    """Bounding box (left, top, right, bottom), ends excluded, of all pixels of one colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_tiles_fill_the_sheet_row_by_row():
    tiles = [Tile(image=shade(colour)) for colour in SHADES]
    sheet = tile_sheet(tiles, columns=2, side=40)
    assert sheet.size == (2 * MARGIN + 80 + GAP, 2 * MARGIN + 120 + 2 * GAP)
    for position, colour in enumerate(SHADES):
        x, y = MARGIN + position % 2 * (40 + GAP), MARGIN + position // 2 * (40 + GAP)
        assert squares(sheet, colour) == (x, y, x + 40, y + 40)


def test_captions_stand_below_their_tile_in_the_colour_of_its_tone():
    tiles = [Tile(image=shade(SHADES[2]), title="dog 98%", note="true: cat 1%", tone="bad")] * 2
    sheet = tile_sheet(tiles, columns=1, title="Errors", note="2 of 2", side=60)
    left, _, right, bottom = squares(sheet.crop((0, 0, sheet.width, sheet.height // 2)), SHADES[2])
    caption = sheet.crop((left, bottom, right, bottom + 18))
    assert squares(caption, (0xC2, 0x4F, 0x00))[0] < 5  # the title in the colour of a bad tile
    assert (np.asarray(sheet.crop((left, bottom + 18, right, bottom + 34))) != 255).any()


def test_a_long_caption_does_not_reach_the_next_tile():
    tiles = [Tile(image=shade(SHADES[0]), title="a class with a very long name " * 9), None]
    pixels = np.asarray(tile_sheet(tiles, columns=2, side=60))
    below = pixels[MARGIN + 60 : -MARGIN, MARGIN + 60 : MARGIN + 60 + GAP]
    assert (below == 255).all()


@pytest.mark.parametrize("name", ["Möwe, Žižek, Ёж", "two\nlines", "", "猫"])
def test_any_name_can_be_drawn(name):
    assert tile_sheet([Tile(image=shade(SHADES[0]), title=name)], columns=1, rows=[(name, "")]).mode == "RGB"


@pytest.mark.parametrize("names", ["öж", "猫犬"], ids=["of matplotlib's font", "of no font, or of an installed one"])
def test_letters_beyond_ascii_are_not_drawn_as_missing(names):
    drawn = [np.asarray(tile_sheet([Tile(image=shade(SHADES[0]), title=name)], columns=1)) for name in names]
    assert not np.array_equal(*drawn)


def test_a_text_gets_the_first_font_that_has_its_letters_and_other_letters_are_codes(monkeypatch):
    monkeypatch.setattr(fonts, "FALLBACKS", ("STIXGeneral",))
    fonts.families.cache_clear()
    try:
        assert fonts.drawable("öж")[1].name == "DejaVuSans.ttf"
        assert fonts.drawable("x \u1d81")[0] == "x \u1d81" and fonts.drawable("x \u1d81")[1].stem == "STIXGeneral"
        assert fonts.drawable("é\u2fff", bold=True) == (r"é\u2fff", fonts.own_file(bold=True))
    finally:
        fonts.families.cache_clear()


def test_an_image_keeps_its_shape_on_a_square_tile():
    sheet = tile_sheet([Tile(image=shade(SHADES[1], height=10, width=40))], columns=1, side=80)
    assert squares(sheet, SHADES[1]) == (MARGIN, MARGIN + 30, MARGIN + 80, MARGIN + 50)
    assert sheet.getpixel((MARGIN, MARGIN)) == tuple(bytes.fromhex(PANEL[1:]))


def test_small_images_are_enlarged_without_smoothing_and_large_ones_are_reduced():
    checks = (np.indices((4, 4)).sum(axis=0) % 2 * 255)[..., None].repeat(3, axis=2).astype(np.uint8)
    small = np.asarray(tile_sheet([Tile(image=checks)], columns=1, side=40))[MARGIN : MARGIN + 40, MARGIN : MARGIN + 40]
    assert np.array_equal(small, checks.repeat(10, axis=0).repeat(10, axis=1))
    large = tile_sheet([Tile(image=shade(SHADES[0], 300, 300))], columns=1, side=40)
    assert squares(large, SHADES[0]) == (MARGIN, MARGIN, MARGIN + 40, MARGIN + 40)


def test_a_sheet_without_tiles_shows_its_title():
    sheet = tile_sheet([], columns=6, title="Most confident errors", note="No image is misclassified.")
    assert (np.asarray(sheet) != 255).any() and sheet.height < 120


def test_contact_sheet_has_a_row_for_each_class_in_the_order_of_the_images():
    sheet = contact_sheet(dataset_of([1, 0, 1, 1], ("cat", "dog")), per_class=2)
    cat, first_dog, second_dog = (squares(sheet, SHADES[index]) for index in (1, 0, 2))
    assert cat[0] == first_dog[0] and cat[1] + 72 + GAP == first_dog[1]
    assert second_dog[:2] == (first_dog[0] + 72 + GAP, first_dog[1])
    assert not (np.asarray(sheet) == SHADES[3]).all(axis=2).any()  # the third dog of two
    empty = sheet.getpixel((cat[0] + 72 + GAP, cat[1]))
    assert empty == tuple(bytes.fromhex(PANEL[1:])) and sheet.getpixel((0, 0)) == tuple(bytes.fromhex(PAPER[1:]))


def test_the_names_and_counts_of_rows_do_not_reach_the_tiles():
    tiles = [Tile(image=shade(SHADES[0]))]
    for row in (("0", "1,000 images"), ("a long name of a class " * 9, "1")):
        sheet = tile_sheet(tiles, columns=1, rows=[row])
        left, top, _, bottom = squares(sheet, SHADES[0])
        assert (np.asarray(sheet)[top:bottom, left - GAP : left] == 255).all()
        assert (np.asarray(sheet)[top:bottom, MARGIN : left - GAP] != 255).any()


def test_contact_sheet_shows_sixty_classes_at_most():
    names = tuple(f"class {index}" for index in range(70))
    sheet = contact_sheet(dataset_of([0, 69], names), per_class=1)
    assert squares(sheet, SHADES[0]) and not (np.asarray(sheet) == SHADES[1]).all(axis=2).any()
    assert sheet.height < 62 * (72 + GAP)
