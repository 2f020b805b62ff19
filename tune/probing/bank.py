"""MARBLE's probe, several of them trained side by side.

A probe is one hidden layer of 512 with ReLU and dropout 0.2. A bank trains one probe per seed (and
per layer, with `--layer all`) in one loop over epochs and batches. Each has its own initial
weights, order of tracks and dropout, drawn from its own seed on the CPU: its result does not depend
on which other probes share the bank, on the number of processes or on the device. That, and float64
(the probes are tiny), is what makes a number reproducible; float32 halves time and memory where
there are many tracks and layers, and may differ between machines in the last digits.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import Dataset

from tune.probing.intervals import main_score
from tune.probing.token_batches import TokenBatches
from tune.tasks.label_kinds import label_kind

HIDDEN = 512
DROPOUT = 0.2
ROUNDING = 1e-7  # of float32, relative
NAMED = 3  # tracks of a batch, in a message


class Standardiser:
    """Zero mean and unit variance by training statistics.

    Parameters
    ----------
    values : (..., n, D) training embeddings; statistics are taken over n
    valid : same shape, bool; False at padding values: they count nowhere and become 0
    unchanged : leave values as they are, but for the padding
    """

    def __init__(self, values: torch.Tensor, valid: torch.Tensor, *, unchanged: bool = False):
        shape, size = values.shape[:-2], values.shape[-1]
        flat = (x.reshape(-1, *x.shape[-2:]) for x in (values, valid))  # (V, n, D) each
        # One view at a time: all together may be large.
        found = [self._statistics(*view) for view in zip(*flat, strict=True)]
        self.mean, std = (torch.stack(x).view(*shape, 1, size) for x in zip(*found, strict=True))
        # A dimension that never varies in training (but for the rounding of float32, in which
        # embeddings are kept) says nothing: it becomes 0. What is computed of an embedding, such as
        # a deviation, has the rounding of its largest values.
        largest = torch.maximum(self.mean.abs(), std).amax(-1, keepdim=True)
        varies = std > 1e-12 + ROUNDING * largest
        self.scale = torch.where(varies, 1 / std, 0.0)
        if unchanged:
            self.mean, self.scale = torch.zeros_like(self.mean), torch.ones_like(self.scale)

    @staticmethod
    def _statistics(values: torch.Tensor, valid: torch.Tensor) -> tuple:
        """Mean and standard deviation (1, D) of (n, D)."""
        weight = valid.to(values.dtype)
        count = weight.sum(-2, keepdim=True).clamp(min=1)
        mean = (values * weight).sum(-2, keepdim=True) / count
        variance = (((values - mean) * weight) ** 2).sum(-2, keepdim=True) / count
        return mean, variance.sqrt()

    def __call__(
        self, values: torch.Tensor, valid: torch.Tensor, *, in_place: bool = False
    ) -> torch.Tensor:
        """Standardise (..., n, D); holes become 0."""
        out = (values if in_place else values.clone()).sub_(self.mean).mul_(self.scale)
        for view, where in zip(*(x.view(-1, *x.shape[-2:]) for x in (out, valid)), strict=True):
            view.mul_(where)  # PyTorch makes numbers of the mask first: of one view at a time
        return out


class ProbeData:
    """What the probes see of a task: standardised inputs and labels of every split, on a device.

    Parameters
    ----------
    task : tune.tasks.Task
    features : {split: tune.aggregators.track_features.Features}; V views, which are scales x layers
    device : torch.device
    n_scales : how many scales the views have
    mix : whether each probe mixes all layers, instead of one probe a layer
    tokens : {split: tune.aggregators.track_features.Tokens}, for aggregators that learn with the
    probe: the probes
        then get tokens, standardised as `features` are (their mean is that of the tokens)
    raw : leave the tokens as they are, in float32, for a Transformer that standardises itself
    owners : {split: (n,) numbers of tracks}, where the features are of segments (late fusion): a
        segment has its track's label
    scale_inputs, scale_targets : whether inputs, and labels that are numbers, are standardised
    in_place : whether the features' own tensors are standardised, which saves their size
    dtype : of inputs and probes; float32 on MPS, which has no float64

    Attributes
    ----------
    inputs : {split: (L, n, D), or (L, n, K, D) with K views to mix} standardised by training
        statistics; L is 1 when layers are mixed
    tokens : {split: TokenBatches} or None
    n_views : K, or None when there is nothing to mix
    kind : the task's `LabelKind`
    n_train : training samples, which are tracks or segments
    labels : {split: of each sample what the kind's loss takes: (n,) class numbers, (n, C) values,
        standardised by training statistics, or, for tags, (n, C) of 0 and 1}
    truth : {split: ndarray of the tracks' labels as they came}
    groups : {split: of each track what it shares with others}, where a column says it, or None
    """

    def __init__(
        self,
        task,
        features,
        device: torch.device,
        *,
        n_scales: int = 1,
        mix: bool = False,
        tokens=None,
        raw: bool = False,
        owners=None,
        scale_inputs: bool = True,
        scale_targets: bool = True,
        in_place: bool = False,
        dtype: torch.dtype = torch.float64,
    ):
        self.kind = label_kind(task.kind)
        self.dtype = torch.float32 if device.type == "mps" else dtype
        self.n_scales, self.mix = n_scales, mix
        train = features["train"]
        self.whitening = train.whitening
        self.standardise = Standardiser(train.values, train.valid, unchanged=not scale_inputs)
        views = {
            s: self.standardise(f.values, f.valid, in_place=in_place) for s, f in features.items()
        }
        self.inputs = {s: self._arrange(v, 1).to(device, self.dtype) for s, v in views.items()}
        self.tokens = None
        if tokens is not None:
            mean, scale = (
                x.flatten(0, -2) for x in (self.standardise.mean, self.standardise.scale)
            )
            self.tokens = {
                s: TokenBatches(
                    t,
                    *((None, None) if raw else (mean, scale)),
                    n_scales=n_scales,
                    mix=mix,
                    dtype=torch.float32 if raw else self.dtype,
                    device=device,
                )
                for s, t in tokens.items()
            }
            self.times = {s: t.times for s, t in tokens.items()}
        shape = self.inputs["train"].shape  # (L, n, [K,] D)
        self.n_train, self.n_in = shape[1], shape[-1]
        self.n_views = shape[2] if len(shape) == 4 else None
        self.truth = {s: np.asarray(task.splits[s]["label"]) for s in features}
        self.groups = groups_of({s: task.splits[s] for s in features})
        self.n_out = len(getattr(task, self.kind.parts))
        self.centre = self.scale = None
        learned = self.truth
        self.scaled = self.kind.standardised and scale_targets
        if self.scaled:
            self.centre, self.scale = self.truth["train"].mean(0), self.truth["train"].std(0)
            learned = {s: (t - self.centre) / self.scale for s, t in self.truth.items()}
        # Whole numbers are those of classes, which a loss takes as they are.
        self.labels = {
            s: torch.from_numpy(t).to(device, torch.int64 if t.dtype.kind == "i" else self.dtype)
            for s, t in learned.items()
        }
        self.owners = None
        if owners is not None:
            self.owners = {s: owner.to(device) for s, owner in owners.items()}
            self.labels = {s: labels[self.owners[s]] for s, labels in self.labels.items()}

    def _arrange(self, views: torch.Tensor, at: int) -> torch.Tensor:
        """Views (V, n, ..., D) to layers first: (L, n, ..., D), or (L, n, ..., K, D) to be mixed.

        `at` is the number of axes that belong to a track's place (n, and N for tokens).
        """
        views = views.unflatten(0, (self.n_scales, -1)).movedim(0, at + 1)  # (L, n, ..., S, D)
        if self.mix:
            return views.movedim(0, -3).flatten(-3, -2).unsqueeze(0)  # (1, n, ..., L S, D)
        return views.squeeze(-2) if self.n_scales == 1 else views

    def get_batch(self, split: str, rows: torch.Tensor, index: torch.Tensor) -> tuple:
        """What M probes see of a batch of tracks.

        Parameters
        ----------
        rows : (M, 1), each probe's layer, as `layer_of` gives them
        index : (M, B) or (B,), tracks

        Returns
        -------
        inputs (M, B, [K,] D) and None; or tokens (M, B, N, [K,] D) and their mask (M, B, N), or
        lists of M (`TokenBatches.batch`)
        """
        if self.tokens is not None:
            return self.tokens[split].batch(rows, index)
        values, m = self.inputs[split], len(rows)
        if len(values) == 1 and index.ndim == 1:  # the same for all: nothing is copied
            return values[0, index].expand(m, *[-1] * (values.ndim - 1)), None
        return values[rows, index], None

    @property
    def n_layers(self) -> int:
        """How many sets of probes there are: one a layer, or one when layers are mixed."""
        return len(self.inputs["train"])

    def layer_of(self, n_seeds: int) -> torch.Tensor:
        """The index of each probe's layer, (M, 1), in the order that a bank has them."""
        device = self.inputs["train"].device
        return torch.arange(self.n_layers, device=device).repeat_interleave(n_seeds)[:, None]

    def view_names(self, scales: Sequence[str], layers: Sequence[int]) -> list[str]:
        """Names of the K views that are mixed, in the order of their weights; else none."""
        if self.n_views is None:
            return []
        lengths = [f"{name} s" if name[0].isdigit() else name for name in scales]
        if not self.mix:
            return lengths
        several = len(scales) > 1
        return [f"layer {k}" + (f", {s}" if several else "") for k in layers for s in lengths]

    def labels_for(self, split: str, m: int) -> torch.Tensor:
        """A split's labels for each of m probes: (m, n) or (m, n, C)."""
        labels = self.labels[split]
        return labels.expand(m, *labels.shape)

    def predict(self, outputs: torch.Tensor) -> np.ndarray:
        """Probe outputs (M, n, C) to predictions: class numbers (M, n), or values (M, n, C).

        Of tags the values are probabilities.
        """
        decided = self.kind.decide(outputs)
        return decided * self.scale + self.centre if self.scaled else decided

    def n_samples(self, split: str) -> int:
        """Tracks of a split, or segments with late fusion."""
        return len(self.labels[split])

    def sample_truth(self, split: str) -> np.ndarray:
        """The label of each sample's track, as it came."""
        truth = self.truth[split]
        return truth if self.owners is None else truth[self.owners[split].cpu().numpy()]

    def sample_paths(self, paths: Sequence[str]) -> list[str]:
        """The training samples' files, of those of the tracks."""
        return paths if self.owners is None else [paths[i] for i in self.owners["train"].tolist()]

    def join(self, split: str, outputs: torch.Tensor, averaged: str = "outputs") -> torch.Tensor:
        """Outputs of samples (M, n, C) to those of tracks: the mean over a track's segments.

        Parameters
        ----------
        averaged : "outputs" (logits or values) or "probabilities", whose logits are returned
        """
        if self.owners is None:
            return outputs
        plain = averaged == "outputs" or self.kind.of_targets
        if not plain:
            outputs = outputs.sigmoid() if self.kind.several else outputs.softmax(-1)
        means = average(outputs, self.owners[split], len(self.truth[split]))
        if plain:
            return means
        return means.logit() if self.kind.several else means.log()

    def val_scores(
        self, outputs: torch.Tensor, unit: str, averaged: str, batch_size: int
    ) -> list[float]:
        """The main metric of M probes' outputs (M, n, C) for the validation split.

        Parameters
        ----------
        unit : "track", "segment", or "batch": the mean over batches of samples by their sizes,
            0 where it is undefined (as torchmetrics has it), without a batch of a single sample
        averaged : see `join`
        batch_size : samples of a batch
        """
        truth = self.truth["val"]
        if unit == "track":
            outputs = self.join("val", outputs, averaged)
        else:
            truth = self.sample_truth("val")
        guesses, kind = self.predict(outputs), self.kind.name
        if unit != "batch":
            return [main_score(kind, truth, guess) for guess in guesses]
        parts = [slice(i, i + batch_size) for i in range(0, len(truth), batch_size)]
        sizes = np.array([len(truth[part]) for part in parts])
        means = []
        for guess in guesses:
            each = np.array([main_score(kind, truth[part], guess[part]) for part in parts])
            weights = np.where(sizes > 1, sizes, 0)
            means.append(
                float(np.average(np.nan_to_num(each), weights=weights)) if weights.any() else np.nan
            )
        return means

    def chance_prediction(self, split: str) -> np.ndarray:
        """The prediction without any input: the most frequent training class, or the mean.

        Of tags that is how frequent each is; it ranks no track above another.
        """
        return self.kind.chance(self.truth["train"], len(self.truth[split]))

    def constants(self, layer: int, *, inputs: bool = True) -> dict[str, torch.Tensor]:
        """What a saved probe needs beside its weights, for one layer (all, where they are mixed).

        With several views the statistics are (K, D), in the order of the mix's weights. `inputs`
        is off where what stands in front of the probe brings its own.
        """
        mean, scale = (
            self._arrange(value, 1)[layer, 0]
            for value in (self.standardise.mean, self.standardise.scale)
        )
        out = {"standardise.mean": mean, "standardise.scale": scale} if inputs else {}
        if self.scaled:
            out |= {
                "target.centre": torch.from_numpy(self.centre),
                "target.scale": torch.from_numpy(self.scale),
            }
        if self.whitening and not self.mix:  # of all layers it would be tens of megabytes
            mean, matrix = self.whitening[layer]
            out |= {"whitening.mean": mean, "whitening.matrix": matrix.float()}
        return {name: value.contiguous() for name, value in out.items()}


class Probe(nn.Module):
    """One head: Linear(D, 512), ReLU, dropout, Linear(512, C); MARBLE's `MLPDecoder`.

    Without hidden units it is Linear(D, C), MARBLE's `LinearDecoder`.
    """

    def __init__(self, n_in: int, n_out: int, hidden: int = HIDDEN, *, generator: torch.Generator):
        super().__init__()
        if hidden:
            self.w1, self.b1 = _linear(n_in, hidden, generator)
        self.w2, self.b2 = _linear(hidden or n_in, n_out, generator)

    def groups(self, rates: Mapping[str, float]) -> list[dict]:
        """Parameters for an optimiser, the probe's and those of what stands in front of it."""
        own = [p for name, p in self.named_parameters() if "." not in name]
        groups = [{"params": own, "lr": rates["probe"]}]
        if hasattr(self, "joiner"):
            learning = [p for p in self.joiner.parameters() if p.requires_grad]
            groups.append({"params": learning, "lr": rates["pooling"]})
        return groups


class ProbeBank(nn.Module):
    """M probes side by side.

    Parameters
    ----------
    seeds : one a probe
    n_in, n_out, hidden : sizes; without hidden units a probe is linear. With poolings the input of
        each probe has its pooling's size
    dropout : probability of zeroing a hidden unit in training
    poolings : one module a probe that turns its batch and mask into (B, D), learned with it
        (`tune.aggregators.trainable`); None when the batch is that already
    """

    def __init__(
        self,
        seeds: Sequence[int],
        n_in: int,
        n_out: int,
        *,
        hidden: int = HIDDEN,
        dropout: float = DROPOUT,
        dtype: torch.dtype = torch.float64,
        poolings: Sequence[nn.Module] | None = None,
    ):
        super().__init__()
        self.n_in, self.hidden, self.dropout = n_in, hidden, dropout
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        sizes = [n_in] * len(seeds) if poolings is None else [p.n_out for p in poolings]
        self.probes = nn.ModuleList(
            Probe(size, n_out, hidden, generator=g).to(dtype)
            for size, g in zip(sizes, self.generators, strict=True)
        )
        self.pooled = poolings is not None
        for probe, pooling in zip(self.probes, poolings or [], strict=self.pooled):
            probe.joiner = pooling  # its name in saved weights

    def forward(
        self,
        x: torch.Tensor,
        keep: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        which: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Run every probe, or those in `which`, on its own batch.

        Parameters
        ----------
        x : (M, B, D), or what the poolings take: (M, B, K, D) views or (M, B, N, [K,] D) tokens
        mask : (M, B, N), of tokens
        keep : (M, B, hidden), what dropout multiplies the hidden units by (see `dropout_masks`)
        which : numbers of the probes that the batches are of, by default of all M

        Returns
        -------
        logits or standardised values (M, B, C)
        """
        outputs = []
        # One after the other: a batched product would copy all their weights together each time.
        for i, probe in enumerate(some(self.probes, which)):
            inputs = x[i]
            if self.pooled:
                inputs = probe.joiner(inputs, None if mask is None else mask[i])
            if self.hidden:
                inputs = F.relu(torch.addmm(probe.b1, inputs, probe.w1))  # (B, hidden)
            if keep is not None and self.hidden:
                inputs = inputs * keep[i]
            outputs.append(torch.addmm(probe.b2, inputs, probe.w2))
        return torch.stack(outputs)

    def dropout_masks(self, n: int, which: Sequence[int] | None = None) -> torch.Tensor:
        """Draw the dropout of a whole (global) batch of n tracks: (M, n, hidden)."""
        draws = torch.stack(
            [
                torch.rand(n, self.hidden, generator=g) >= self.dropout
                for g in some(self.generators, which)
            ]
        )
        return draws.to(self.probes[0].w2.dtype) / (1 - self.dropout)

    def orders(self, n: int, which: Sequence[int] | None = None) -> torch.Tensor:
        """Draw each probe's order of n training tracks: (M, n)."""
        return torch.stack([torch.randperm(n, generator=g) for g in some(self.generators, which)])


def some(things: Sequence, which: Sequence[int] | None) -> Sequence:
    """Those whose numbers are in `which`; all where it is None."""
    return things if which is None else [things[i] for i in which]


def make_optimizers(bank: ProbeBank, recipe, lr: float, pooling_lr: float | None = None) -> tuple:
    """Adam for each probe and what learns in front of it, and the plateau rule for its rate.

    Parameters
    ----------
    recipe : tune.tasks.label_kinds.Recipe
    pooling_lr : of what learns in front of the probe; None is its default

    Returns
    -------
    list of optimizers and list of schedulers, one a probe each
    """
    pooling = getattr(bank.probes[0], "joiner", None)
    rates = {"probe": lr, "pooling": pooling_lr or (pooling and pooling.default_lr(lr))}
    optimizers = [Adam(probe.groups(rates), fused=True) for probe in bank.probes]
    plateau = dict(factor=recipe.plateau_factor, patience=recipe.plateau_patience)
    return optimizers, [ReduceLROnPlateau(o, "max", **plateau) for o in optimizers]


class PaddedIndices(Dataset):
    """Positions 0..n-1 in blocks of the effective batch, padded with -1 to divide by processes.

    With `split_batches` every process gets its share of each block, whatever their number, and
    the padding (weight 0) keeps them in step.
    """

    def __init__(self, n: int, batch_size: int, n_processes: int):
        self.block = -(-batch_size // n_processes) * n_processes
        self.items = []
        for start in range(0, n, batch_size):
            real = list(range(start, min(start + batch_size, n)))
            self.items += real + [-1] * (self.block - len(real))

    def __len__(self) -> int:
        """Number of positions, padding included."""
        return len(self.items)

    def __getitem__(self, i: int) -> int:
        """A position, or -1."""
        return self.items[i]


class NonFiniteLossLocator:
    """An epoch's first batch whose loss isn't finite, found without waiting for the device."""

    def __init__(self, device: torch.device):
        self.n, self.first = 0, torch.full((2,), float("inf"), device=device)  # batch, probe

    def see(self, each: torch.Tensor) -> None:
        """Look at the losses (M, B) of the next batch."""
        bad = ~torch.isfinite(each.detach()).all(1)  # (M,)
        here = torch.stack([torch.full_like(self.first[0], self.n), bad.float().argmax()])
        self.first = torch.where(bad.any() & self.first[0].isinf(), here, self.first)
        self.n += 1

    def describe(self, accelerator, orders, batch_size: int, tracks: Sequence[str]) -> str:
        """Name the batch and some of its tracks; says so where only validation isn't finite.

        Parameters
        ----------
        orders : (M, n) of that epoch
        tracks : the training tracks' paths
        """
        found = accelerator.gather(self.first[None])  # (processes, 2)
        batch, probe = min(found.tolist())
        if batch == float("inf"):
            return ", on the validation split"
        order = orders[int(probe)].tolist()
        some = order[int(batch) * batch_size : (int(batch) + 1) * batch_size]
        names = ", ".join(str(tracks[i]) for i in some[:NAMED])
        more = f" and {len(some) - NAMED} more" if len(some) > NAMED else ""
        return f", batch {int(batch) + 1} of {self.n} ({names}{more})"


class EarlyStopping:
    """Each probe's best epoch by the validation metric, and early stop.

    An equal score with a lower loss counts as better, which matters on small validation splits.
    Where the metric is undefined (R² of a constant target) minus the loss stands in for it.

    Parameters
    ----------
    bank : ProbeBank
    patience : epochs without improvement after which a probe stops (MARBLE: 20)
    tie_break : "loss", or "none" where only a better score counts
    weights : "best" or "last": which of a probe's epochs `restore` puts back

    Attributes
    ----------
    score, epoch : (M,), of the weights that `restore` puts back
    curves : of each probe its validation score in every epoch until it stopped
    chosen : name of what else was chosen on validation -> (M,) values
    """

    def __init__(
        self, bank: ProbeBank, patience: int, *, tie_break: str = "loss", weights: str = "best"
    ):
        m = len(bank.probes)
        self.patience, self.ties, self.last = patience, tie_break == "loss", weights == "last"
        self.score, self.epoch = np.full(m, -np.inf), np.zeros(m, int)
        self.best_score, self.best_loss = np.full(m, -np.inf), np.full(m, np.inf)
        self.best_epoch = np.zeros(m, int)
        self.stopped = np.zeros(m, bool)
        self.states: list[dict] = [{} for _ in range(m)]
        self.curves: list[list[float]] = [[] for _ in range(m)]
        self.chosen: dict[str, np.ndarray] = {}

    def update(self, bank: ProbeBank, epoch: int, scores: np.ndarray, losses: np.ndarray) -> bool:
        """Note an epoch's validation scores and losses (M,); return whether all have stopped."""
        scores = self.comparable(scores, losses)
        for i in np.flatnonzero(~self.stopped):
            self.curves[i].append(float(scores[i]))
            better = scores[i] > self.best_score[i]
            tie = scores[i] == self.best_score[i] and losses[i] < self.best_loss[i]
            best = better or (tie and self.ties) or not self.states[i]
            if best or self.last:
                self.states[i] = {k: v.clone() for k, v in bank.probes[i].state_dict().items()}
                self.score[i], self.epoch[i] = scores[i], epoch
            if best:
                self.best_score[i], self.best_loss[i] = scores[i], losses[i]
                self.best_epoch[i] = epoch
            elif epoch - self.best_epoch[i] >= self.patience:
                self.stopped[i] = True
        return bool(self.stopped.all())

    @staticmethod
    def comparable(scores: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """Scores, or minus the loss where the metric is undefined (R² of a constant target)."""
        return np.where(np.isfinite(scores), scores, -losses)

    def restore(self, bank: ProbeBank) -> None:
        """Put every probe's best (or last) weights back."""
        for probe, state in zip(bank.probes, self.states, strict=True):
            probe.load_state_dict(state)


def choose_rates(
    banks: Sequence[ProbeBank], selections: Sequence[EarlyStopping], rates: Sequence[float]
) -> tuple[ProbeBank, EarlyStopping]:
    """Of banks trained at several rates, each probe of the rate that is best on validation.

    At equal scores the rate named first is taken.

    Returns
    -------
    the first bank and its selection, with the probes, scores and epochs that were chosen
    """
    best = np.argmax([s.score for s in selections], axis=0)  # (M,)
    bank, selection = banks[0], selections[0]
    for i, j in enumerate(best):
        bank.probes[i] = banks[j].probes[i]
        for name in ("score", "epoch", "best_score", "best_epoch"):
            getattr(selection, name)[i] = getattr(selections[j], name)[i]
        selection.curves[i] = selections[j].curves[i]
    selection.chosen["lr"] = np.array(rates)[best]
    return bank, selection


def groups_of(splits: Mapping) -> dict | None:
    """Each track's group: of the folds' column, or the track of which files are clips."""
    for column in ("group", "track"):
        if all(column in getattr(split, "column_names", split) for split in splits.values()):
            return {name: split[column][:] for name, split in splits.items()}
    return None


def join_clips(outputs: torch.Tensor, truth: np.ndarray, split) -> tuple:
    """Average a track's clips (MARBLE scores GiantSteps so).

    Parameters
    ----------
    outputs : (M, n, C), of files
    truth : (n,) or (n, C)
    split : the split, with the columns id and, where files are clips, track

    Returns
    -------
    outputs, truth and ids of tracks, in the order of their first clips

    Raises
    ------
    ValueError
        When the clips of a track have different labels.
    """
    if "track" not in split.column_names:
        return outputs, truth, split["id"][:]
    tracks = split["track"][:]
    names = list(dict.fromkeys(tracks))
    number = {name: i for i, name in enumerate(names)}
    at = np.array([number[name] for name in tracks])
    first = np.unique(at, return_index=True)[1]
    for i, name in enumerate(tracks):
        if (truth[i] != truth[first[at[i]]]).any():
            raise ValueError(f"the clips of the test track {name} have different labels")
    index = torch.from_numpy(at).to(outputs.device)
    return average(outputs, index, len(names)), truth[first], names


def average(outputs: torch.Tensor, owners: torch.Tensor, n: int) -> torch.Tensor:
    """Mean of outputs (M, k, C) over those of the same owner, numbers (k,) below n: (M, n, C)."""
    sums = outputs.new_zeros(len(outputs), n, outputs.shape[2]).index_add_(1, owners, outputs)
    return sums / torch.bincount(owners, minlength=n)[:, None]


def _linear(n_in, n_out, generator) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights (in, out) and bias (1, out) with nn.Linear's initial distribution."""
    bound = n_in**-0.5
    weight = (torch.rand(n_in, n_out, generator=generator) * 2 - 1) * bound
    bias = (torch.rand(1, n_out, generator=generator) * 2 - 1) * bound
    return nn.Parameter(weight), nn.Parameter(bias)
