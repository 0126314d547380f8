"""Small line charts as SVG, a few kilobytes each: drawn here, so that a browser has nothing to work out."""

from collections.abc import Mapping, Sequence
from html import escape

from tabs.watch import thin

Points = Sequence[tuple[int, float]]

COLORS = ("#4f46e5", "#0d9488", "#d97706", "#db2777", "#65a30d", "#0284c7")
WIDTH, HEIGHT = 300.0, 70.0
PLOTTED = 150


def chart(title: str, series: Mapping[str, Points]) -> str:
    """A chart of values over steps, from 0 to the largest, with each series' newest value; "" without two points.

    Args:
        title: what the values are.
        series: pairs of step and value, by name. More than there are colours are drawn without a name, in grey.
    """
    drawn = {name: thin(points, PLOTTED) for name, points in series.items() if len(points) > 1}
    if not drawn:
        return ""
    first, last = (pick(points[end][0] for points in drawn.values()) for pick, end in ((min, 0), (max, -1)))
    most = max(max(value for _, value in points) for points in drawn.values())
    named = list(drawn)[: len(COLORS)]
    lines = []
    for name in reversed(drawn):
        color = COLORS[named.index(name)] if name in named else "currentColor"
        places = " ".join(_place(step, value, first, last, most) for step, value in drawn[name])
        opacity = "" if name in named else ' opacity=".3"'
        lines.append(f'<polyline points="{places}" stroke="{color}"{opacity}/>')
    legend = "".join(
        f'<span><i style="background:{COLORS[index]}"></i>{escape(name)} <b>{number(series[name][-1][1])}</b></span>'
        for index, name in enumerate(named)
    )
    more = f"<span>and {len(drawn) - len(named)} more</span>" if len(drawn) > len(named) else ""
    return (
        f'<figure class="chart"><figcaption><b>{escape(title.capitalize())}</b><div>{legend}{more}</div></figcaption>'
        f'<div class="plot"><em>{number(most)}</em><svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" '
        f'role="img" aria-label="{escape(title)}">{"".join(lines)}</svg><em>0</em>'
        f'<div class="ends"><em>step {first}</em><em>{last}</em></div></div></figure>'
    )


def charts(curves: Mapping[str, Mapping[str, Points]]) -> str:
    """All charts that have something to show, beside one another."""
    found = "".join(chart(title, curves[title]) for title in sorted(curves))
    return f'<div class="charts">{found}</div>' if found else ""


def number(value: float) -> str:
    """Three digits, as few characters as it takes: 0.0123, 9.5e-4, 12.3."""
    if 0 < abs(value) < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:.3g}"


def _place(step: int, value: float, first: int, last: int, most: float) -> str:
    across = (step - first) / max(1, last - first) * WIDTH
    down = HEIGHT - 1 - (max(value, 0.0) / most if most > 0 else 0.0) * (HEIGHT - 2)
    return f"{across:.1f},{down:.1f}"
