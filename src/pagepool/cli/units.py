# SPDX-License-Identifier: MIT
"""Figures as a person reads them: three or four digits and a unit. Nothing but formatting."""

from __future__ import annotations

__all__ = ["bits_per_second", "bytes_of", "count", "per_second", "percent", "seconds", "short", "times"]

_STEPS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def _scaled(value: float) -> tuple[float, str]:
    for step, prefix in _STEPS:
        if value >= 0.9995 * step:
            return value / step, prefix
    return value, ""


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def per_second(packets: float) -> str:
    """Return packets per second: ``1.89 Mpps``."""
    value, prefix = _scaled(packets)
    return f"{_digits(value) if prefix else f'{value:.0f}'} {prefix}pps"


def bits_per_second(bits: float) -> str:
    """Return bits per second: ``0.91 Gbit/s``."""
    value, prefix = (bits / 1e9, "G") if bits >= 1e8 else _scaled(bits)
    return f"{_digits(value)} {prefix}bit/s"


def short(value: float) -> str:
    """Return a figure without a unit: ``9.41 M``, ``2,371``."""
    if value < 99_999.5:
        return f"{value:,.0f}"
    scaled, prefix = _scaled(value)
    return f"{_digits(scaled)} {prefix}"


def count(value: int) -> str:
    """Return a whole number with its thousands marked: ``9,412,608``."""
    return f"{value:,}"


def times(value: int) -> str:
    """Return how often: ``once``, ``65 times``."""
    return "once" if value == 1 else f"{value:,} times"


def bytes_of(size_bytes: int) -> str:
    """Return an amount of memory: ``16 MiB``."""
    for step, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= step:
            value = size_bytes / step
            return f"{value:.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"
    return f"{size_bytes} bytes"


def percent(part: float) -> str:
    """Return a share, 0 to 1, as ``99.96 %``; never 100 unless it is all."""
    if 0.9999 <= part < 1.0:
        return f"{100 * part:.4f}"[:7] + " %"
    return f"{100 * part:.{4 if part > 0.99 else 3}g} %" if part not in (0.0, 1.0) else f"{100 * part:.0f} %"


def seconds(value: float) -> str:
    """Return a time: ``28.2 s``, ``3.1 ms``, ``0.22 us``, ``5 h 12 min``."""
    if value >= 5400:
        return f"{value / 3600:.1f} h"
    if value >= 120:
        return f"{value / 60:.1f} min"
    for step, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= 0.9995 * step:
            return f"{_digits(value / step)} {unit}"
    return f"{value * 1e9:.0f} ns"
