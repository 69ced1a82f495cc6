import logging
import warnings

import matplotlib
import numpy as np
import pytest
from detectron2.structures import BoxMode
from matplotlib import font_manager

from mrcnn_plugin.analysis import fonts, images

# Matplotlib brings DejaVu Sans, which lacks this letter, and STIX, which has it.
RARE = "ᶁ"
OWN = [
    entry
    for entry in font_manager.fontManager.ttflist
    if entry.fname.startswith(matplotlib.get_data_path())
]


@pytest.fixture(autouse=True)
def own_fonts(monkeypatch):
    """Lets Matplotlib know nothing but its own fonts."""
    monkeypatch.setattr(font_manager.fontManager, "ttflist", OWN)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    with matplotlib.rc_context({"font.family": ["sans-serif"]}):
        yield


def label_is_drawn(name):
    """Whether all characters of a label of Detectron2's Visualizer are there."""
    box = {"bbox": [5, 5, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images.draw(np.full((50, 50, 3), 100, np.uint8), [box], [name])
    return not any("missing from font" in str(warning.message) for warning in caught)


def test_a_font_is_found_for_each_character(log):
    name = f"{RARE}og"
    assert not label_is_drawn(name)
    fonts.find_fonts(["cat", name])
    assert len(matplotlib.rcParams["font.family"]) == 2
    assert label_is_drawn(name)
    # Nothing is left to look for.
    fonts.find_fonts([name])
    assert len(matplotlib.rcParams["font.family"]) == 2 and not log.records


def test_a_font_that_is_new_is_found(monkeypatch):
    new = {entry.fname for entry in OWN if entry.name.startswith("STIX")}
    old = [entry for entry in OWN if entry.name.startswith("DejaVu Sans")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", old)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: ["no font.ttf", *new])
    fonts.find_fonts([RARE])
    assert label_is_drawn(RARE)


def test_a_class_that_no_font_can_show_is_named_once(monkeypatch):
    messages = []
    logger = logging.getLogger("detectron2.mrcnn_plugin.analysis")
    monkeypatch.setattr(logger, "log", lambda level, message: messages.append(message))
    for _ in range(2):
        fonts.find_fonts(["cat", "家猫", "狗"])
    (message,) = messages
    assert "'家猫'" in message and "fonts-noto-cjk" in message
    assert matplotlib.rcParams["font.family"] == ["sans-serif"]


def test_no_font_is_looked_for_in_vain(monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: pytest.fail("looked"))
    fonts.find_fonts(["cat", "Größe $x$", "кот", "two\nlines"])
