"""Sizes, widths, latencies and clock of an accelerator, each with its source."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from epur_emu.errors import AcceleratorError
from epur_emu.toml import Presets

_KINDS: dict[str, list[type]] = {
    "str": [str], "int": [int], "float": [int, float], "bool": [bool],
}  # fmt: skip

#: What a TOML file says of a value.
_KEYS = ("value", "unit", "source", "status")

STATUSES = ("published", "measured", "derived", "assumed")


@dataclass(frozen=True)
class Accelerator:
    """An accelerator of E-PUR's kind; units and sources stand in ``data/accelerators/*.toml``.

    Raises
    ------
    AcceleratorError
        A field is out of its range; the field is named.
    """

    name: str
    dataflow: str
    computation_units: int
    width: int
    accumulators: int
    clock_hz: int
    voltage_v: float
    technology_nm: int
    add_cycles: int
    multiply_cycles: int
    exp_cycles: int
    divide_cycles: int
    compare_cycles: int
    link_cycles: int
    quantise_cycles: int
    lookup_cycles: int
    weight_buffer_bytes: int
    parameter_bank_bytes: int
    input_buffer_bytes: int
    row_buffer_bytes: int
    intermediate_bytes: int
    weight_buffer_banks: int
    intermediate_banks: int
    port_bits: int
    double_buffering: bool
    dram_type: str
    dram_bandwidth: int
    dram_burst_bytes: int
    dram_bytes: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = _KINDS[str(field.type)]
            if type(value) not in kinds:
                raise AcceleratorError(
                    self.name, field.name, f"is {value!r}", f"give one {field.type}"
                )
            least = 0 if field.name.endswith(("_cycles", "_buffer_bytes", "_bank_bytes")) else 1
            if field.type == "int" and not least <= value < 2**62:
                raise AcceleratorError(
                    self.name, field.name, f"is {value}", f"give {least} or more, less than 2**62"
                )
            if field.type == "float" and not 0 < value < float("inf"):
                raise AcceleratorError(self.name, field.name, f"is {value}", "give more than 0")
        if self.computation_units != 4:
            raise AcceleratorError(
                self.name, "computation_units", f"is {self.computation_units}",
                "give 4, one for each gate of an LSTM",
            )  # fmt: skip
        for name in ("width", "dram_burst_bytes"):
            value = getattr(self, name)
            if value & (value - 1):
                raise AcceleratorError(self.name, name, f"is {value}", "give a power of two")
        for name in ("weight_buffer", "parameter_bank", "input_buffer", "row_buffer"):
            value = getattr(self, f"{name}_bytes")
            if value < self.width and (name, value) != ("row_buffer", 0):
                raise AcceleratorError(
                    self.name, f"{name}_bytes", f"is {value}, less than a sub-vector",
                    f"give {self.width} or more: one byte for each element",
                )  # fmt: skip
        if self.intermediate_bytes % (2 * self.dram_burst_bytes):
            raise AcceleratorError(
                self.name, "intermediate_bytes", f"is {self.intermediate_bytes}",
                f"give a multiple of {2 * self.dram_burst_bytes}, for two halves of whole bursts",
            )  # fmt: skip

        if self.dram_bandwidth > self.dram_burst_bytes * self.clock_hz:
            raise AcceleratorError(
                self.name, "dram_bandwidth", f"is {self.dram_bandwidth}, over one burst a cycle",
                f"give at most {self.dram_burst_bytes * self.clock_hz}, or a longer burst",
            )  # fmt: skip

    @property
    def dpu_latency(self) -> int:
        """Cycles from a sub-vector's read to its sum: multiplier, adder tree, accumulator."""
        levels = self.width.bit_length() - 1
        return self.multiply_cycles + (levels + 1) * self.add_cycles

    def channel_cycles(self, bursts: int) -> int:
        """Cycles in which the DRAM channel moves `bursts` bursts at its peak bandwidth."""
        return -(-bursts * self.dram_burst_bytes * self.clock_hz // self.dram_bandwidth)

    def seconds(self, cycles: int) -> float:
        """Time of so many cycles."""
        return float(Fraction(cycles, self.clock_hz))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` gives the same Accelerator back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any], source: str | Path = "accelerator") -> Accelerator:
        """Inverse of `to_dict`; also takes fields of the form ``{value, unit, source, status}``."""
        known = {field.name for field in fields(cls)}
        for field, problem in ((known - set(plain), "missing"), (set(plain) - known, "unknown")):
            if field:
                raise AcceleratorError(
                    source, ", ".join(sorted(field)), problem,
                    f"see the presets {', '.join(presets())} for the fields that there are",
                )  # fmt: skip
        return cls(**{name: _value(name, given, source) for name, given in plain.items()})

    @classmethod
    def load(cls, name: str | Path) -> Accelerator:
        """A preset by name, or a TOML file by path.

        Raises
        ------
        AcceleratorError
            No preset and no file is called so, or the file is damaged.
        """
        text = str(name)
        plain = _PRESETS.read(text)
        try:
            return cls.from_dict(plain, text)
        except AcceleratorError as error:
            raise AcceleratorError(text, error.field, error.problem, error.remedy) from error


def _value(name: str, given: Any, source: str | Path) -> Any:
    """A field's value, alone or with what is said of it."""
    if not isinstance(given, dict):
        return given
    if "value" not in given:
        raise AcceleratorError(source, name, "has no value", "give value = ...")
    if unknown := set(given) - set(_KEYS):
        raise AcceleratorError(
            source, f"{name}.{min(unknown)}", "is unknown", f"use {', '.join(_KEYS)}"
        )
    if given.get("status", STATUSES[0]) not in STATUSES:
        raise AcceleratorError(
            source, f"{name}.status", f"is {given['status']!r}", f"use one of {', '.join(STATUSES)}"
        )
    return given["value"]


_PRESETS = Presets("accelerators", "accelerator", AcceleratorError)


def preset_text(name: str) -> str:
    """The TOML file of a preset, to start another from.

    Raises
    ------
    AcceleratorError
        No preset is called so.
    """
    if name not in presets():
        raise AcceleratorError(
            "accelerator", repr(name), "is no preset", f"use one of {', '.join(presets())}"
        )
    return _PRESETS.file(name).read_text(encoding="utf-8")


def presets() -> list[str]:
    """Names of the accelerators that come with the package."""
    return _PRESETS.names()
