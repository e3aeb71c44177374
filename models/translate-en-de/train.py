"""Train the English-German translator of this folder.

    pip install 'epur_emu[train]'
    EPUR_DATA=/path/to/data python train.py --work /path/to/checkpoints

A two-layer bidirectional LSTM reads the sentence, two LSTM layers write the translation: the first
decoder layer sees the words written so far, its state asks the attention for a context, and the
second layer sees both. No layer is fed back from a later one, so with known target words each layer
can be evaluated over the whole sequence.

The state of the training is kept after each epoch in ``--work``; the same command goes on from
there.
When the last epoch is done, the averaged weights are rounded to float16 and written to this folder
with the vocabulary and the card, which gets the calibration and the scores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import time
from collections import Counter, defaultdict
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sacrebleu
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from epur_emu.accelerator import Accelerator
from epur_emu.arithmetic import arithmetic
from epur_emu.checkpoints.folder import read_card, write_folder
from epur_emu.comparison import evaluate, load_model
from epur_emu.network import LstmLayer, Network
from epur_emu.tasks import data
from epur_emu.tasks.bpe import BOS, EOS, PAD, SPECIALS, Bpe
from epur_emu.tasks.translation import read_pairs

HERE = Path(__file__).resolve().parent
MERGES = 5000
EMBEDDING = CELLS = 256
SEED = 1711


class Translator(nn.Module):
    """Encoder, attention and decoder; one sentence a row, all sources of a batch equally long."""

    def __init__(self, symbols: int, dropout: float = 0.35) -> None:
        super().__init__()
        self.dropout = dropout
        self.source = nn.Embedding(symbols, EMBEDDING)
        self.target = nn.Embedding(symbols, EMBEDDING)
        self.encoder = nn.ModuleList(
            nn.LSTM(width, CELLS, batch_first=True, bidirectional=True)
            for width in (EMBEDDING, 2 * CELLS)
        )
        self.bridge = nn.Linear(2 * CELLS, 4 * CELLS)
        self.decoder = nn.ModuleList(
            nn.LSTM(width, CELLS, batch_first=True) for width in (EMBEDDING, 3 * CELLS)
        )
        self.key = nn.Linear(2 * CELLS, CELLS, bias=False)
        self.readout = nn.Linear(3 * CELLS + EMBEDDING, EMBEDDING)
        self.bias = nn.Parameter(torch.zeros(symbols))
        for table in (self.source, self.target):
            nn.init.normal_(table.weight, std=EMBEDDING**-0.5)
        for name, weight in [*self.encoder.named_parameters(), *self.decoder.named_parameters()]:
            if "weight" in name:
                nn.init.uniform_(weight, -0.08, 0.08)
            else:
                nn.init.zeros_(weight)
                if "bias_ih" in name:  # the forget gate starts open
                    weight.data[CELLS : 2 * CELLS] = 1.0

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        x = self.drop(self.source(source))
        for layer in self.encoder:
            x = self.drop(layer(x)[0])
        h1, c1, h2, c2 = torch.tanh(self.bridge(x.mean(1))).chunk(4, 1)
        return x, self.key(x), [(h1[None], c1[None]), (h2[None], c2[None])]

    def decode(
        self, words: Tensor, memory: Tensor, keys: Tensor, state: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Readout (B, T, embedding) after each of `words` (B, T), and the new state."""
        x = self.drop(self.target(words))
        h1, state1 = self.decoder[0](x, state[0])
        weights = torch.softmax(h1 @ keys.transpose(1, 2) / math.sqrt(CELLS), -1)
        context = weights @ memory
        h2, state2 = self.decoder[1](self.drop(torch.cat((h1, context), -1)), state[1])
        return self.drop(torch.tanh(self.readout(torch.cat((h2, context, x), -1)))), [
            state1,
            state2,
        ]

    def logits(self, read: Tensor) -> Tensor:
        return F.linear(read, self.target.weight, self.bias)

    def loss(self, source: Tensor, target: Tensor) -> Tensor:
        read, _ = self.decode(target[:, :-1], *self.encode(source))
        wanted = target[:, 1:]
        real = wanted != PAD
        return F.cross_entropy(self.logits(read[real]), wanted[real], label_smoothing=0.1)

    @torch.no_grad()
    def greedy(self, source: Tensor, longest: int = 60) -> list[list[int]]:
        memory, keys, state = self.encode(source)
        word = torch.full((len(source), 1), BOS)
        out = []
        ended = torch.zeros(len(source), dtype=torch.bool)
        while len(out) < longest and not ended.all():
            read, state = self.decode(word, memory, keys, state)
            word = self.logits(read).argmax(-1)
            ended |= word[:, 0] == EOS
            out.append(word)
        return torch.cat(out, 1).tolist()


