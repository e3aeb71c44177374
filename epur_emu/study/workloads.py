"""What the points of a study evaluate: a task's data set, one sequence, or the shape of a network alone."""

from __future__ import annotations

import hashlib
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from epur_emu import paper, sequences
from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import ARITHMETICS, PLACES, Arithmetic
from epur_emu.checkpoints.folder import CARD, WEIGHTS, Model
from epur_emu.comparison import answer_all, load_model, one_thread, task
from epur_emu.dataflow import Shape, schedule_sequence
from epur_emu.dataflow.layout import Machine
from epur_emu.emulator import Engine, LayerStats, calibrate
from epur_emu.errors import StudyError
from epur_emu.formats import BlockFormat, Format
from epur_emu.network import GATES, LayerShape
from epur_emu.tasks import TASKS, Answer, Task
from epur_emu.tasks.base import outputs_of_passes
from epur_emu.trace import Trace

F32 = npt.NDArray[np.float32]
Plain = dict[str, Any]

#: Begins the name of a network of the E-PUR paper, of which only the shape is known.
PAPER = "paper:"

#: Parts of a card that say where a model is from and how it scored, and change nothing that it finds.
_HISTORY = ("summary", "languages", "licence", "status", "data", "training", "parameters", "baseline",
            "other_metrics", "score", "source")  # fmt: skip

FLOAT32 = ARITHMETICS["float32"]


@dataclass(frozen=True)
class Choice:
    """A model of a study, and how much of its data.

    Parameters
    ----------
    model : str
        A name of the zoo, a folder, or ``paper:NAME``.
    network, inputs : str, optional
        Of a model without a task: which network; a file of its inputs.
    limit, beam : int, optional
        Of a model with a task: items, the first; hypotheses of its decoder.
    steps, seed : int, optional
        Time steps of a paper's network or of random inputs, and their seed.
    """

    model: str
    network: str | None = None
    inputs: str | None = None
    limit: int | None = None
    beam: int | None = None
    steps: int | None = None
    seed: int | None = None


class Workload(ABC):
    """What is evaluated and scheduled, in any arithmetic on any accelerator.

    Results are plain values that JSON holds.
    """

    name: str
    task: str
    metric: str | None = None
    higher_is_better: bool = True

    @cached_property
    @abstractmethod
    def digest(self) -> str:
        """Hash of weights, inputs, and all else that results depend on."""

    @property
    @abstractmethod
    def shapes(self) -> tuple[Shape, ...]:
        """Of each network."""

    @property
    def passes(self) -> list[LayerShape]:
        """All passes of all networks."""
        return [p for shape in self.shapes for layer in shape for p in layer]

    @property
    def work(self) -> float:
        """About how long an evaluation takes, in no unit: long ones begin first."""
        return 0.0

    @abstractmethod
    def reference(self) -> Plain:
        """What float32 finds: ``n``, ``metrics``, and what else the methods below are given."""

    @abstractmethod
    def evaluate(
        self, arithmetic: Arithmetic, accelerator: Accelerator, reference: Plain, errors: int
    ) -> Plain:
        """All items in an arithmetic.

        Returns
        -------
        dict
            ``metrics``; ``same``, outputs that equal float32's; ``distance``, which grows with the
            difference from float32; ``layers``.

        Raises
        ------
        EpurError
            The arithmetic can't evaluate it.
        """

    @abstractmethod
    def schedule(
        self, arithmetic: Arithmetic, accelerator: Accelerator, reference: Plain, traced: int
    ) -> list[Trace]:
        """Traces of up to `traced` items, while they take the steps that float32 takes.

        Raises
        ------
        AcceleratorError
            Something does not fit.
        """

    def duration(self, traced: int) -> float | None:
        """Seconds that the traced items last in the world."""
        return None

    def alike(self, arithmetic: Arithmetic, accelerator: Accelerator) -> tuple[Any, ...]:
        """What of an arithmetic a schedule depends on: equal for two, equal schedules."""
        out: list[Any] = []
        for shape in self.shapes:
            machine = Machine(accelerator, arithmetic, shape)
            sizes = [machine.of(p) for layer in shape for p in layer]
            if machine.one_format:  # operations then go by their names alone
                sizes = [replace(each, units={}) for each in sizes]
            out.append((machine.one_format, machine.xe, machine.ye, repr(sizes)))
        return tuple(out)

    def bits(self, arithmetic: Arithmetic) -> tuple[dict[str, float], float]:
        """Mean bits of a value at each place, and bits of all weights.

        Means go over the weights of all gates; over their cells for what has one value a cell.
        """
        sums = {place: [0.0, 0] for place in PLACES}
        for p in self.passes:
            for gate in GATES:
                own = arithmetic.at(p.name, gate)
                for place in PLACES:
                    many = place in ("weight", "input", "product", "tree", "accumulator")
                    count = p.cells * (p.inputs + p.cells) if many else p.cells
                    sums[place][0] += count * bits(getattr(own, place))
                    sums[place][1] += count
        return {place: total / n for place, (total, n) in sums.items()}, sums["weight"][0]


