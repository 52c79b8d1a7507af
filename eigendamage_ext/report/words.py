"""Numbers as a reader likes them."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, most: int = 3) -> str:
    """About so many digits: ``"0.05"``, ``"−1.26"``, ``"12345"``, ``"2.5·10⁻⁶"``, ``"10⁻⁴"``."""
    if not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e5:
        long = 10**most <= abs(value) < 1e5
        return (f"{value:.0f}" if long else f"{value:.{most}g}").replace("-", "−")
    mantissa, _, exponent = f"{value:.{most - 1}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return power if mantissa == "1" else f"{mantissa}·{power}".replace("-", "−")


def mean_sd(values: Sequence[float], digits: int = 1) -> str:
    """``"98.1 ± 0.3"``: mean and sample standard deviation; the mean alone of one value, "" of none."""
    if not values:
        return ""
    mean = f"{fmean(values):z.{digits}f}".replace("-", "−")
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean


def digits(value: float) -> int:
    """How many decimals show three digits of a number."""
    return max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0


def unit(value: float) -> tuple[str, float]:
    """The letter for thousands, millions, …, and what it stands for."""
    steps = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
    return next((step for step in steps if value >= step[1]), ("", 1.0))


def short(value: float) -> str:
    """Three digits and a letter: ``"1.23 M"``."""
    letter, size = unit(value)
    return f"{value / size:.3g} {letter}".rstrip()


def speed(ratio: float) -> str:
    """``"runs 1.50 times as fast"``, or ``"takes 1.50 times as long"`` of 0.667."""
    return f"runs {ratio:.2f} times as fast" if ratio >= 0.995 else f"takes {1 / ratio:.2f} times as long"