def learn_bpe(sentences: list[list[str]]) -> Bpe:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = MERGES + 2 * len({c for sentence in sentences for word in sentence for c in word})
    trainer = trainers.BpeTrainer(vocab_size=size, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator((" ".join(sentence) for sentence in sentences), trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]][:MERGES]
    bpe = Bpe(merges, SPECIALS)
    counts = Counter(s for sentence in sentences for word in sentence for s in bpe.split(word))
    symbols = sorted(counts, key=lambda s: (-counts[s], s))
    return Bpe(merges, [*SPECIALS, *symbols])


def batches(pairs: list[tuple[list[int], list[int]]], tokens: int, rng: random.Random):
    """Batches of equally long sources and similar targets, some `tokens` source symbols each."""
    groups = defaultdict(list)
    for pair in pairs:
        groups[len(pair[0])].append(pair)
    out = []
    for length, group in groups.items():
        group.sort(key=lambda pair: len(pair[1]) + rng.uniform(0, 4))
        size = max(1, tokens // length)
        out += [group[i : i + size] for i in range(0, len(group), size)]
    rng.shuffle(out)
    for batch in out:
        source = torch.tensor([s for s, _ in batch])
        longest = max(len(t) for _, t in batch)
        target = torch.tensor([[BOS, *t] + [PAD] * (longest - len(t)) for _, t in batch])
        yield source, target


def bleu(model: Translator, bpe: Bpe, sources: list[list[int]], references: list[str]) -> float:
    groups = defaultdict(list)
    for i, source in enumerate(sources):
        groups[len(source)].append(i)
    out = [""] * len(sources)
    for group in groups.values():
        for i, words in zip(
            group, model.greedy(torch.tensor([sources[i] for i in group])), strict=True
        ):
            out[i] = bpe.decode(words)
    return sacrebleu.corpus_bleu(out, [references], tokenize="none", force=True).score


def rounded(model: Translator) -> Translator:
    """The network of the exported weights: one bias for each gate, all rounded to float16."""
    model = deepcopy(model).eval()
    with torch.no_grad():
        for lstm in (*model.encoder, *model.decoder):
            for name, bias in lstm.named_parameters():
                if name.startswith("bias_ih"):
                    bias += getattr(lstm, name.replace("_ih", "_hh"))
                    getattr(lstm, name.replace("_ih", "_hh")).zero_()
        for weight in model.parameters():
            weight.copy_(weight.half())
    return model


def passes(name: str, modules: nn.ModuleList):
    """Name, direction and the three weights of each pass of `modules`, layer by layer."""
    for n, lstm in enumerate(modules):
        suffixes = {"forward": "_l0"} | ({"backward": "_l0_reverse"} if lstm.bidirectional else {})
        layer = []
        for direction, suffix in suffixes.items():
            kinds = ("weight_ih", "weight_hh", "bias_ih")
            layer.append((f"{name}.{n}.{direction}", [getattr(lstm, k + suffix) for k in kinds]))
        yield layer


def arrays(model: Translator) -> tuple[dict[str, Network], dict[str, np.ndarray]]:
    """Networks and host arrays, float16, of what `rounded` gives."""

    def half(weight: Tensor, *shape: int) -> np.ndarray:
        return weight.detach().half().numpy().reshape(shape or weight.shape)

    networks = {}
    for name, modules in (("encoder", model.encoder), ("decoder", model.decoder)):
        layers = []
        for layer in passes(name, modules):
            layers.append([])
            for full, (w_x, w_h, bias) in layer:
                gates = half(w_x, 4, CELLS, -1), half(w_h, 4, CELLS, -1), half(bias, 4, CELLS)
                layers[-1].append(LstmLayer(full, *gates, reverse=full.endswith("backward")))
        networks[name] = Network(name, tuple(map(tuple, layers)), host_between=name == "decoder")
    host = {"source": model.source.weight, "target": model.target.weight, "bias": model.bias}
    for name in ("bridge", "key", "readout"):
        host |= {f"{name}.{part}": w for part, w in getattr(model, name).named_parameters()}
    return networks, {name: half(weight) for name, weight in host.items()}


@torch.no_grad()
def calibrate(model: Translator, sources: list[list[int]]) -> dict[str, float]:
    """Largest absolute value of W_x x in each pass of the encoder."""
    alpha: dict[str, float] = defaultdict(float)
    for source, _ in batches([(s, []) for s in sources], 4096, random.Random(0)):
        x = model.source(source)
        for layer, lstm in zip(passes("encoder", model.encoder), model.encoder, strict=True):
            for name, (w_x, _, _) in layer:
                alpha[name] = max(alpha[name], F.linear(x, w_x).abs().max().item())
            x = lstm(x)[0]
    return dict(alpha)


def export(
    model: Translator, bpe: Bpe, sources: list[list[int]], folder: Path, training: dict
) -> None:
    """Write the model folder, then its scores on the test set, as this package computes them."""
    model = rounded(model)
    networks, host = arrays(model)
    alpha = calibrate(model, sources)
    status = "trained" if training["epochs"] == training["of"] else "partly trained"
    tools = {name: version(name) for name in ("torch", "tokenizers", "sacrebleu", "numpy")}
    card = read_card(HERE)
    card.pop("score", None)  # of other weights
    card |= {
        "status": status,
        "training": {**training, "python": platform.python_version(), **tools},
        "calibration": {"data": "train", "quantity": "largest |W_x x| of each pass of the encoder"},
    }
    write_folder(folder, card, networks, host, alpha)
    bpe.save(folder)
    found = evaluate(load_model(folder), arithmetic("epur-fp16"), Accelerator.load("epur"))
    score = {"metric": found.metric, "data": "test_2016_flickr", "beam": found.beam}
    for name, metrics in zip(("float32", "epur-fp16"), found.metrics, strict=True):
        score[name] = round(metrics[found.metric], 2)
        print(f"{name}: test {found.metric} {score[name]:.2f}", flush=True)
    write_folder(folder, {**card, "score": score}, networks, host, alpha)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder that holds multi30k/ (default: EPUR_DATA)"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1200, help="source symbols in a batch")
    parser.add_argument("--rate", type=float, default=1.5e-3)
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

    text = {
        (split, language): [line.split() for line in lines]
        for split in ("train", "val")
        for language, lines in zip(("en", "de"), read_pairs(split), strict=True)
    }
    if not (args.work / "symbols.txt").exists():
        learn_bpe(text["train", "en"] + text["train", "de"]).save(args.work)
    bpe = Bpe.load(args.work)
    ids = {key: [bpe.encode(words) for words in lines] for key, lines in text.items()}
    pairs = list(zip(ids["train", "en"], ids["train", "de"], strict=True))
    references = [" ".join(words) for words in text["val", "de"]]

    torch.manual_seed(SEED)
    model = Translator(len(bpe))
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9985)
    )
    optimizer = torch.optim.Adam(
        model.parameters(), lr=args.rate, betas=(0.9, 0.98), weight_decay=1e-6
    )
    per_epoch = sum(1 for _ in batches(pairs, args.tokens, random.Random(0)))
    total = args.epochs * per_epoch

    def rate(step: int) -> float:
        wave = 1 + math.cos(math.pi * min(1, step / total))
        return min(1.0, (step + 1) / 600) * (0.02 + 0.98 * 0.5 * wave)

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
            batches(pairs, args.tokens, random.Random(SEED + epoch)),
            total=per_epoch,
            unit="batch",
            desc=f"epoch {epoch + 1}",
            mininterval=20,
        )
        running = 0.0
        for source, target in bar:
            loss = model.loss(source, target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            running += 0.01 * (loss.item() - running) if running else loss.item()
            bar.set_postfix(loss=f"{running:.3f}", refresh=False)
        epoch += 1
        average.module.eval()
        scores.append(bleu(average.module, bpe, ids["val", "en"], references))
        seconds += time.monotonic() - start
        print(
            f"epoch {epoch} loss {running:.3f} val BLEU (greedy) {scores[-1]:.2f}"
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
        "hours": round(seconds / 3600, 2),
        "threads": args.threads,
        "validation_bleu_greedy": round(scores[-1], 2) if scores else None,
    }
    export(average.module, bpe, ids["train", "en"], args.output or HERE, training)


if __name__ == "__main__":
    main()