class TaskWork(Workload):
    """A model with a task, on the first items of its test set."""

    def __init__(self, model: Model, choice: Choice) -> None:
        self.model, self.choice = model, choice
        self.name, self.task = model.name, str(model.card["task"])
        machine = Accelerator.load("epur")
        self._float32 = task(model, FLOAT32, machine, count=False)
        self.items, self.references = self._float32.test_set(choice.limit)
        self.metric = self._float32.metric
        self.higher_is_better = self._float32.higher_is_better
        self.beam = choice.beam or self._float32.beam

    @cached_property
    def digest(self) -> str:
        """Hash of the model, the items and the beam."""
        return digest([_of_model(self.model), self.items, self.references, self.beam])

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of each network."""
        return tuple(network.shape for network in self.model.networks.values())

    @property
    def work(self) -> float:
        """Products of all items, roughly."""
        weights = sum(network.parameters for network in self.model.networks.values())
        sizes = sum(1 + self._float32.size(item) ** 0.5 for item in self.items)
        return float(weights * sizes * self.beam)

    def reference(self) -> Plain:
        """Float32's answers and metrics."""
        # What the metrics need is found missing now, not after all answers.
        self._score(self._float32, answer_all(self._float32, self.items[:1], self.beam))
        answers = answer_all(self._float32, self.items, self.beam)
        return {
            "n": len(self.items), "metrics": self._score(self._float32, answers),
            "answers": [asdict(answer) for answer in answers],
        }  # fmt: skip

    def _score(self, scored: Task, answers: Sequence[Answer]) -> dict[str, float]:
        return scored.score(answers, self.references[: len(answers)])

    @staticmethod
    def _answer(plain: Mapping[str, Any]) -> Answer:
        values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        return Answer(**values)

    def evaluate(
        self, arithmetic: Arithmetic, accelerator: Accelerator, reference: Plain, errors: int
    ) -> Plain:
        """Score all items; errors by layer while some are given float32's answers."""
        emulated = task(self.model, arithmetic, accelerator, count=False)
        answers = answer_all(emulated, self.items, self.beam)
        wanted = [self._answer(plain) for plain in reference["answers"]]
        same = sum(a.symbols == b.symbols for a, b in zip(answers, wanted, strict=True))
        stats = {k: v for engine in emulated.engines.values() for k, v in engine.stats.items()}
        pairs = []
        with one_thread(needed=True):
            for n in spread(len(self.items), errors):
                ours = emulated.outputs(self.items[n], wanted[n])
                pairs.append((ours, self._outputs(n, wanted[n])))
        return {
            "metrics": self._score(emulated, answers), "same": same,
            "distance": 1 - same / len(answers), "layers": layers(pairs, stats),
        }  # fmt: skip

    def _outputs(self, n: int, answer: Answer) -> dict[str, F32]:
        """Float32's outputs of an item, made once."""
        if n not in self._known:
            self._known[n] = self._float32.outputs(self.items[n], answer)
        return self._known[n]

    @cached_property
    def _known(self) -> dict[int, dict[str, F32]]:
        return {}

    def schedule(
        self, arithmetic: Arithmetic, accelerator: Accelerator, reference: Plain, traced: int
    ) -> list[Trace]:
        """Traces of items spread over the test set."""
        return [
            self._float32.trace(
                self.items[n], self._answer(reference["answers"][n]), arithmetic, accelerator
            )
            for n in spread(len(self.items), traced)
        ]

    def duration(self, traced: int) -> float | None:
        """Seconds of speech, where it is speech."""
        found = [self._float32.duration(self.items[n]) for n in spread(len(self.items), traced)]
        known = [each for each in found if each is not None]
        return math.fsum(known) if len(known) == len(found) else None


