"""Numbers as people read them: one form for the terminal, pages and the console.

A share is written in percent, and a difference of shares in points: `+28.5 points (17.0 to 38.0)`. The range
in brackets has no sign of its own unless it contains zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

MINUS, UNKNOWN, NO_RANGE = "−", "–", "no range yet"
BETTER, WORSE, OPEN = "✓ better", "✗ worse", "? not clear yet"


class Scale(StrEnum):
    """What a number counts."""

    SHARE = "share"
    """0 to 1: a value in percent, a difference in points."""
    SECONDS = "seconds"
    """Written in seconds or milliseconds."""
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Quantity:
    """The form of a metric's numbers. `unit` is the noun of a plain number; empty if it has none."""

    scale: Scale = Scale.NUMBER
    unit: str = ""

    def value(self, number: float) -> str:
        """One value.

        >>> SHARE.value(0.8049), TIME.value(0.12), TIME.value(1.5), Quantity(unit="tokens").value(1234.5)
        ('80.5 %', '120 ms', '1.50 s', '1,234 tokens')
        """
        if not math.isfinite(number):
            return UNKNOWN
        if self.scale is Scale.SHARE:
            return percent(number)
        factor, unit = self._shown(number)
        return _joined(_written(factor * number, _decimals(factor * number)), unit)

    def difference(self, number: float) -> str:
        """One difference, with its sign.

        >>> SHARE.difference(0.285), TIME.difference(-0.31), Quantity().difference(0.0)
        ('+28.5 points', '−310 ms', '0')
        """
        if not math.isfinite(number):
            return UNKNOWN
        factor, unit, decimals = self._form(number)
        return _joined(_written(factor * number, decimals, sign=True), unit)

    def axis(self, number: float) -> str:
        """A difference at an axis, whose unit is `axis_unit`.

        >>> SHARE.axis(0.05), TIME.axis(-0.5), PLAIN.axis(0.0)
        ('+5', '−0.5', '0')
        """
        text = f"{100 * number if self.scale is Scale.SHARE else number:+.3g}"
        return "0" if number == 0 else text.replace("-", MINUS)

    @property
    def axis_unit(self) -> str:
        """The unit of an axis; empty where it has none."""
        return {Scale.SHARE: "points", Scale.SECONDS: "seconds"}.get(self.scale, self.unit)

    def margin(self, number: float) -> str:
        """The size of a difference, without a sign.

        >>> SHARE.margin(0.03), TIME.margin(0.2)
        ('3.0 points', '200 ms')
        """
        return self.difference(number).removeprefix("+")

    def change(self, effect: float, low: float, high: float) -> str:
        """A difference with its range; infinite bounds are not known.

        >>> SHARE.change(0.2847, 0.1699, 0.3799), SHARE.change(0.0, -0.0088, 0.0682)
        ('+28.5 points (17.0 to 38.0)', '0.0 points (−0.9 to +6.8)')
        >>> TIME.change(-0.3, -0.42, -0.19), Quantity(unit="tokens").change(12.0, 8.0, 16.0)
        ('−300 ms (−420 to −190)', '+12.0 tokens (8.0 to 16.0)')
        >>> SHARE.change(0.1, -math.inf, math.inf), SHARE.change(0.1, 0.05, math.inf)
        ('+10.0 points, no range yet', '+10.0 points (5.0 or more)')
        """
        if not math.isfinite(effect):
            return NO_RANGE
        factor, unit, decimals = self._form(effect, low, high)
        whole = _joined(_written(factor * effect, decimals, sign=True), unit)
        range_ = _span(factor * low, factor * high, decimals)
        return f"{whole} ({range_})" if range_ else f"{whole}, {NO_RANGE}"

    def _shown(self, *numbers: float) -> tuple[float, str]:
        """The factor to the unit that is written, and the unit."""
        if self.scale is Scale.SHARE:
            return 100.0, "points"
        if self.scale is Scale.SECONDS:
            return (1000.0, "ms") if _largest(*numbers) < 1 else (1.0, "s")
        return 1.0, self.unit

    def _form(self, *numbers: float) -> tuple[float, str, int]:
        factor, unit = self._shown(*numbers)
        shown = [factor * number for number in numbers]
        if self.scale is Scale.SHARE:
            return factor, unit, 3 if 0 < _largest(*shown) < 0.1 else 1
        return factor, unit, _decimals(*shown)


SHARE, TIME, PLAIN = Quantity(Scale.SHARE), Quantity(Scale.SECONDS), Quantity()


def percent(share: float, digits: int = 1) -> str:
    """A share of 1.

    >>> percent(0.1234), percent(float("nan"))
    ('12.3 %', '–')
    """
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else UNKNOWN


def points(share: float) -> str:
    """A difference of shares, in points without their noun.

    >>> points(0.046), points(-0.046)
    ('+4.6', '−4.6')
    """
    return _written(100 * share, 1, sign=True)


def relative(share: float | None, low: float | None, high: float | None) -> str:
    """A difference as a share of the value that it is compared with; empty where it is not known.

    >>> relative(0.15, 0.04, 0.26), relative(0.15, None, None)
    ('+15.0 % (4.0 to 26.0)', '')
    """
    if share is None or low is None or high is None or not all(map(math.isfinite, (share, low, high))):
        return ""
    return f"{points(share)} % ({_span(100 * low, 100 * high, 1)})"


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "user"), counted(2000, "user")
    ('1 user', '2,000 users')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def reading(low: float, high: float, higher_is_better: bool) -> str:
    """What a range says, as a mark and a word.

    >>> reading(0.1, 0.2, True), reading(0.1, 0.2, False), reading(-0.1, 0.2, True)
    ('✓ better', '✗ worse', '? not clear yet')
    """
    if low > 0 or high < 0:
        return BETTER if (low > 0) is higher_is_better else WORSE
    return OPEN


def _largest(*numbers: float) -> float:
    return max((abs(number) for number in numbers if math.isfinite(number)), default=0.0)


def _decimals(*numbers: float) -> int:
    """Three digits of the largest number, six decimals at most."""
    largest = _largest(*numbers)
    if largest == 0 or largest >= 100:
        return 0
    return min(6, 2 - math.floor(math.log10(largest)))


def _written(number: float, decimals: int, sign: bool = False) -> str:
    text = f"{abs(number):,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        return text
    return f"{MINUS if number < 0 else '+' if sign else ''}{text}"


def _span(low: float, high: float, decimals: int) -> str:
    known = math.isfinite(low), math.isfinite(high)
    if known == (True, True):
        crosses = low < 0 < high
        return f"{_written(low, decimals, crosses)} to {_written(high, decimals, crosses)}"
    if known == (True, False):
        return f"{_written(low, decimals, low < 0)} or more"
    return f"{_written(high, decimals, high < 0)} or less" if known[1] else ""


def _joined(text: str, unit: str) -> str:
    return f"{text} {unit}" if unit else text
