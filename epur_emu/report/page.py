"""A report's page: one HTML file with style, figures and data inside; it asks for nothing outside."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from epur_emu.errors import EpurError
from epur_emu.plots import scalable
from epur_emu.version import __version__

#: Nothing is fetched; style and script stand in the page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

#: Draws a figure to the path that it is given.
Draw = Callable[[Path], None]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Parameters
    ----------
    head : str
        Its name, with the unit.
    number : bool
        Whether it holds numbers, which are aligned right and sorted as such.
    text : callable
        From a value to what is shown.
    """

    head: str
    number: bool = True
    text: Callable[[Any], str] = "{:,}".format


def words(head: str) -> Column:
    """A column of text."""
    return Column(head, False, str)


@dataclass
class Page:
    """What a report shows, in order.

    Parameters
    ----------
    title : str
    lead : str
        One sentence under it.
    data : dict of str to plain values
        The report's numbers, kept in the page as JSON.
    """

    title: str
    lead: str
    data: dict[str, Any]
    _parts: list[str] = field(default_factory=list)
    _sections: list[tuple[str, str]] = field(default_factory=list)
    _open: bool = False
    #: By name, what draws each figure.
    figures: dict[str, Draw] = field(default_factory=dict)

    def section(self, head: str) -> None:
        """Begin a section."""
        self._close()
        anchor = _slug(head)
        self._sections.append((anchor, head))
        self._parts.append(f'<h2 id="{anchor}">{escape(head)}</h2>')

    def text(self, text: str, style: str = "") -> None:
        """A paragraph; `style` may be ``note``."""
        self._close()
        self._parts.append(f'<p class="{style}">{escape(text)}</p>')

    def key(self, values: Sequence[tuple[str, str, str]]) -> None:
        """The most important numbers: (name, value, remark)."""
        cells = "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
            for name, value, remark in values
        )
        self._parts.append(f'<dl class="key">{cells}</dl>')

    def figure(self, name: str, caption: str, draw: Draw, wide: bool = False) -> None:
        """A figure; figures that follow one another stand side by side where there is room."""
        self.figures[name] = draw
        with tempfile.TemporaryDirectory() as folder:
            with scalable():
                draw(Path(folder, "figure.svg"))
            svg = Path(folder, "figure.svg").read_text(encoding="utf-8")
        if not self._open:
            self._parts.append('<div class="figures">')
            self._open = True
        self._parts.append(
            f"<figure{' class=wide' if wide else ''}>{_inline(svg, name, caption)}"
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> None:
        """A sortable table; what is None is shown as a dash."""
        self._close()
        heads = "".join(
            f'<th scope="col"{_class(c)}><button type="button">{escape(c.head)}</button></th>'
            for c in columns
        )
        lines = "".join(
            "<tr>"
            + "".join(_cell(c, value) for c, value in zip(columns, row, strict=True))
            + "</tr>\n"
            for row in rows
        )
        self._parts.append(
            f'<div class="table" tabindex="0"><table><thead><tr>{heads}</tr></thead>\n'
            f"<tbody>\n{lines}</tbody></table></div>"
        )

    def code(self, text: str, head: str = "") -> None:
        """Text as it is typed; with a head it can be folded."""
        self._close()
        block = f"<pre>{escape(text)}</pre>"
        if head:
            block = f"<details><summary>{escape(head)}</summary>{block}</details>"
        self._parts.append(block)

    def html(self) -> str:
        """The whole file."""
        self._close()
        folder = resources.files("epur_emu") / "data" / "report"
        style = (folder / "report.css").read_text(encoding="utf-8")
        script = (folder / "sort.js").read_text(encoding="utf-8")
        links = "".join(f'<a href="#{a}">{escape(head)}</a>' for a, head in self._sections)
        data = json.dumps(self.data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
        parts = "\n".join(self._parts)
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="epur_emu {__version__}">
<link rel="icon" href="data:,">
<title>{escape(self.title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{escape(self.title)}</h1>
<p class="lead">{escape(self.lead)}</p>
<nav aria-label="Sections">{links}</nav></header>
<main>
{parts}
</main>
<footer>Made by epur_emu {__version__}. Nothing comes from outside; the numbers are here as JSON, too.</footer>
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</body>
</html>
"""

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the file; what stood there is replaced only by a whole one.

        Returns
        -------
        int
            Its size in bytes.

        Raises
        ------
        EpurError
            It can't be written.
        """
        text = self.html().encode()
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            part.write_bytes(text)
            part.replace(target)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise _unwritten(target, error) from error
        return len(text)

    def save_figures(self, folder: str | os.PathLike[str]) -> list[str]:
        """Write every figure to a folder, as PNG and SVG; the files' names.

        Raises
        ------
        EpurError
            One can't be written.
        """
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritten(Path(folder), error) from error
        names = []
        for name, draw in self.figures.items():
            for suffix in (".png", ".svg"):
                path = Path(folder, _slug(name) + suffix)
                draw(path)
                names.append(str(path))
        return names

    def _close(self) -> None:
        if self._open:
            self._parts.append("</div>")
            self._open = False


def _unwritten(path: Path, error: OSError) -> EpurError:
    return EpurError(
        path, "file", f"can't be written: {error}", "choose another place or free space"
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _class(column: Column) -> str:
    return ' class="number"' if column.number else ""


def _cell(column: Column, value: Any) -> str:
    if value is None:
        return f"<td{_class(column)}>-</td>"
    kept = f' data-value="{float(value)!r}"' if column.number else ""
    return f"<td{_class(column)}{kept}>{escape(column.text(value))}</td>"


def _inline(svg: str, name: str, caption: str) -> str:
    """A figure's SVG for a page: its black is the page's ink, its white the page's ground."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{_slug(name)}-", svg)
    svg = re.sub("#(000000|333333)", "currentColor", svg).replace("fill: #ffffff", "fill: none")
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(caption)}">{rest}'
