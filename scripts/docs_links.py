"""A hook of mkdocs: links from a page to files outside of docs/ lead to copies in the site.

So a page reads the same in the tree and on the site, offline too. A link to what is not there makes
the build fail; a link to a folder becomes plain text.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Where copies stand in the site.
COPIES = "source"

_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
_INCLUDED = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
_log = logging.getLogger("mkdocs.hooks.docs_links")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Include what a page includes, and mend its links."""
    pages = {Path(file.abs_src_path).resolve(): file.src_uri for file in files if file.abs_src_path}
    # A page that only includes a file of the tree stands for it.
    for file in list(files):
        if file.src_uri.endswith(".md") and file.abs_src_path:
            for name in _INCLUDED.findall(Path(file.abs_src_path).read_text(encoding="utf-8")):
                pages[ROOT / name] = file.src_uri

    def mend(text: str, folder: Path) -> str:
        def link(found: re.Match[str]) -> str:
            label, target, anchor = found[1], found[2], found[3] or ""
            path = (folder / target).resolve()
            if path in pages:
                return f"[{label}]({_relative(pages[path], page)}{anchor})"
            if path.is_dir() and ROOT in path.parents:
                return label
            if not path.is_file() or ROOT not in path.parents:
                _log.warning("%s: link to %s, which is not there", page.file.src_uri, target)
                return found[0]
            uri = f"{COPIES}/{path.relative_to(ROOT).as_posix()}"
            if files.get_file_from_path(uri) is None:
                files.append(_copy(path, uri, config))
            return f"[{label}]({_relative(uri, page)})"

        return _LINK.sub(link, text)

    def include(found: re.Match[str]) -> str:
        path = ROOT / found[1]
        return mend(path.read_text(encoding="utf-8"), path.parent)

    return _INCLUDED.sub(include, mend(markdown, Path(page.file.abs_src_path).parent))


def _relative(uri: str, page: Any) -> str:
    return os.path.relpath(uri, os.path.dirname(page.file.src_uri) or ".").replace(os.sep, "/")


def _copy(path: Path, uri: str, config: Any) -> Any:
    from mkdocs.structure.files import File

    return File.generated(config, uri, abs_src_path=str(path))
