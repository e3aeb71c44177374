"""What every task gives: its input read, its answer, its test set and its score."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from epur_emu.errors import EpurError
from epur_emu.probe import Decoded, Sequences, probe_runs
from epur_emu.tasks.beam import Followed

if TYPE_CHECKING:
    from epur_emu.accelerator import Accelerator
    from epur_emu.arithmetic import Arithmetic
    from epur_emu.checkpoints.folder import Model
    from epur_emu.emulator import Engine
    from epur_emu.network import Network
    from epur_emu.trace import Trace

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What a task found for one item.

    Parameters
    ----------
    symbols : tuple of int
        What two answers are compared by.
    text : str
        As the metric reads it.
    plain : str
        As a person reads it.
    score : float or None
        The search's own score, where it has one.
    passes : int
        Evaluations of the decoder, one for each hypothesis alive at each step; 0 without a decoder.
    """

    symbols: tuple[int, ...]
    text: str
    plain: str
    score: float | None = None
    passes: int = 0


class Task(ABC):
    """A model's LSTM networks, evaluated by engines, and all that surrounds them on the host.

    An item is one input (a sentence, an utterance, an image) in whatever form the task likes; it can be
    pickled. Emulated answers do not depend on the items that are answered with them; float32 ones may
    in their last bits, as matrix products of different sizes do.

    Parameters
    ----------
    model : Model
        Its card, its host weights and the files in its folder.
    engines : mapping of str to Engine
        One for each of the model's networks, by name.

    Raises
    ------
    EpurError
        The model lacks something, or something does not fit.
    """

    #: Name of the metric, and whether more is better.
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    #: Hypotheses kept by default where the task is scored.
    beam: ClassVar[int] = 1

    def __init__(self, model: Model, engines: Mapping[str, Engine]) -> None:
        self.engines = dict(engines)

    @abstractmethod
    def read(self, given: str | None) -> Any:
        """The item that a user names: a text, a file's path; by default an example of the task's own.

        Raises
        ------
        EpurError
            It is empty or can't be read.
        """

    @abstractmethod
    def describe(self, item: Any) -> str:
        """One line that shows an item."""

    def size(self, item: Any) -> int:
        """What the work of an item grows with; items of about one size are answered together."""
        return 0

    @abstractmethod
    def answer(self, items: Sequence[Any], beam: int = 1) -> list[Answer]:
        """What is found for each item."""

    @abstractmethod
    def outputs(self, item: Any, answer: Answer) -> dict[str, F32]:
        """Outputs (T, H) of every pass, by its name, while the decoder is given the answer's symbols."""

    @abstractmethod
    def trace(
        self, item: Any, answer: Answer, arithmetic: Arithmetic, accelerator: Accelerator
    ) -> Trace:
        """Every access that answering an item took."""

    @abstractmethod
    def runs(self, item: Any, answer: Answer, beam: int) -> list[Sequences | Decoded]:
        """What was evaluated to answer an item with a beam, anew, in the order of `trace`.

        Raises
        ------
        EpurError
            The answer was found with another beam.
        """

    def probe(
        self, item: Any, answer: Answer, beam: int, arithmetic: Arithmetic, accelerator: Accelerator,
        path: str | os.PathLike[str],
    ) -> Trace:  # fmt: skip
        """The accesses of `trace`, performed and checked one by one, as events in a file."""
        meta = self.trace(item, answer, arithmetic, accelerator).meta
        runs = self.runs(item, answer, beam)
        return probe_runs(path, runs, arithmetic, accelerator, meta, progress=True)

    def duration(self, item: Any) -> float | None:
        """Seconds that the item lasts in the world (speech), None if it has no duration."""
        return None

    @abstractmethod
    def test_set(self, limit: int | None = None) -> tuple[list[Any], list[Any]]:
        """Items and references of the test set, or the first `limit` of them.

        Raises
        ------
        EpurError
            The data are not there; the message says how to get them.
        """

    @abstractmethod
    def samples(self) -> Iterable[tuple[Any, Any]]:
        """Training items with references, on which quantities are calibrated."""

    @abstractmethod
    def score(self, answers: Sequence[Answer], references: Sequence[Any]) -> dict[str, float]:
        """Metrics by name, the task's own (`metric`) first."""


def first_of_test_set(task: Task, kind: str) -> Any:
    """The first item of a task's test set, as an example.

    Raises
    ------
    EpurError
        The data are not there; the message says to give a file of this kind instead.
    """
    try:
        return task.test_set(1)[0][0]
    except EpurError as error:
        raise EpurError(
            "input", "example", f"is of a data set that can't be had: {error.source}: {error.field} "
            f"{error.problem}", f"give {kind}: epur run MODEL FILE; or {error.remedy}",
        ) from error  # fmt: skip


def outputs_of_passes(engine: Engine, inputs: npt.ArrayLike) -> dict[str, F32]:
    """Outputs (T, H) of every pass of a network, by its name, for a sequence of inputs (T, I)."""
    out: dict[str, F32] = {}
    for passes, values in zip(engine.network.layers, engine.sequence(inputs), strict=True):
        ends = np.cumsum([p.cells for p in passes])[:-1]
        out |= {p.name: v for p, v in zip(passes, np.split(values, ends, -1), strict=True)}
    return out


def evaluated(engine: Engine, inputs: F32) -> Sequences:
    """A sequence of inputs (T, I), evaluated."""
    return Sequences(engine.network, [inputs], [engine.sequence(inputs)])


class Decoder(Protocol):
    """What evaluates single time steps: an engine, or `Steps`."""

    def step(self, layer: int, x: F32, h: F32, c: F32) -> tuple[F32, F32]:
        """As `Engine.step`."""


class Steps:
    """A decoder that keeps what it was given and gave, by layer and step."""

    def __init__(self, decoder: Decoder, layers: int) -> None:
        self._decoder = decoder
        self._inputs: list[list[F32]] = [[] for _ in range(layers)]
        self._outputs: list[list[F32]] = [[] for _ in range(layers)]

    def step(self, layer: int, x: F32, h: F32, c: F32) -> tuple[F32, F32]:
        """As `Engine.step`."""
        found = self._decoder.step(layer, x, h, c)
        self._inputs[layer].append(x)
        self._outputs[layer].append(found[0])
        return found

    def decoded(self, network: Network, followed: Followed, start: F32) -> Decoded:
        """The evaluations of one search's hypotheses.

        Parameters
        ----------
        network : Network
        followed : Followed
        start : float32 array of shape (2 L, H)
            Initial h and c of each layer.
        """

        def alive(steps: list[F32]) -> F32:
            return np.concatenate([v[:n] for v, n in zip(steps, followed.alive, strict=True)])

        given = len(network.layers) if network.host_between else 1
        return Decoded(
            network, [alive(steps) for steps in self._inputs[:given]],
            [alive(steps) for steps in self._outputs], list(zip(start[::2], start[1::2], strict=True)),
            np.array(followed.origins, np.intp),
        )  # fmt: skip


def check_found(answer: Answer, symbols: tuple[int, ...], passes: int) -> None:
    """Raise `EpurError` if a search did not find an answer again."""
    if (answer.symbols, answer.passes) != (symbols, passes):
        raise EpurError(
            "probe", "beam", "is another than the answer was found with", "give that one"
        )
