"""Train the recogniser of spoken digits of this folder.

    pip install 'epur_emu[train]'
    EPUR_DATA=/path/to/data python train.py --work /path/to/checkpoints

Three bidirectional LSTM layers read log-mel features; a linear layer scores ten digits and CTC's
blank at each time step. Strings of digits are joined anew in each epoch from the recordings of one
speaker, at random speeds, levels and noise.

The state of the training is kept after each epoch in ``--work``; the same command goes on from
there. When the last epoch is done, the averaged weights are rounded to float16 and written to this
folder with the card, which gets the calibration and the scores.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.checkpoints.folder import read_card, write_folder
from epur_emu.comparison import evaluate, load_model
from epur_emu.emulator import calibrate
from epur_emu.network import LstmLayer, Network
from epur_emu.tasks import data
from epur_emu.tasks.ctc import BLANK, greedy
from epur_emu.tasks.digits import (
    LONGEST,
    PAUSE,
    RATE,
    SPEAKERS,
    TRAINING,
    VALIDATION,
    WORDS,
    recording,
    strings,
)
from epur_emu.tasks.features import LogMel
from epur_emu.tasks.metrics import word_errors
from epur_emu.tasks.speech import NETWORK

HERE = Path(__file__).resolve().parent
CELLS, LAYERS = 160, 3
SEED = 2017
BATCH, POOL = 24, 240
FEATURES = LogMel(RATE)


class Recogniser(nn.Module):
    """Stacked bidirectional LSTM layers under one linear layer."""

    def __init__(self, dropout: float = 0.25) -> None:
        super().__init__()
        self.dropout = dropout
        self.layers = nn.ModuleList(
            nn.LSTM(width, CELLS, batch_first=True, bidirectional=True)
            for width in (FEATURES.width, *[2 * CELLS] * (LAYERS - 1))
        )
        self.output = nn.Linear(2 * CELLS, 1 + len(WORDS))
        for name, weight in self.layers.named_parameters():
            if "weight" in name:
                nn.init.uniform_(weight, -0.08, 0.08)
            else:
                nn.init.zeros_(weight)
                if "bias_ih" in name:  # the forget gate starts open
                    weight.data[CELLS : 2 * CELLS] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, T, 11) of features (B, T, 96)."""
        for layer in self.layers:
            x = F.dropout(layer(x)[0], self.dropout, self.training)
        return self.output(x)


def batches(recordings: dict[tuple[int, str, int], np.ndarray], count: int, seed: int):
    """`count` batches of features (B, T, 96), digits end to end, and their numbers."""
    rng = np.random.default_rng(seed)
    while count > 0:
        pool = [_string(recordings, rng) for _ in range(POOL)]
        pool.sort(key=lambda item: len(item[0]))
        groups = [pool[i : i + BATCH] for i in range(0, POOL, BATCH)]
        for n in rng.permutation(len(groups))[:count]:
            longest = max(len(sound) for sound, _, _ in groups[n])
            x = np.stack([_features(rng, *item[::2], longest) for item in groups[n]])
            digits = [digits for _, digits, _ in groups[n]]
            yield x, np.concatenate(digits), [len(d) for d in digits]
            count -= 1


