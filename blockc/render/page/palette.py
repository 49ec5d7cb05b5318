"""Colours, as CSS: a hue for each base, a strength for how many apps share a block, a tone for each part of memory.

The first two hues are told apart with any form of colour blindness; every picture says the same in words, too.
"""

from __future__ import annotations

from typing import Final

from blockc.render.facts import LEVELS

_HUES_LIGHT: Final = ("#1767ad", "#c46f00", "#0b8262", "#a83a75", "#5a4fb3", "#74701a", "#147f92", "#b0432a")
_HUES_DARK: Final = ("#62b0f0", "#f2a63c", "#45caa0", "#ea8abb", "#a79df5", "#cdc853", "#57cbe0", "#f48c6f")
_STRENGTHS: Final = (0.14, 0.32, 0.52, 0.76, 1.0)
_PAPER_LIGHT: Final = "#ffffff"
_PAPER_DARK: Final = "#14171c"
_PARTS_LIGHT: Final = {
    "weights": "#2b3340",
    "sides": "#c2410c",
    "kv": "#7b8798",
    "workspace": "#aab3c0",
    "reserve": "#cfd5dd",
}
_PARTS_DARK: Final = {
    "weights": "#dfe4ec",
    "sides": "#fb923c",
    "kv": "#8793a5",
    "workspace": "#5c6675",
    "reserve": "#3d4551",
}

FAMILIES: Final = len(_HUES_LIGHT)


def family_class(family: int) -> str:
    """The class of a base's colour; after the last they begin again."""
    return f"f{family % FAMILIES}"


def colours_css(*, both: bool = True) -> str:
    """Rules for ``.f0 .s1`` (fill and stroke) and ``.m-kv``. ``both``: with those for dark surroundings."""
    light = _rules(_HUES_LIGHT, _PARTS_LIGHT, _PAPER_LIGHT)
    if not both:
        return light
    dark = _rules(_HUES_DARK, _PARTS_DARK, _PAPER_DARK)
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _rules(hues: tuple[str, ...], parts: dict[str, str], paper: str) -> str:
    rules = []
    for index, hue in enumerate(hues):
        rules.append(f".f{index}{{stroke:{hue}}}.f{index}.ink{{fill:{hue};stroke:none}}")
        for level in range(LEVELS):
            mixed = _mix(hue, paper, _STRENGTHS[level])
            words = "#fff" if _is_dark(mixed) else "#10151c"
            rules.append(f".f{index}.s{level + 1}{{fill:{mixed}}}.f{index}.on{level + 1}{{fill:{words};stroke:none}}")
    rules += [f".m-{part}{{fill:{colour}}}" for part, colour in parts.items()]
    return "".join(rules)


def _mix(colour: str, paper: str, share: float) -> str:
    pairs = zip(_channels(colour), _channels(paper), strict=True)
    return "#" + "".join(f"{round(share * one + (1 - share) * other):02x}" for one, other in pairs)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _is_dark(colour: str) -> bool:
    """Whether white words on it have more contrast than black ones (WCAG 2.2, relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.179
