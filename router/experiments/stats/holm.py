"""Several arms against one control: Holm 1979 (jstor.org/stable/4615733), no matter how arms depend."""

from __future__ import annotations

from collections.abc import Mapping

from router.experiments.stats.moments import invalid


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: the chance of any false finding among all arms stays below the level compared to.

    Always-valid p-values stay always valid.
    """
    if bad := [name for name, p in p_values.items() if not 0 <= p <= 1]:
        raise invalid(f"p_values[{bad[0]}]", "must be within 0 and 1")
    adjusted, least, left = {}, 0.0, len(p_values)
    for name, p in sorted(p_values.items(), key=lambda item: item[1]):
        least = max(least, min(1.0, left * p))
        adjusted[name] = least
        left -= 1
    return {name: adjusted[name] for name in p_values}
