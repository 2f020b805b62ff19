"""Aggregators that learn with the probe: one small module per probe, in front of it.

Each starts as an aggregator that needs no learning, on which its input is standardised: a learned
mix as the average of its views, attention as the mean over tokens, a Transformer as it was loaded.
What the probe sees then differs from there only by what was learned. Weights are drawn from the
probe's own seed, by a generator of their own: the probe begins as it does without them.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tune.aggregators.view_selection import weigh

HEADS = 4
HIDDEN = 32
SEED_SHIFT = 2**32  # so that a pooling's draws are not the probe's
STATISTICS_BATCH = 64  # tracks
CHOOSING = ("train", "val")  # the splits whose labels choose views
UNUSED = ("predict.", "summarise.", "hole")  # only pretraining uses these


class Mix(nn.Module):
    """Softmax weights over views (layers, or scales), one weight a view.

    With all layers this is what SUPERB does, and MARBLE v1. On GiantSteps, MagnaTagATune and
    MTG-Jamendo MARBLE v2 has a linear layer over all layers side by side in its place
    (`Reduce`: 13.6 M parameters for MuQ's 13 layers, here 13).
    """

    def __init__(self, n_views: int, size: int, dtype: torch.dtype):
        super().__init__()
        self.n_views, self.n_out = n_views, size
        self.scores = nn.Parameter(torch.zeros(n_views, dtype=dtype))

    def default_lr(self, lr: float) -> float:
        """A few scores have to get somewhere in as many steps as the probe's thousands."""
        return 10 * lr

    def weights(self) -> torch.Tensor:
        """The views' weights (K,); they add up to 1."""
        return self.scores.softmax(0)

    view_weights = weights

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Average the views: (..., K, D) -> (..., D)."""
        return (x * self.weights()[:, None]).sum(-2)


class Reduce(nn.Module):
    """A linear layer over all views side by side: MARBLE v2's `MLPReduce`.

    Parameters
    ----------
    n_views, size : K and D; it has K D D + D parameters
    generator : what they are drawn from, as nn.Linear draws its own; None leaves zeros
    """

    def __init__(
        self,
        n_views: int,
        size: int,
        dtype: torch.dtype,
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.n_views, self.n_out = n_views, size
        weight, bias = torch.zeros(n_views * size, size), torch.zeros(1, size)
        if generator is not None:
            bound = (n_views * size) ** -0.5
            for part in (weight, bias):
                part.uniform_(-bound, bound, generator=generator)
        self.weight, self.bias = nn.Parameter(weight.to(dtype)), nn.Parameter(bias.to(dtype))

    def default_lr(self, lr: float) -> float:
        """As fast as the probe."""
        return lr

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Reduce the views: (..., K, D) -> (..., D)."""
        flat = x.flatten(-2)  # (..., K D)
        return (flat.reshape(-1, flat.shape[-1]) @ self.weight + self.bias).view(
            *flat.shape[:-1], self.n_out
        )


class Gate(nn.Module):
    """The chosen views side by side; without any but the first, that view as it is.

    Parameters
    ----------
    weights : (S,), 0 for views that aren't chosen (`tune.aggregators.view_selection`)
    size : D
    n_layers : layers whose views are mixed first, or None
    """

    def __init__(
        self, weights: torch.Tensor, size: int, dtype: torch.dtype, n_layers: int | None = None
    ):
        super().__init__()
        self.register_buffer("weights", weights.to(dtype, copy=True))  # saved one a seed
        self.mix = None if n_layers is None else Mix(n_layers, size, dtype)
        self.n_views = len(weights) * (n_layers or 1)
        self.chosen = weights.nonzero()[:, 0].tolist()
        self.n_out = len(self.chosen) * size

    def default_lr(self, lr: float) -> float:
        """A mix's."""
        return 10 * lr

    def view_weights(self) -> torch.Tensor:
        """Of all views (K,), layer by layer where layers are mixed."""
        if self.mix is None:
            return self.weights
        return (self.mix.weights()[:, None] * self.weights).flatten()

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Views (..., K, D) to (..., n_out)."""
        if self.mix is not None:
            x = self.mix(x.unflatten(-2, (self.mix.n_views, -1)).transpose(-3, -2))
        return (x[..., self.chosen, :] * self.weights[self.chosen, None]).flatten(-2)


class GatedAttention(nn.Module):
    """Gated attention pooling (Ilse et al. 2018, eq. 9), several heads.

    A token's score is w · (tanh(V x) * sigmoid(U x)); each head pools its own part of the
    dimensions by the softmax of its scores. w starts at zero: every token then weighs the same.

    Parameters
    ----------
    size : D of a token
    heads : how many parts; the largest number up to this that divides D is taken
    n_views : layers to mix first, or None
    generator : what V and U are drawn from
    """

    def __init__(
        self,
        size: int,
        dtype: torch.dtype,
        *,
        generator: torch.Generator,
        heads: int = HEADS,
        hidden: int = HIDDEN,
        n_views: int | None = None,
    ):
        super().__init__()
        self.n_out = size
        self.heads = next(h for h in range(min(heads, size), 0, -1) if size % h == 0)
        bound = size**-0.5
        draw = torch.rand(2, size, hidden, generator=generator, dtype=torch.float32)
        self.gates = nn.Parameter(((draw * 2 - 1) * bound).to(dtype))  # V and U
        self.scores = nn.Parameter(torch.zeros(hidden, self.heads, dtype=dtype))  # w
        self.mix = None if n_views is None else Mix(n_views, size, dtype)

    @classmethod
    def from_state(cls, size: int, state: Mapping[str, torch.Tensor]) -> "GatedAttention":
        """Rebuild one from its tensors, in float64."""
        views = len(state["mix.scores"]) if "mix.scores" in state else None
        pooling = cls(
            size,
            torch.float64,
            generator=torch.Generator(),
            n_views=views,
            heads=state["scores"].shape[1],
            hidden=state["scores"].shape[0],
        )
        pooling.load_state_dict(state)
        return pooling

    def default_lr(self, lr: float) -> float:
        """As fast as the probe."""
        return lr

    def weights(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Weights of tokens (B, N, D) in each head, (B, N, heads); 0 where the mask is False."""
        gated = (x @ self.gates[0]).tanh() * (x @ self.gates[1]).sigmoid()
        scores = gated @ self.scores  # (B, N, heads)
        return scores.masked_fill(~mask[..., None], -torch.inf).softmax(1)

    def token_weights(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Weights of tokens (B, N, [K,] D) in each head, (B, N, heads)."""
        return self.weights(x if self.mix is None else self.mix(x), mask)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool tokens (B, N, D), or (B, N, K, D) with a mix, into (B, D)."""
        if self.mix is not None:
            x = self.mix(x)
        weights = self.weights(x, mask)
        parts = x.unflatten(-1, (self.heads, -1))  # (B, N, heads, D / heads)
        return (parts * weights[..., None]).sum(1).flatten(1)


class OwnPooling(nn.Module):
    """A torch module of one's own that pools tokens and learns with the probe.

    Its class, `kind`, is called with D, the size of a token; the module turns tokens (B, N, D) and
    a mask (B, N) into (B, D'). Its weights are drawn from the probe's seed. It stays in evaluation
    mode: results must not depend on which probes are trained together, or by how many processes.

    Parameters
    ----------
    size, dtype, generator, n_views : as of `GatedAttention`

    Raises
    ------
    ValueError
        When it can't be made, gives something else, is changed by padding, or needs training mode.
    """

    kind: type[nn.Module]
    flag: str  # how messages name it

    def __init__(
        self,
        size: int,
        dtype: torch.dtype,
        *,
        generator: torch.Generator,
        n_views: int | None = None,
    ):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            try:
                self.module = self.kind(size).to(dtype)
            except Exception as error:
                raise ValueError(
                    f"{self.flag} can't be made for tokens of {size} values "
                    f"({type(error).__name__}: {error}): its class is called with that number"
                ) from error
        self.mix = None if n_views is None else Mix(n_views, size, dtype)
        self._refuse_training_mode()
        self.n_out = self.eval()._measure(size, dtype)

    @classmethod
    def from_state(cls, size: int, state: Mapping[str, torch.Tensor]) -> "OwnPooling":
        """Rebuild one from its tensors, in float64."""
        views = len(state["mix.scores"]) if "mix.scores" in state else None
        pooling = cls(size, torch.float64, generator=torch.Generator(), n_views=views)
        try:
            pooling.load_state_dict(state)
        except RuntimeError as error:
            said = str(error).splitlines()[-1].strip()
            raise ValueError(f"{cls.flag} has other weights than the run's: {said}") from error
        return pooling

    def default_lr(self, lr: float) -> float:
        """As fast as the probe."""
        return lr

    def train(self, mode: bool = True):
        """Keep the module in evaluation mode."""
        super().train(mode)
        self.module.eval()
        return self

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool tokens (B, N, D), or (B, N, K, D) with a mix, into (B, D')."""
        if self.mix is not None:
            x = self.mix(x)
        out = self.module(x, mask)
        if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != len(x):
            got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise ValueError(
                f"{self.flag} must make a tensor (B, D') of tokens {tuple(x.shape)}, got {got}"
            )
        return out.to(x.dtype)

    def _refuse_training_mode(self) -> None:
        """Raise ValueError for layers that do something else in training."""
        for part in self.module.modules():
            name = type(part).__name__
            active = "Dropout" in name and part.p > 0
            if active or "BatchNorm" in name:
                raise ValueError(
                    f"{self.flag} holds a {name}, whose result depends on what is trained beside "
                    f"it: leave it out (the probe has a dropout of its own), or set it to 0"
                )

    @torch.no_grad()
    def _measure(self, size: int, dtype: torch.dtype) -> int:
        """Find D' by tokens of noise, with padding, which must change nothing."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 5, size, generator=generator, dtype=torch.float32).to(dtype)
        mask = torch.ones(2, 5, dtype=torch.bool)
        mask[:, 3:] = False
        mix, self.mix = self.mix, None
        padded, alone = self(x, mask), self(x[:, :3], mask[:, :3])
        self.mix = mix
        if not torch.isfinite(padded).all():
            raise ValueError(f"{self.flag} gives values that are not finite for noise")
        if padded.shape != alone.shape or not torch.allclose(padded, alone, rtol=1e-4, atol=1e-5):
            raise ValueError(
                f"{self.flag} is changed by padding: tokens where the mask is False must not count"
            )
        return padded.shape[1]


def own_pooling(kind: type, flag: str) -> type[OwnPooling]:
    """The class of a pooling whose module is of a class of one's own.

    Parameters
    ----------
    kind : a subclass of torch.nn.Module
    flag : how messages name it, such as "--agg mine.py:Mine"

    Raises
    ------
    ValueError
        When it is no torch module.
    """
    if not issubclass(kind, nn.Module):
        raise ValueError(
            f"{flag} must be a function (tokens (B, N, D), mask (B, N)) -> (B, D'), or a torch "
            f"module's class, got the class {kind.__name__}"
        )
    return type(f"Own{kind.__name__}", (OwnPooling,), {"kind": kind, "flag": flag})


class TunedTransformer(nn.Module):
    """A Transformer aggregator that is trained on with the probe.

    Its embeddings are standardised by what they are on the training tracks at the start. Its
    dropout stays off: results must not depend on how tracks are batched over processes.

    Parameters
    ----------
    model : tune.aggregators.transformer.model.AggregatorModel; it is changed
    readout : see `AggregatorModel.embed`; None is the model's own. With "gated" the views are
        chosen by what they are at the start; without any but the tokens' mean nothing is trained
    data : tune.probing.bank.ProbeData with tokens
    """

    def __init__(self, model: nn.Module, readout: str | None, data):
        super().__init__()
        self.model, self.readout = model.requires_grad_(True), readout or model.config.readout
        for name, parameter in model.named_parameters():
            if name.startswith(UNUSED) or parameter is model.core.get_input_embeddings().weight:
                parameter.requires_grad = False
        self.register_buffer("centre", torch.zeros((), dtype=data.dtype))
        self.register_buffer("scale", torch.ones((), dtype=data.dtype))
        self.gate = None
        start = self._embed_split(data, "train")
        std, self.centre = start.std(0, correction=0), start.mean(0)
        self.scale = torch.where(std > 1e-6 * (1 + self.centre.abs()), 1 / std, 0.0)
        self.n_out = len(self.scale)
        if self.readout == "gated":
            self._close_gate(data)

    def _close_gate(self, data) -> None:
        """Choose views by what the training and validation tracks' are now."""
        tokens, mask = data.tokens["train"]
        with torch.no_grad():
            names = list(self.model.views(tokens[0, :1].float(), mask[:1], self.readout))
        inputs = torch.cat([self._embed_split(data, split) for split in CHOOSING])
        inputs = inputs.unflatten(-1, (len(names), -1))
        self.gate = Gate(choose(data, inputs, names), inputs.shape[-1], data.dtype)
        self.n_out = self.gate.n_out
        if self.gate.chosen == [0]:  # DDP waits for a gradient of everything that has one
            self.model.requires_grad_(False)

    @torch.no_grad()
    def _embed_split(self, data, split: str) -> torch.Tensor:
        """Embeddings of a split's tracks, (n, D')."""
        tokens, mask = data.tokens[split]
        self.eval()
        parts = zip(tokens[0].split(STATISTICS_BATCH), mask.split(STATISTICS_BATCH), strict=True)
        return torch.cat([self(x, m) for x, m in parts])

    def default_lr(self, lr: float) -> float:
        """Lower than the probe's, whatever that is."""
        return min(1e-4, lr)

    def train(self, mode: bool = True):
        """Keep the Transformer in evaluation mode (no dropout)."""
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embed tokens (B, N, D) float32 and standardise: (B, D') in the probe's type."""
        if self.readout == "gated":
            out = torch.cat(list(self.model.views(x.float(), mask, self.readout).values()), -1)
        else:
            out = self.model.embed(x.float(), mask, self.readout)
        out = (out.to(self.centre.dtype) - self.centre) * self.scale
        return out if self.gate is None else self.gate(out.unflatten(-1, (self.gate.n_views, -1)))


def make_poolings(
    pooling: type, data, seeds: Sequence[int], device: torch.device
) -> list[nn.Module]:
    """One pooling per probe over a task's tokens (`tune.probing.bank.ProbeData`).

    Parameters
    ----------
    pooling : class as `GatedAttention`
    """
    return [
        pooling(
            data.n_in,
            data.dtype,
            n_views=data.n_views,
            generator=torch.Generator().manual_seed(seed + SEED_SHIFT),
        ).to(device)
        for seed in seeds
    ]


def make_transformers(
    data,
    seeds: Sequence[int],
    start: Callable[[int], nn.Module],
    readout: str | None,
    device: torch.device,
) -> list[TunedTransformer]:
    """One Transformer per probe, to be trained with it.

    Parameters
    ----------
    start : seed -> the model to begin with (a fresh copy each time)
    """
    return [TunedTransformer(start(seed).to(device), readout, data) for seed in seeds]


def choose(data, inputs: torch.Tensor, views: Sequence[str]) -> torch.Tensor:
    """Weights (S,) of views by the labels of a task (`tune.aggregators.view_selection.weigh`).

    Parameters
    ----------
    data : tune.probing.bank.ProbeData
    inputs : (n, S, D), of the training tracks, then those of validation
    views : names of the S views
    """
    labels = torch.cat([data.labels[split] for split in CHOOSING])
    if not labels.is_floating_point():
        labels = F.one_hot(labels, data.n_out)
    groups = None
    if data.groups is not None:
        names = np.concatenate([data.groups[split] for split in CHOOSING])
        groups = np.unique(names, return_inverse=True)[1]
    return weigh(inputs, labels, views, groups)


def make_gates(
    data, seeds: Sequence[int], views: Sequence[str], mix: bool, device: torch.device
) -> list[Gate]:
    """A gate per probe; those of a layer are the same for all seeds: choosing draws nothing.

    Parameters
    ----------
    views : names of the S views
    mix : whether layers are mixed; their plain average then decides
    """
    n_layers = data.n_views // len(views) if mix else 1
    weights = []
    for layer in range(data.n_layers):
        inputs = torch.cat([data.inputs[split][layer] for split in CHOOSING])  # (n, K, D)
        inputs = inputs.unflatten(-2, (n_layers, len(views))).mean(-3)  # (n, S, D)
        weights.append(choose(data, inputs, views))
    return [
        Gate(found, data.n_in, data.dtype, n_layers if mix else None).to(device)
        for found in weights
        for _ in range(len(seeds) // data.n_layers)
    ]


def make_mixes(
    data, seeds: Sequence[int], device: torch.device, *, reduce: bool = False
) -> list[nn.Module] | None:
    """One mix (or `Reduce`) per probe, or None when there is one view only."""
    if data.n_views is None:
        return None
    if reduce:
        return [
            Reduce(
                data.n_views,
                data.n_in,
                data.dtype,
                generator=torch.Generator().manual_seed(seed + SEED_SHIFT),
            ).to(device)
            for seed in seeds
        ]
    return [Mix(data.n_views, data.n_in, data.dtype).to(device) for _ in seeds]


def describe(
    probes,
    seeds: Sequence[int],
    *,
    views: Sequence[str],
    checkpoint: str | None,
    tuned: bool,
    readout: str | None,
) -> dict:
    """What a result says about an aggregator that learns: parameters, weights, checkpoint."""
    poolings = [getattr(probe, "joiner", None) for probe in probes]
    learnt = 0
    if poolings[0] is not None:
        learnt = sum(p.numel() for p in poolings[0].parameters() if p.requires_grad)
    mixes = [p if hasattr(p, "view_weights") else getattr(p, "mix", None) for p in poolings]
    return {
        "parameters_learned_with_probe": learnt,
        "checkpoint": checkpoint,
        "tuned": tuned,
        "readout": readout,
        "views": list(views),
        "view_weights": {
            str(seed): mix.view_weights().tolist()
            for seed, mix in zip(seeds, mixes, strict=True)
            if mix is not None
        },
    }


@torch.inference_mode()
def attention_columns(probes, seeds: Sequence[int], data, layer: int, split) -> dict | None:
    """Columns of attention.parquet: each test track's weight per token and seed.

    Parameters
    ----------
    layer : index of the layer in `data` that was chosen
    split : the test split, with the column id

    Returns
    -------
    dict of seed, id, token, start_s, end_s, weight (mean over heads), and one column a head; None
    for aggregators without attention
    """
    if not isinstance(getattr(probes[0], "joiner", None), GatedAttention):
        return None
    row = torch.tensor([[layer]])
    out: dict[str, list] = {k: [] for k in ("seed", "id", "token", "start_s", "end_s", "weight")}
    heads: dict[str, list] = {f"head_{h}": [] for h in range(probes[0].joiner.heads)}
    for seed, probe in zip(seeds, probes, strict=True):
        for i, name in enumerate(split["id"]):
            values, real = data.get_batch("test", row, torch.tensor([i]))  # (1, 1, N, [K,] D)
            weights = probe.joiner.token_weights(values[0], real[0])[0]  # (N, heads)
            weights = weights[real[0][0]].cpu()
            times = data.times["test"][i]
            n = len(times)
            out["seed"] += [seed] * n
            out["id"] += [name] * n
            out["token"] += range(n)
            out["start_s"] += times[:, 0].tolist()
            out["end_s"] += times[:, 1].tolist()
            out["weight"] += weights.mean(1).tolist()
            for h, column in enumerate(heads.values()):
                column += weights[:, h].tolist()
    return out | heads