def _string(recordings: dict, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Sound, digits and level of the noise in pauses."""
    speaker = SPEAKERS[rng.integers(len(SPEAKERS))]
    digits = rng.integers(len(WORDS), size=rng.integers(1, LONGEST + 1))
    level = math.exp(rng.uniform(0.0, math.log(30)))
    speed = rng.uniform(0.85, 1.18)

    def pause() -> np.ndarray:
        return rng.uniform(-level, level, int(rng.integers(PAUSE[0] // 2, PAUSE[1] + 1)))

    parts = [pause()]
    for digit in digits:
        sound = recordings[int(digit), speaker, int(rng.choice(TRAINING))]
        own = speed * rng.uniform(0.95, 1.05)
        sound = np.interp(np.arange(0, len(sound) - 1, own), np.arange(len(sound)), sound)
        parts += [sound * math.exp(rng.uniform(-0.35, 0.35)), pause()]
    return np.concatenate(parts), digits, level


def _features(rng: np.random.Generator, sound: np.ndarray, level: float, length: int) -> np.ndarray:
    """Features of a string in a longer silence, with noise over all of some, and parts hidden."""
    begin = rng.integers(length - len(sound) + 1)
    full = rng.uniform(-level, level, length)
    full[begin : begin + len(sound)] = sound
    full *= math.exp(rng.uniform(-0.7, 0.7))
    if rng.random() < 0.5:
        size = np.sqrt(np.mean(full**2)) * 10 ** (-rng.uniform(12, 45) / 20)
        full += size * rng.standard_normal(length)
    x = FEATURES(full).reshape(-1, FEATURES.bands)
    for axis, widest, count in ((0, 12, 2), (1, 5, 1)):
        for _ in range(count):
            width = rng.integers(widest + 1)
            start = rng.integers(max(1, x.shape[axis] - width))
            np.moveaxis(x, axis, 0)[start : start + width] = 0.0
    return x.reshape(-1, FEATURES.width)


@torch.no_grad()
def error_rate(model: Recogniser, utterances: list, texts: list[str]) -> float:
    """Word errors in a hundred words."""
    errors = 0
    for utterance, text in zip(utterances, texts, strict=True):
        scores = model(torch.from_numpy(FEATURES(utterance.samples))[None])[0].numpy()
        errors += word_errors([WORDS[n - 1] for n in greedy(scores)], text.split())
    return 100 * errors / sum(len(text.split()) for text in texts)


def rounded(model: Recogniser) -> Recogniser:
    """The network of the exported weights: one bias for each gate, all rounded to float16."""
    model = deepcopy(model).eval()
    with torch.no_grad():
        for name, bias in model.layers.named_parameters():
            if "bias_ih" in name:
                other = model.layers.get_parameter(name.replace("_ih", "_hh"))
                bias += other
                other.zero_()
        for weight in model.parameters():
            weight.copy_(weight.half())
    return model


def arrays(model: Recogniser) -> tuple[dict[str, Network], dict[str, np.ndarray]]:
    """Networks and host arrays, float16, of what `rounded` gives."""

    def half(weight: Tensor, *shape: int) -> np.ndarray:
        return weight.detach().half().numpy().reshape(shape or weight.shape)

    layers = []
    for n, lstm in enumerate(model.layers):
        passes = []
        for direction, end in (("forward", "_l0"), ("backward", "_l0_reverse")):
            w_x, w_h, bias = (
                getattr(lstm, kind + end) for kind in ("weight_ih", "weight_hh", "bias_ih")
            )
            gates = half(w_x, 4, CELLS, -1), half(w_h, 4, CELLS, -1), half(bias, 4, CELLS)
            name = f"{NETWORK}.{n}.{direction}"
            passes.append(LstmLayer(name, *gates, reverse=direction == "backward"))
        layers.append(tuple(passes))
    host = {f"output.{name}": half(weight) for name, weight in model.output.named_parameters()}
    return {NETWORK: Network(NETWORK, tuple(layers))}, host


def export(model: Recogniser, folder: Path, training: dict) -> None:
    """Write the model folder, then its scores on the test set, as this package computes them."""
    networks, host = arrays(rounded(model))
    sounds, _ = strings(data.folder("fsdd"), TRAINING, 300, SEED)
    alpha = calibrate(networks[NETWORK], [FEATURES(sound.samples) for sound in sounds])
    status = "trained" if training["epochs"] == training["of"] else "partly trained"
    tools = {name: version(name) for name in ("torch", "numpy")}
    card = read_card(HERE)
    card.pop("score", None)  # of other weights
    card |= {
        "status": status,
        "features": asdict(FEATURES),
        "decoding": {"words": WORDS},
        "training": {**training, "python": platform.python_version(), **tools},
        "calibration": {
            "data": "300 strings of training recordings",
            "quantity": "largest |W_x x| of each pass",
        },
    }
    write_folder(folder, card, networks, host, alpha)
    found = evaluate(load_model(folder), arithmetic("epur-fp16"), Accelerator.load("epur"))
    score = {"metric": found.metric, "data": "300 strings of test recordings", "beam": found.beam}
    for name, metrics in zip(("float32", "epur-fp16"), found.metrics, strict=True):
        score[name] = round(metrics[found.metric], 2)
        print(f"{name}: test {found.metric} {score[name]:.2f}", flush=True)
    write_folder(folder, {**card, "score": score}, networks, host, alpha)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that holds fsdd/ (default: EPUR_DATA)")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batches", type=int, default=100, help="of 24 strings, in an epoch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument(
        "--export", action="store_true", help="write the model as it is now, and stop"
    )
    parser.add_argument("--output", type=Path, help="folder of the model (default: this folder)")
    args = parser.parse_args()
    if args.data is not None:
        os.environ[data.VARIABLE] = str(args.data)
    if args.export and args.output is None:
        parser.error("--export needs --output: a network not yet trained stays out of this folder")
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    folder = data.folder("fsdd")
    recordings = {
        (digit, speaker, index): recording(folder, digit, speaker, index).astype(np.float64)
        for digit in range(len(WORDS))
        for speaker in SPEAKERS
        for index in TRAINING
    }
    validation = strings(folder, VALIDATION, 150, SEED)

    torch.manual_seed(SEED)
    model = Recogniser()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    optimizer = torch.optim.Adam(
        model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=1e-6
    )
    total = args.epochs * args.batches

    def rate(step: int) -> float:
        wave = 1 + math.cos(math.pi * min(1, step / total))
        return min(1.0, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * wave)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    checkpoint = args.work / "checkpoint.pt"
    epoch, seconds, scores = 0, 0.0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for part, state in zip((model, average, optimizer, schedule), saved["states"], strict=True):
            part.load_state_dict(state)
        epoch, seconds, scores = saved["epoch"], saved["seconds"], saved["scores"]

    while epoch < args.epochs and not args.export:
        start = time.monotonic()
        torch.manual_seed(SEED + epoch)
        model.train()
        bar = tqdm(
            batches(recordings, args.batches, SEED + epoch),
            total=args.batches,
            unit="batch",
            desc=f"epoch {epoch + 1}",
            mininterval=20,
        )
        running = 0.0
        for x, digits, lengths in bar:
            logp = F.log_softmax(model(torch.from_numpy(x)), -1).transpose(0, 1)
            steps = torch.full((len(x),), x.shape[1])
            targets = torch.from_numpy(digits + 1)
            loss = F.ctc_loss(logp, targets, steps, torch.tensor(lengths), BLANK)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            running += 0.05 * (loss.item() - running) if running else loss.item()
            bar.set_postfix(loss=f"{running:.3f}", refresh=False)
        epoch += 1
        scores.append(error_rate(average.module.eval(), *validation))
        seconds += time.monotonic() - start
        print(
            f"epoch {epoch} loss {running:.3f} validation word error rate {scores[-1]:.2f} %"
            f" after {seconds:.0f} s",
            flush=True,
        )
        part = checkpoint.with_suffix(".part")
        states = [p.state_dict() for p in (model, average, optimizer, schedule)]
        torch.save({"states": states, "epoch": epoch, "seconds": seconds, "scores": scores}, part)
        part.replace(checkpoint)

    training = {
        "seed": SEED,
        "epochs": epoch,
        "of": args.epochs,
        "batches": args.batches,
        "hours": round(seconds / 3600, 2),
        "threads": args.threads,
        "validation_word_error_rate": round(scores[-1], 2) if scores else None,
    }
    export(average.module, args.output or HERE, training)


if __name__ == "__main__":
    main()
