"""Colours of the page and of exported figures: one name, a light and a dark value.

Arms use Okabe and Ito's colour-blind-safe set (darkened or lightened where text contrast needs it).
"""

COLOURS = {
    # name: (light, dark)
    "paper": ("#fdfcfa", "#131519"),
    "surface": ("#ffffff", "#1b1e24"),
    "sunken": ("#f4f1ec", "#22262d"),
    "ink": ("#1c1e22", "#ebe8e2"),
    "soft": ("#565b64", "#a9aeb8"),
    "line": ("#ddd8cf", "#363b45"),
    "accent": ("#a63d14", "#f09a6c"),
    "accent-wash": ("#fbeee6", "#3a251a"),
    "good": ("#006b4e", "#4fc79e"),
    "bad": ("#a8330f", "#ff9b73"),
    "heat": ("#0b5fa5", "#4da3e8"),
    "arm-real_only": ("#80868f", "#9aa1ab"),
    "arm-oversampling": ("#0072b2", "#5bb0e8"),
    "arm-naive": ("#d98a00", "#f0b03c"),
    "arm-random_subset": ("#3f9fd0", "#8fd0f2"),
    "arm-band": ("#00855f", "#3ecb9c"),
    "arm-ecc": ("#b0568c", "#e39ac4"),
    "arm-ecc_band": ("#d55e00", "#ff8f4d"),
    "arm-ceiling": ("#3d4148", "#d8d5ce"),
    "arm-other": ("#7a6a4f", "#c9b892"),
}
# Strongest tint of a heat cell: text on it keeps a contrast of 4.5:1 in either theme.
HEAT_MAX = (0.6, 0.5)


def variables(dark: bool) -> str:
    """CSS custom properties of one theme, without a selector."""
    values = "".join(f"--{name}:{pair[dark]};" for name, pair in COLOURS.items())
    return values + f"--heat-max:{HEAT_MAX[dark]};color-scheme:{'dark' if dark else 'light'};"


def css() -> str:
    """Both themes: the reader's preference, unless `data-theme` on the root says otherwise; paper is light."""
    return (
        f":root{{{variables(False)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{variables(True)}}}}}"
        f"@media screen{{:root[data-theme=dark]{{{variables(True)}}}}}"
    )


def arm(name: str) -> str:
    """The CSS colour of an arm or of a variant of it ("band (ratio 0.5)")."""
    base = f"arm-{name.split(' (')[0]}"
    return f"var(--{base if base in COLOURS else 'arm-other'})"
