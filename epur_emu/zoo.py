"""Finds a model by name: in the user's folders, in this package, in other installed packages."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from epur_emu.checkpoints.folder import CARD
from epur_emu.errors import ModelError

#: Names folders that hold model folders, separated as in PATH; its models hide others' names.
VARIABLE = "EPUR_MODELS"
#: An entry point of this group is called as its model and gives the folder: a path or a package.
GROUP = "epur_emu.models"

_PACKAGE = Path(__file__).resolve().parent


def list_models() -> dict[str, Path]:
    """Folders of the known models by name, sorted by name.

    Raises
    ------
    ModelError
        Two models that are not the user's own have one name.
    """
    own = {}
    for folder in reversed(os.environ.get(VARIABLE, "").split(os.pathsep)):
        if folder:
            own.update(_models_in(Path(folder)))
    others: dict[str, Path] = {}
    for name, path in (*_carried().items(), *_installed()):
        if name in others and others[name] != path:
            raise ModelError(
                path, f"model {name!r}", f"is also in {others[name]}", "remove one, or rename it"
            )
        others[name] = path
    return dict(sorted({**others, **own}.items()))


def find(name: str | os.PathLike[str]) -> Path:
    """Folder of a model given by its name or by the folder's path.

    Raises
    ------
    ModelError
        There is no such model; the message lists the known ones.
    """
    path = Path(name)
    explicit = len(path.parts) != 1 or path.is_absolute() or str(name) in (".", "..")
    models = {} if explicit else list_models()
    if str(name) in models:
        return models[str(name)]
    if os.path.isfile(path / CARD):
        return path
    known = ", ".join(models or list_models()) or "none"
    raise ModelError(
        "model", repr(str(name)), f"is neither a known model nor a folder with a {CARD}",
        f"use a folder's path, or one of: {known}; {VARIABLE} names further folders of models",
    )  # fmt: skip


def _models_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {p.name: p for p in sorted(folder.iterdir()) if (p / CARD).is_file()}


def _carried() -> dict[str, Path]:
    """Models of the package: inside it where installed, beside it in the source tree."""
    return _models_in(_PACKAGE / "_models") or _models_in(_PACKAGE.parent / "models")


def _installed() -> Iterator[tuple[str, Path]]:
    for point in entry_points(group=GROUP):
        try:
            target = point.load()
            path = Path(target if isinstance(target, str | os.PathLike) else target.__path__[0])
        except Exception as error:  # another package's code: whatever it raises, ours go on
            warnings.warn(
                f"model {point.name!r} of {point.value} is left out: {error!r}", stacklevel=2
            )
            continue
        yield point.name, path
