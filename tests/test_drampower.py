"""The DRAM's commands and energies by DRAMPower 5, which has formulas of its own for the same currents.

Needs its command-line program: ``drampower_cli`` on the PATH, or told by the environment's DRAMPOWER.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epur_emu.replay.base import Source
from epur_emu.replay.dram import Dram
from epur_emu.replay.standards import Standard
from epur_emu.streams import Component
from epur_emu.trace import Accesses

PROGRAM = os.environ.get("DRAMPOWER") or shutil.which("drampower_cli")

#: Supplies whose currents DRAMPower's core takes; it computes I/O from impedances.
CORE = ("VDD1", "VDD2")

#: Timings that its core does not use, or that our commands do not need.
UNUSED = (
    "CKE ESCKE CMDCKE REFM REFIpb RCpb RCab PPD FAW RRD CCD CCDMW RPST DQSCK DQSS DQS2DQ WPRE WTR "
    "XP SR XSR RTRS"
)


def memory(s: Standard) -> dict[str, Any]:
    """A standard as DRAMPower reads it, in s, V and A."""
    t, o = s.timing, s.organization
    power: dict[str, float] = {"vddq": s.rails["VDDQ"]["volts"]}
    for n, name in enumerate(CORE, 1):
        rail = s.rails[name]
        ours = {
            "idd0": "IDD0", "idd2n": "IDD2N", "idd3n": "IDD3N", "idd4r": "IDD4R", "idd4w": "IDD4W",
            "idd5": "IDD5B", "idd5pb": "IDD5PB", "iBeta_vdd": "IDD0",
        }  # fmt: skip
        power |= {f"{theirs}{n}": rail[own] / 1e3 for theirs, own in ours.items()}
        power |= {f"vdd{n}": rail["volts"], f"idd6{n}": 0.0, f"idd2p{n}": 0.0, f"idd3p{n}": 0.0}
    timing: dict[str, float] = dict.fromkeys(UNUSED.split(), 0)
    timing |= {
        "tCK": s.clock_fs * 1e-15, "RAS": t["tRAS"], "RCD": t["tRCDRD"], "RPpb": t["tRP"],
        "RPab": t["tRP"], "RL": t["RL"] + t["tDQSCK"], "WL": t["WL"] + t["tDQSS"],
        "RTP": t["tRTP"], "WR": t["tWR"], "REFI": t["tREFI"], "RFCab": t["tRFC"], "RFCpb": t["tRFCpb"],
    }  # fmt: skip
    return {
        "memspec": {
            "memoryId": s.name,
            "memoryType": "LPDDR4",
            "memarchitecturespec": {
                "nbrOfChannels": 1, "nbrOfColumns": o["columns"], "nbrOfRows": o["rows"],
                "width": o["device_bits"], "burstLength": o["burst_length"],
                "maxBurstLength": o["burst_length"], "dataRate": o["transfers_per_clock"],
                "nbrOfBankGroups": o["bank_groups"], "nbrOfBanks": o["banks"],
                "nbrOfRanks": o["ranks"], "nbrOfDevices": o["devices"],
            },
            "mempowerspec": power,
            "memtimingspec": timing,
            # One open bank costs as much as all of them.
            "bankwisespec": {"factRho": 1, "factSigma": 1, "pasrMode": 0, "hasPASR": False},
            "memimpedancespec": {
                **{f"C_total_{wire}": 1e-12 for wire in ("ck", "cb", "rb", "wb", "dqs")},
                **{f"R_eq_{wire}": 1e6 for wire in ("ck", "cb", "rb", "wb", "dqs")},
            },
        }
    }  # fmt: skip


@pytest.mark.skipif(PROGRAM is None, reason="DRAMPower is not installed")
@pytest.mark.parametrize("page", ["open", "closed"])
@pytest.mark.parametrize("scheduler", ["in-order", "fr-fcfs"])
def test_drampower_finds_the_same_energy(page: str, scheduler: str, tmp_path: Path) -> None:
    component = Component("dram", None, 512, 1)
    model = Dram(
        Source((component,), (0,), 1 << 40, {}), "lpddr4-3200", 1, page=page, scheduler=scheduler,
        arrivals="closed-loop", commands=tmp_path / "c.csv",
    )  # fmt: skip
    rng, n = np.random.default_rng(1), 10_000
    bursts = np.where(rng.random(n) < 0.5, rng.integers(0, 1 << 22, n), np.arange(n))
    zeros = np.zeros(n, np.int64)
    write = (rng.random(n) < 0.3).astype(np.int64)
    model.feed(Accesses.of(zeros, zeros, write, 32 * bursts, zeros + 32))
    ours = model.result().details

    s = model.standard
    (tmp_path / "m.json").write_text(json.dumps(memory(s)))
    (tmp_path / "s.json").write_text('{"useToggleRate": false}')
    (tmp_path / "out.json").touch()
    files = {"-c": "s.json", "-t": "c.csv", "-m": "m.json", "-j": "out.json"}
    arguments = [part for pair in files.items() for part in pair]
    subprocess.run(
        [str(PROGRAM), *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=120
    )
    core = json.loads((tmp_path / "out.json").read_text())["CoreEnergy"]
    (banks,) = [value for value in core.values() if isinstance(value, list)]

    def theirs(*kinds: str) -> float:
        return 1e12 * sum(bank[kind] for bank in banks for kind in kinds if kind in bank)

    prices = replace(s, rails={name: s.rails[name] for name in CORE}).energies()
    assert prices is not None
    counts = ours["commands"]
    assert theirs("RD", "RDA") == pytest.approx(prices["read"] * ours["reads"])
    assert theirs("WR", "WRA") == pytest.approx(prices["write"] * ours["writes"])
    assert counts["REF"] > 10
    # An activation is priced with its precharge; at the end some are still to come.
    rails = [s.rails[name] for name in CORE]
    charge = sum(rail["volts"] * (rail["IDD0"] - rail["IDD2N"]) for rail in rails)
    precharge = charge * s.timing["tRP"] * s.clock_fs / 1e6
    open_rows = round(counts["ACT"] - theirs("PRE") / precharge)
    assert 0 <= open_rows <= s.organization["banks"]
    assert theirs("ACT", "PRE") == pytest.approx(
        prices["activate"] * counts["ACT"] - open_rows * precharge
    )
    # Standby goes on under a refresh: active in theirs, precharged in ours, and the refresh costs so much less.
    active = ours["energy_pj"]["active_standby"] / (s.energies() or {})["active"]
    standby = prices["active"] * active + prices["precharged"] * (ours["clocks"] - active)
    refreshes = prices["refresh"] * counts["REF"]
    found = theirs("BG_PRE", "BG_ACT", "REF_AB") + 1e12 * core["E_bg_act_shared"]
    assert found == pytest.approx(refreshes + standby, rel=1e-5)
