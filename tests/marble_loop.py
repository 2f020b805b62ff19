"""MARBLE v2's probe, written anew: what Lightning does with its configuration, in its order.

It shares nothing with the project but the encoder and the draws. Those follow from the seed: a
generator gives the initial weights, then each epoch's order, then the dropout of each step.
"""

import numpy as np
import soundfile
import torch
from sklearn.metrics import r2_score
from torch import nn


def clips_of(path, seconds, ratio=0.8, rate=24_000):
    """A file's clips by MARBLE's index map: the last one zero-padded, or dropped: (k, samples)."""
    wave, found = soundfile.read(path, dtype="float32")
    assert found == rate
    length = int(seconds * rate)
    n = len(wave) // length
    n += (len(wave) - n * length) / length >= ratio
    return np.pad(wave, (0, max(0, n * length - len(wave))))[: n * length].reshape(n, length)


def initial_probe(seed, n_in, n_out):
    """MARBLE's MLPDecoder, and the generator that goes on drawing for it."""
    draws = torch.Generator().manual_seed(seed)
    probe = nn.Sequential(nn.Linear(n_in, 512), nn.ReLU(), nn.Linear(512, n_out)).double()
    with torch.no_grad():
        for layer in (probe[0], probe[2]):
            bound = layer.in_features**-0.5
            for value, shape in (
                (layer.weight, (layer.in_features, layer.out_features)),
                (layer.bias, (1, layer.out_features)),
            ):
                drawn = (torch.rand(shape, generator=draws) * 2 - 1) * bound
                value.copy_(drawn.T.reshape(value.shape))
    return probe, draws


def marble(x, y, files, seed, *, lr, wait, micro, accumulate, epochs, patience, regression):
    """Train on clips and test files: what each test file is given, (files, C).

    Parameters
    ----------
    x, y, files : split -> clips' embeddings (k, D), labels and the file of each
    """
    probe, draws = initial_probe(seed, x["train"].shape[1], y["n_out"])
    loss_of = nn.MSELoss() if regression else nn.CrossEntropyLoss()
    adam = torch.optim.Adam(probe.parameters(), lr=lr)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, "max", factor=0.5, patience=wait)
    best, waited, n, epoch = -np.inf, 0, len(x["train"]), 0
    while epoch < epochs and waited < patience:
        epoch += 1
        order = torch.randperm(n, generator=draws)
        for start in range(0, n, micro):
            if start % (micro * accumulate) == 0:
                keep = torch.rand(micro * accumulate, 512, generator=draws) >= 0.2
                adam.zero_grad()
            at = order[start : start + micro]
            mask = keep[start % (micro * accumulate) :][: len(at)].double() / 0.8
            out = probe[2](torch.relu(probe[0](x["train"][at])) * mask)
            (loss_of(out, y["train"][at]) / accumulate).backward()
            last = start + micro >= n
            if last or (start // micro + 1) % accumulate == 0:
                adam.step()
        with torch.no_grad():
            out = probe(x["val"])
        score = (out.argmax(1) == y["val"]).double().mean().item() if not regression else 0.0
        for i in range(0, len(out) if regression else 0, micro):  # log_dict, on_epoch: by size
            part = slice(i, i + micro)
            score += r2_score(y["val"][part], out[part]) * len(out[part]) / len(out)
        plateau.step(score)
        best, waited = (score, 0) if score > best else (best, waited + 1)
    with torch.no_grad():  # the last epoch's weights: the checkpoint has no monitor
        out = probe(x["test"]) if regression else probe(x["test"]).softmax(1)
    names = list(dict.fromkeys(files["test"]))
    at = np.array([names.index(name) for name in files["test"]])
    return np.stack([out[at == i].mean(0) for i in range(len(names))]), epoch
