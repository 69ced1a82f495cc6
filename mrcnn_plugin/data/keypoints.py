"""Left and right in the names of keypoints."""

import re
from collections.abc import Sequence

_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}
# "upright_left" is left: what stands alone counts before parts of words.
_SIDES = (
    re.compile(r"(?<![^_. -])(left|right|l|r)(?![^_. -])"),
    re.compile(r"left|right"),
)


def find_flip_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """(left, right) of the keypoints that a horizontal flip exchanges, by their names in any case."""
    found = {name.lower(): name for name in names}
    # Left comes before right in the alphabet, and so each pair is found once.
    return [
        (name, found[mirrored])
        for text, name in found.items()
        if text < (mirrored := _mirror(text)) and mirrored in found
    ]


def find_not_exchanged(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The names of a left or a right keypoint that is in none of the pairs; all names if there is no pair."""
    paired = {name for pair in pairs for name in pair}
    return [
        name
        for name in names
        if name not in paired and (not pairs or _mirror(name.lower()) != name.lower())
    ]


def _mirror(text: str) -> str:
    for sides in _SIDES:
        mirrored = sides.sub(lambda match: _OTHER[match[0]], text)
        if mirrored != text:
            return mirrored
    return text