class SequenceWork(Workload):
    """One sequence through a network of a model without a task.

    The metric is the root of the summed squared differences of the last layer's outputs from
    float32's, relative to the root of the summed squares of these.
    """

    metric = "relative error"
    higher_is_better = False

    def __init__(self, model: Model, choice: Choice) -> None:
        self.model = model
        self.network = sequences.choose(model, choice.network)
        self.inputs = sequences.inputs(self.network, choice.inputs, choice.steps, choice.seed)
        self.name, self.task = model.name, sequences.TASK
        alpha = model.alpha
        if any(k not in alpha for p in self.network.passes for k in (p.name, f"{p.name}.input")):
            with one_thread():
                alpha = calibrate(self.network, [self.inputs])
        self.alpha = dict(alpha)

    @cached_property
    def digest(self) -> str:
        """Hash of weights, inputs and calibration."""
        return digest([self.network.weight_hash, self.inputs, sorted(self.alpha.items())])

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the network."""
        return (self.network.shape,)

    @property
    def work(self) -> float:
        """Products of the sequence."""
        return float(self.network.parameters * len(self.inputs))

    def reference(self) -> Plain:
        """No error, as it is what errors are told from."""
        return {"n": 1, "metrics": {self.metric: 0.0}}

    @cached_property
    def _float32(self) -> dict[str, F32]:
        return outputs_of_passes(Engine(self.network, FLOAT32, alpha=self.alpha), self.inputs)

    def evaluate(
        self, arithmetic: Arithmetic, accelerator: Accelerator, reference: Plain, errors: int
    ) -> Plain:
        """The error of the outputs, and that of each layer."""
        engine = Engine(
            self.network, arithmetic, accelerator.dataflow, self.alpha, width=accelerator.width,
            count=False,
        )  # fmt: skip
        with one_thread():
            ours, wanted = outputs_of_passes(engine, self.inputs), self._float32
        last = [p.name for p in self.network.layers[-1]]
        a, b = (
            np.concatenate([of[name] for name in last], -1).astype(float) for of in (ours, wanted)
        )
        error = float(np.sqrt(((a - b) ** 2).sum() / max((b**2).sum(), np.finfo(float).tiny)))
        same = int(np.array_equal(a, b))
        return {
            "metrics": {self.metric: error}, "same": same, "distance": error,
            "layers": layers([(ours, wanted)], engine.stats),
        }  # fmt: skip

    def schedule(
        self, arithmetic: Arithmetic, accelerator: Accelerator, reference: Plain, traced: int
    ) -> list[Trace]:
        """The trace of the sequence."""
        steps = len(self.inputs)
        return [_sequence_trace(self.network.shape, steps, arithmetic, accelerator)]


class ShapeWork(Workload):
    """The shape of a network of the E-PUR paper: accesses, cycles and energy, no outputs."""

    def __init__(self, name: str, choice: Choice) -> None:
        known = {network.name: network for network in paper.networks()}
        if name not in known:
            raise StudyError(
                "study", f"model {PAPER}{name}", "is no network of the paper",
                f"use {', '.join(PAPER + each for each in known)}",
            )  # fmt: skip
        self.network = known[name]
        self.name, self.task = PAPER + name, self.network.task
        self.steps = choice.steps or self.network.steps

    @cached_property
    def digest(self) -> str:
        """Hash of shape and steps."""
        return digest([repr(self.network.shape), self.steps])

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of the network."""
        return (self.network.shape,)

    def reference(self) -> Plain:
        """Nothing: there are no weights."""
        return {"n": 0, "metrics": {}}

    def evaluate(
        self, arithmetic: Arithmetic, accelerator: Accelerator, reference: Plain, errors: int
    ) -> Plain:
        """Nothing."""
        return {"metrics": {}, "same": None, "distance": 0.0, "layers": []}

    def schedule(
        self, arithmetic: Arithmetic, accelerator: Accelerator, reference: Plain, traced: int
    ) -> list[Trace]:
        """The trace of a sequence."""
        return [_sequence_trace(self.network.shape, self.steps, arithmetic, accelerator)]

    def duration(self, traced: int) -> float | None:
        """Seconds of the sequence, where its task is in real time."""
        frame = self.network.frame_seconds
        return None if frame is None else frame * self.steps


