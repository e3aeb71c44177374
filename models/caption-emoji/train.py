"""Train the emoji captioner of this folder.

    pip install 'epur_emu[train,image]'
    EPUR_DATA=/path/to/data python train.py --work /path/to/checkpoints

Five convolutions, each followed by batch normalisation, and their last map give a feature of the
image. It sets the initial state of an LSTM layer that writes the caption, and stands beside the
last word in each of its inputs.

The state of the training is kept after each epoch in ``--work``; the same command goes on from
there. When the last epoch is done, the averaged weights of the epoch with the best chrF on the
validation split are rounded to float16 and written to this folder with the vocabulary and the card,
which gets the calibration, the scores and the baseline's scores.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.checkpoints.folder import read_card, write_folder
from epur_emu.comparison import evaluate, load_model, task
from epur_emu.network import LstmLayer, Network
from epur_emu.tasks import data
from epur_emu.tasks.bpe import BOS, EOS, PAD, SPECIALS, UNK
from epur_emu.tasks.captioning import (
    LONGEST,
    Captioning,
    Words,
    caption_scores,
    read_captions,
    read_picture,
)

HERE = Path(__file__).resolve().parent
#: Output channels and stride of each convolution.
CONVOLUTIONS = ((32, 2), (64, 2), (64, 1), (128, 2), (128, 2))
#: Side of the last map.
SIDE = 5
EMBEDDING = 128
FEATURE = CELLS = 256
SEED = 1711
#: Share of the words given in training that are hidden.
FORGET = 0.25


class Captioner(nn.Module):
    """Encoder of images and decoder of captions; one image a row."""

    def __init__(self, symbols: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.dropout = dropout
        widths = [3, *(channels for channels, _ in CONVOLUTIONS)]
        self.conv = nn.ModuleList(
            nn.Conv2d(widths[n], channels, 3, stride, 1, bias=False)
            for n, (channels, stride) in enumerate(CONVOLUTIONS)
        )
        self.norm = nn.ModuleList(nn.BatchNorm2d(channels) for channels in widths[1:])
        self.feature = nn.Linear(SIDE**2 * widths[-1], FEATURE)
        self.state = nn.Linear(FEATURE, 2 * CELLS)
        self.words = nn.Embedding(symbols, EMBEDDING)
        self.decoder = nn.LSTM(EMBEDDING + FEATURE, CELLS, batch_first=True)
        self.readout = nn.Linear(CELLS + FEATURE, EMBEDDING)
        self.bias = nn.Parameter(torch.zeros(symbols))
        nn.init.normal_(self.words.weight, std=EMBEDDING**-0.5)
        with torch.no_grad():  # the forget gate starts open
            self.decoder.bias_ih_l0[CELLS : 2 * CELLS] = 1.0

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, FEATURE) of images (B, 3, 72, 72) between -1 and 1."""
        x = images
        for conv, norm in zip(self.conv, self.norm, strict=True):
            x = F.relu(norm(conv(x)))
        return torch.tanh(self.feature(self.drop(x.flatten(1))))

    def start(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        h, c = torch.tanh(self.state(feature)).chunk(2, 1)
        return h[None].contiguous(), c[None].contiguous()

    def decode(
        self, words: Tensor, feature: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits (B, T, symbols) after each of `words` (B, T), and the new state."""
        beside = feature[:, None].expand(-1, words.shape[1], -1)
        h, state = self.decoder(torch.cat((self.drop(self.words(words)), beside), -1), state)
        read = self.drop(torch.tanh(self.readout(torch.cat((self.drop(h), beside), -1))))
        return F.linear(read, self.words.weight, self.bias), state

    def loss(self, images: Tensor, captions: Tensor, forget: float) -> Tensor:
        """`forget`: share of the given words that are hidden, so that the image is looked at."""
        given, wanted = captions[:, :-1], captions[:, 1:]
        hidden = (torch.rand(given.shape) < forget) & (given != BOS)
        feature = self.drop(self.encode(images))
        logits, _ = self.decode(given.masked_fill(hidden, UNK), feature, self.start(feature))
        return F.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=PAD, label_smoothing=0.1
        )

    @torch.no_grad()
    def greedy(self, images: Tensor, longest: int = LONGEST) -> list[list[int]]:
        feature = self.encode(images)
        state = self.start(feature)
        word = torch.full((len(images), 1), BOS)
        out = []
        while len(out) < longest:
            logits, state = self.decode(word, feature, state)
            word = logits.argmax(-1)
            out.append(word)
        rows = torch.cat(out, 1).tolist()
        return [row[: row.index(EOS)] if EOS in row else row for row in rows]


def scaled(images: np.ndarray) -> Tensor:
    """(B, 72, 72, 3) of bytes to (B, 3, 72, 72) between -1 and 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def augment(images: Tensor) -> Tensor:
    """Shift, scale, turn and colour a little, as all pictures are drawn to one pattern."""
    n = len(images)
    angle = (torch.rand(n) - 0.5) * 0.16
    size = 1 + (torch.rand(n) - 0.5) * 0.14
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), 1).view(n, 2, 2)
    shift = (torch.rand(n, 2, 1) - 0.5) * 0.14
    grid = F.affine_grid(torch.cat((turn * size[:, None, None], shift), 2), images.shape, False)
    # The background is white, 1; grid_sample fills with 0.
    images = F.grid_sample(images - 1, grid, align_corners=False) + 1
    gain = 1 + (torch.rand(n, 1, 1, 1) - 0.5) * 0.12 + (torch.rand(n, 3, 1, 1) - 0.5) * 0.05
    return (1 - (1 - images) * gain).clamp(-1, 1)


