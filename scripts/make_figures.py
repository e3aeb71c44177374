"""Draw the figures of docs/concepts.md: `python scripts/make_figures.py`."""

from __future__ import annotations

from html import escape
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "docs" / "assets"

#: Fill and edge of a box: what is given, what computes, what comes out, what stores.
GIVEN, COMPUTES = ("#e8f1f8", "#0072b2"), ("#fdf2d8", "#b97f00")
COMES, STORES = ("#e3f4ee", "#00805c"), ("#f7e8f1", "#a8547f")
INK = "#1b1f24"


class Drawing:
    """An SVG of boxes and arrows on a light ground, readable on dark pages too."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size = width, height
        self.title = title
        self.parts: list[str] = []

    def box(
        self, x: int, y: int, w: int, h: int, kind: tuple[str, str], head: str, *lines: str
    ) -> None:
        """A box with a head and small lines under it, all in its middle."""
        fill, edge = kind
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="6" fill="{fill}" stroke="{edge}" '
            f'stroke-width="1.5"/>'
        )
        top = y + h / 2 - 8 * len(lines) + 5
        self.text(x + w / 2, top, head, 15, bold=True)
        for n, line in enumerate(lines, 1):
            self.text(x + w / 2, top + 16 * n, line, 12)

    def text(
        self, x: float, y: float, text: str, size: int, bold: bool = False, anchor: str = "middle"
    ) -> None:
        """A line of text."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[int, int], both: bool = False) -> None:
        """A line through points, with a head at its end."""
        path = " ".join(f"{x},{y}" for x, y in points)
        start = ' marker-start="url(#head)"' if both else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.5" '
            f'marker-end="url(#head)"{start}/>'
        )

    def frame(self, x: int, y: int, w: int, h: int) -> None:
        """A dashed frame."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="none" stroke="#57606a" '
            f'stroke-dasharray="5 4"/>'
        )

    def svg(self) -> str:
        """The file."""
        width, height = self.size
        parts = "\n".join(self.parts)
        return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
 font-family="system-ui, sans-serif" fill="{INK}">
<title>{escape(self.title)}</title>
<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"
 orient="auto-start-reverse"><path d="M0,0 L10,5 L0,10 z"/></marker></defs>
<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>
{parts}
</svg>
"""


def path() -> Drawing:
    """How data flows through the program."""
    d = Drawing(940, 400, "From a network to energy: how data flows")
    for n, (head, line) in enumerate(
        [("Network", "weights, from any checkpoint"), ("Arithmetic", "a format for each place"),
         ("Accelerator", "sizes, latencies, dataflow")]
    ):  # fmt: skip
        d.box(20, 30 + 110 * n, 200, 70, GIVEN, head, line)
        d.arrow((220, 65 + 110 * n), (262, 65 + 110 * n), (262, 175), (300, 175))
    d.box(300, 125, 150, 100, COMPUTES, "Emulator", "every operation", "rounded once")
    d.arrow((375, 125), (375, 90))
    d.box(300, 20, 150, 70, COMES, "Outputs", "bit-exact")
    d.arrow((450, 175), (490, 175))
    d.box(490, 125, 150, 100, STORES, "Trace", "every access,", "as affine streams")
    d.box(490, 300, 150, 70, GIVEN, "Energy table", "each value", "with its source")
    results = [
        ("Energy", "pJ, mW, mm2, over time"), ("Replay", "miss ratios, buffer sizes"),
        ("Exports", "for other simulators"), ("Report", "one HTML file"),
    ]  # fmt: skip
    for n, (head, line) in enumerate(results):
        d.box(720, 30 + 95 * n, 200, 65, COMES, head, line)
        d.arrow((640, 175), (680, 175), (680, 62 + 95 * n), (720, 62 + 95 * n))
    d.arrow((640, 335), (700, 335), (700, 75), (720, 75))
    return d


def datapath() -> Drawing:
    """E-PUR's units and memories."""
    d = Drawing(980, 580, "E-PUR: four computation units, memories, links")
    d.box(40, 20, 900, 50, STORES, "DRAM (LPDDR4)", "weights, the network's inputs and outputs")
    units = [("i", "input"), ("f", "forget"), ("g", "updater"), ("o", "output")]
    for n, (gate, work) in enumerate(units):
        x = 40 + 228 * n
        d.frame(x, 140, 216, 280)
        d.text(x + 8, 410, f"CU {gate}: {work}", 12, bold=True, anchor="start")
        d.arrow((18, 105), (x + 59, 105), (x + 59, 160))
        d.box(x + 12, 160, 94, 62, STORES, "Inputs", "x, h, c")
        d.arrow((x + 158, 70), (x + 158, 160))
        d.box(x + 112, 160, 92, 62, STORES, "Weights", "of one pass")
        d.arrow((x + 59, 222), (x + 59, 250))
        d.arrow((x + 158, 222), (x + 158, 250))
        d.box(x + 12, 250, 192, 56, COMPUTES, "DPU", "16 products, tree, accumulator")
        d.arrow((x + 108, 306), (x + 108, 334))
        d.box(x + 12, 334, 192, 52, COMPUTES, "MU", "add, multiply, divide, exp")
        d.arrow((x + 108, 386), (x + 108, 450), both=True)
    d.box(40, 450, 900, 36, GIVEN, "Links: i and f to g, c and tanh(c) from g, h to all")
    d.arrow((490, 486), (490, 515))
    halves = "one half holds the previous layer's outputs, the other takes this layer's"
    d.box(40, 515, 900, 50, STORES, "Intermediate memory", halves)
    d.arrow((40, 540), (18, 540), (18, 105), (99, 105), (99, 160))
    d.text(26, 98, "x", 13, anchor="start")
    d.arrow((940, 45), (962, 45), (962, 540), (940, 540), both=True)
    return d


if __name__ == "__main__":
    for draw in (path, datapath):
        (ASSETS / f"{draw.__name__}.svg").write_text(draw().svg(), encoding="utf-8")
