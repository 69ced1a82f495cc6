"""Fonts for names that Matplotlib's own font cannot show, such as Chinese ones."""

import contextlib
import logging
from collections.abc import Iterable

from detectron2.utils.logger import log_first_n
from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes

# It has a box for every character.
_NO_FONT = "Last Resort"


def find_fonts(names: Iterable[str]) -> None:
    """Lets Matplotlib use installed fonts for the characters of class names that its own font lacks.

    Matplotlib takes each character from the first family of `rcParams["font.family"]` that has it. The families that
    are needed are appended. A warning names a class whose characters no font has.
    """
    # character -> a name with it
    missing = {char: name for name in names for char in name if char.isprintable()}
    for family in rcParams["font.family"]:
        # A text would be a pattern, in which some characters have a meaning.
        properties = font_manager.FontProperties(family=[family])
        missing = _without(missing, font_manager.findfont(properties))
    if not missing:
        return
    _add_new_fonts()
    # The upright font of each family that is neither bold nor light.
    files = {
        entry.name: entry.fname
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.weight == 400 and not entry.name.startswith(_NO_FONT)
    }
    left = {family: len(_without(missing, file)) for family, file in files.items()}
    # Few families suffice if those with the most characters come first. Sans serif is what the other text has.
    for family in sorted(left, key=lambda family: (left[family], "Sans" not in family, family)):
        if len(rest := _without(missing, files[family])) < len(missing):
            rcParams["font.family"] = [*rcParams["font.family"], family]
            missing = rest
    if missing:
        char, name = next(iter(missing.items()))
        log_first_n(
            logging.WARNING,
            f"The class {name!r} is not shown as it should be, because no installed font has {char!r}. Install a font "
            f"that has it, for example Debian's package fonts-noto-cjk for Chinese, Japanese and Korean.",
            name="detectron2.mrcnn_plugin.analysis",
            key="message",
        )


def use_fonts(axes: Axes) -> None:
    """Lets the texts in a picture of Detectron2's Visualizer have the fonts, for which it sets a single family."""
    for text in axes.texts:
        text.set_fontfamily(rcParams["font.family"])


def _without(missing: dict[str, str], file: str) -> dict[str, str]:
    """Leaves out the characters that a font has."""
    try:
        known = font_manager.get_font(file).get_charmap()
    except (OSError, RuntimeError):
        # Not installed any more, or damaged.
        return missing
    return {char: name for char, name in missing.items() if ord(char) not in known}


def _add_new_fonts() -> None:
    """Adds the fonts that were installed after Matplotlib had made its list, which it keeps on the disk."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            # FreeType raises several types for fonts that it cannot read.
            with contextlib.suppress(Exception):
                font_manager.fontManager.addfont(path)