def captions_of(model: Captioner, words: Words, images: Tensor) -> list[str]:
    rows = [row for part in images.split(64) for row in model.greedy(part)]
    return [words.decode(row) for row in rows]


def rounded(model: Captioner) -> Captioner:
    """The network of the exported weights: normalisation in the convolutions, all in float16."""
    model = deepcopy(model).eval()
    with torch.no_grad():
        for conv, norm in zip(model.conv, model.norm, strict=True):
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            conv.weight *= gain[:, None, None, None]
            conv.bias = nn.Parameter(norm.bias - norm.running_mean * gain)
        model.norm = nn.ModuleList(nn.Identity() for _ in model.norm)
        model.decoder.bias_ih_l0 += model.decoder.bias_hh_l0
        model.decoder.bias_hh_l0.zero_()
        for weight in model.parameters():
            weight.copy_(weight.half())
    return model


def arrays(model: Captioner) -> tuple[dict[str, Network], dict[str, np.ndarray]]:
    """Network and host arrays, float16, of what `rounded` gives."""

    def half(weight: Tensor, *shape: int) -> np.ndarray:
        return weight.detach().half().numpy().reshape(shape or weight.shape)

    lstm = model.decoder
    layer = LstmLayer(
        "decoder.0.forward",
        half(lstm.weight_ih_l0, 4, CELLS, -1),
        half(lstm.weight_hh_l0, 4, CELLS, CELLS),
        half(lstm.bias_ih_l0, 4, CELLS),
    )
    host = {"words": half(model.words.weight), "bias": half(model.bias)}
    for name in ("feature", "state", "readout"):
        host |= {f"{name}.{part}": half(w) for part, w in getattr(model, name).named_parameters()}
    for n, conv in enumerate(model.conv):
        host |= {f"conv.{n}.weight": half(conv.weight), f"conv.{n}.bias": half(conv.bias)}
    return {"decoder": Network("decoder", ((layer,),))}, host


def nearest(known: np.ndarray, wanted: np.ndarray, captions: list[str]) -> list[str]:
    """The caption of the row of `known` nearest to each row of `wanted`."""
    distance = (known**2).sum(1) - 2 * wanted @ known.T
    return [captions[n] for n in distance.argmin(1)]


def baselines(captioner: Captioning) -> dict[str, dict[str, float]]:
    """Scores on the test split of the training picture nearest in pixels, and in features."""
    train = read_captions("train")
    pictures, captions = [read_picture(path) for path, _ in train], [text for _, text in train]
    items, references = captioner.test_set()
    out = {}
    for name, measure in {
        "nearest_picture": lambda item: item.pixels.ravel().astype(np.float32) / 255,
        "nearest_feature": captioner.encode,
    }.items():
        known, wanted = (np.stack([measure(i) for i in group]) for group in (pictures, items))
        out[name] = by_key(caption_scores(nearest(known, wanted, captions), references))
    return out


def by_key(scores: dict[str, float]) -> dict[str, float]:
    return {name.replace(" ", "_"): round(value, 2) for name, value in scores.items()}


