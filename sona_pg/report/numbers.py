"""How a report writes numbers."""

from __future__ import annotations

MINUS = "\N{MINUS SIGN}"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign.

    Examples
    --------
    >>> signed(4.26), signed(-0.5), signed(0.01)
    ('+4.3', '−0.5', '±0.0')
    """
    rounded = round(value, digits)
    return f"{MINUS if rounded < 0 else '+' if rounded > 0 else '±'}{abs(rounded):.{digits}f}"


def grouped(n: float) -> str:
    """A whole number, its thousands apart.

    Examples
    --------
    >>> grouped(12345)
    '12,345'
    """
    return f"{n:,.0f}"
