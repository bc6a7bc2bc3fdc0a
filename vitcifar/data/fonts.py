"""Fonts that draw class names: matplotlib's own, and those of other scripts where they are installed.

No Python package of ours brings a font of Chinese, Japanese or Korean.
"""

from functools import cache
from pathlib import Path

# Families of other scripts on common systems, for class names that matplotlib's own font lacks.
FALLBACKS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR", "Source Han Sans"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Arabic"),
    *("Noto Sans Hebrew", "Noto Sans Bengali", "Noto Sans Tamil", "Nirmala UI", "Leelawadee UI", "Arial Unicode MS"),
)


@cache
def families() -> dict[str, Path]:
    """The files of matplotlib's own font, first, and of each font of FALLBACKS that is installed."""
    from matplotlib import font_manager

    installed = {
        font.name: Path(font.fname)
        for font in font_manager.fontManager.ttflist
        if font.name in FALLBACKS and (font.weight, font.style) == (400, "normal")
    }
    return {"DejaVu Sans": own_file(), **{name: installed[name] for name in FALLBACKS if name in installed}}


def own_file(*, bold: bool = False) -> Path:
    """DejaVu Sans, which matplotlib brings along: the font in Pillow has no letters beyond ASCII."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"


@cache
def glyphs(file: Path) -> frozenset[int]:
    """The code points that the font in a file can draw."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(file).get_charmap())


def drawable(text: str, *, bold: bool = False) -> tuple[str, Path]:
    """A text, and the file of the first font that has all its letters.

    A letter that no font here has is written as its code, such as \\u732b: boxes would make all names look alike.
    """
    own = own_file(bold=bold)
    if text.isascii():
        return text, own
    needed = frozenset(map(ord, text))
    for file in (own, *families().values()):
        if needed <= glyphs(file):
            return text, file
    known = glyphs(own)
    return "".join(c if ord(c) in known else c.encode("ascii", "backslashreplace").decode() for c in text), own