def export(model: Captioner, words: Words, folder: Path, training: dict) -> None:
    """Write the model folder, then its scores on the test split, as this package computes them."""
    networks, host = arrays(rounded(model))
    tools = {name: version(name) for name in ("torch", "pillow", "sacrebleu", "numpy")}
    card = read_card(HERE)
    for part in ("score", "baseline", "other_metrics"):  # of other weights
        card.pop(part, None)
    card |= {
        "status": "trained" if training["epochs"] == training["of"] else "partly trained",
        "encoder": {"strides": [stride for _, stride in CONVOLUTIONS]},
        "training": {**training, "python": platform.python_version(), **tools},
    }
    write_folder(folder, card, networks, host, {})
    words.save(folder)
    written, accelerator = load_model(folder), Accelerator.load("epur")
    card["baseline"] = baselines(task(written, arithmetic("float32"), accelerator))
    print(f"baselines: {card['baseline']}", flush=True)
    found = evaluate(written, arithmetic("epur-fp16"), accelerator)
    score = {"metric": found.metric, "data": "test", "beam": found.beam}
    for name, metrics in zip(("float32", "epur-fp16"), found.metrics, strict=True):
        score[name] = round(metrics[found.metric], 2)
        print(f"{name}: {metrics}", flush=True)
    card["other_metrics"] = {"arithmetic": "float32", **by_key(found.metrics[0])}
    write_folder(folder, {**card, "score": score}, networks, host, {})


def learn_words(captions: list[str]) -> Words:
    """All words of the captions, by their first appearance."""
    return Words([*SPECIALS, *dict.fromkeys(w for text in captions for w in Words.split(text))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that holds emoji/ (default: EPUR_DATA)")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--export", action="store_true", help="write the best so far, and stop")
    parser.add_argument("--output", type=Path, help="folder of the model (default: this folder)")
    args = parser.parse_args()
    if args.data is not None:
        os.environ[data.VARIABLE] = str(args.data)
    if args.export and args.output is None:
        parser.error("--export needs --output: a network not yet trained stays out of this folder")
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)

    pairs = {split: read_captions(split) for split in ("train", "val")}
    texts = {split: [text for _, text in rows] for split, rows in pairs.items()}
    images = {
        split: np.stack([read_picture(path).pixels for path, _ in rows])
        for split, rows in pairs.items()
    }
    words = learn_words(texts["train"])
    ids = [[BOS, *words.encode(text)] for text in texts["train"]]
    longest = max(map(len, ids))
    captions = torch.tensor([row + [PAD] * (longest - len(row)) for row in ids])
    train, val = scaled(images["train"]), scaled(images["val"])

    torch.manual_seed(SEED)
    model = Captioner(len(words))
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.997), use_buffers=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.02)
    total = args.epochs * (len(train) // args.batch)

    def rate(step: int) -> float:
        wave = 1 + math.cos(math.pi * min(1, step / total))
        return min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * wave)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    checkpoint = args.work / "checkpoint.pt"
    epoch, seconds, best, best_epoch, best_weights = 0, 0.0, -1.0, 0, None
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for part, state in zip((model, average, optimizer, schedule), saved["states"], strict=True):
            part.load_state_dict(state)
        epoch, seconds, best, best_epoch = (
            saved[key] for key in ("epoch", "seconds", "best", "best_epoch")
        )
        best_weights = saved["best_weights"]

    while epoch < args.epochs and not args.export:
        start = time.monotonic()
        torch.manual_seed(SEED + epoch)
        model.train()
        running = 0.0
        order = torch.randperm(len(train))[: len(train) // args.batch * args.batch]
        for chosen in order.split(args.batch):
            batch = captions[chosen]
            batch = batch[:, : int((batch != PAD).sum(1).max())]
            loss = model.loss(augment(train[chosen]), batch, FORGET)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            running += loss.item() * args.batch / len(order)
        epoch += 1
        average.module.eval()
        score = caption_scores(captions_of(average.module, words, val), texts["val"])
        if score["chrF"] >= best:
            best, best_epoch = score["chrF"], epoch
            best_weights = deepcopy(average.module.state_dict())
        seconds += time.monotonic() - start
        print(
            f"epoch {epoch} loss {running:.3f} val "
            + " ".join(f"{name} {value:.1f}" for name, value in score.items())
            + f" after {seconds:.0f} s",
            flush=True,
        )
        part = checkpoint.with_suffix(".part")
        states = [p.state_dict() for p in (model, average, optimizer, schedule)]
        torch.save(
            {
                "states": states,
                "epoch": epoch,
                "seconds": seconds,
                "best": best,
                "best_epoch": best_epoch,
                "best_weights": best_weights,
            },
            part,
        )
        part.replace(checkpoint)

    if best_weights is None:
        parser.error("nothing is trained yet")
    average.module.load_state_dict(best_weights)
    training = {
        "seed": SEED,
        "epochs": epoch,
        "of": args.epochs,
        "best_epoch": best_epoch,
        "hours": round(seconds / 3600, 2),
        "threads": args.threads,
        "validation_chrf_greedy": round(best, 2),
    }
    export(average.module, words, args.output or HERE, training)


if __name__ == "__main__":
    main()