def _sequence_trace(
    shape: Shape, steps: int, arithmetic: Arithmetic, accelerator: Accelerator
) -> Trace:
    schedule = schedule_sequence(shape, steps, arithmetic, accelerator)
    meta = {"arithmetic": arithmetic.to_dict(), "accelerator": accelerator.to_dict()}
    return Trace(schedule.phases, schedule.components, schedule.cycles, meta)


@lru_cache(maxsize=16)
def open_workload(choice: Choice) -> Workload:
    """The workload of a choice, kept: a process makes each once.

    Raises
    ------
    EpurError
        The model or its data are missing or damaged.
    """
    if choice.model.startswith(PAPER):
        return ShapeWork(choice.model.removeprefix(PAPER), choice)
    model = load_model(choice.model)
    kind = model.card["task"]
    if kind == sequences.TASK:
        return SequenceWork(model, choice)
    if kind in TASKS and (choice.network or choice.inputs):
        raise StudyError(
            choice.model, "network and inputs", f"are for models without a task, this one's is {kind}",
            "leave them out",
        )  # fmt: skip
    return TaskWork(model, choice)


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of `count` places, evenly spread."""
    chosen = min(count, most)
    return [n * count // chosen for n in range(chosen)]


def bits(form: Format) -> float:
    """Bits of a value of a format, its share of a block's scale included."""
    if isinstance(form, BlockFormat):
        return form.element.bits + 8 / form.block
    return float(form.bits)


def layers(
    pairs: Sequence[tuple[Mapping[str, F32], Mapping[str, F32]]], stats: Mapping[str, LayerStats]
) -> list[Plain]:
    """Errors of each pass's outputs over some items, and what was counted over all."""
    out = []
    for name, seen in stats.items():
        differences = [ours[name].astype(float) - wanted[name] for ours, wanted in pairs]
        joined = np.concatenate([np.zeros(0), *(d.ravel() for d in differences)])
        with np.errstate(all="ignore"):
            out.append(
                {
                    "name": name, "max_abs_error": float(np.abs(joined).max(initial=0.0)),
                    "rms_error": float(np.sqrt((joined**2).sum() / max(joined.size, 1))),
                    "overflow": seen.overflow, "saturation": seen.saturation,
                }
            )  # fmt: skip
    return out


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def digest(value: Any) -> str:
    """SHA-256 of plain values, arrays, and dataclasses of them; 32 hexadecimal digits."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()[:32]


def _feed(found: _Hash, value: Any) -> None:
    """Each value with its kind and length, so that no two are told by the same bytes."""
    if is_dataclass(value) and not isinstance(value, type):
        found.update(b"c")
        _feed(found, [type(value).__name__, *(getattr(value, f.name) for f in fields(value))])
    elif isinstance(value, Mapping):
        found.update(b"m")
        _feed(found, [[key, value[key]] for key in sorted(value)])
    elif isinstance(value, list | tuple):
        found.update(b"l%d;" % len(value))
        for each in value:
            _feed(found, each)
    elif isinstance(value, np.ndarray):
        head = f"a{value.dtype.str}{value.shape};".encode()
        found.update(head + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, float):
        found.update(b"f" + struct.pack("<d", value))
    elif value is None or isinstance(value, str | int | bytes | Path):
        text = value if isinstance(value, bytes) else str(value).encode()
        found.update(f"{type(value).__name__}{len(text)};".encode() + text)
    else:
        raise TypeError(f"a {type(value).__name__} has no digest")


def _of_model(model: Model) -> list[Any]:
    """All of a model that its answers depend on."""
    card = {key: value for key, value in model.card.items() if key not in _HISTORY}
    own = (p for p in sorted(model.path.iterdir()) if p.is_file() and p.name not in (CARD, WEIGHTS))
    files = [[p.name, p.read_bytes()] for p in own if p.suffix not in (".py", ".md")]
    networks = {name: network.weight_hash for name, network in model.networks.items()}
    return [card, networks, model.host, files]
