"""Is an encoder fit for use? What `python -m tune.encoders list | check | convert NAME` does.

A check encodes seeded noise with a linear fade-out and looks at what every use relies on: shapes
of all layers, finite values, a segment that doesn't depend on its batch, the same numbers twice,
the same numbers when it is loaded again, half precision that keeps the direction of an embedding,
and what 10 s cost.
"""

import importlib.util
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tune.cli.parser import Parser, set_up_logging, to_bool
from tune.encoders.base import Encoder, EncoderError, NonFiniteError, precision_on

SECONDS = 10.0  # that the cost is measured for
SHORT_S = 2.0  # of the segments that are compared
BATCH_TOLERANCE = 1e-4  # of the largest value: float32 products of other shapes round otherwise
MIN_COSINE = 0.99  # between a layer's embeddings in half and full precision


@dataclass(frozen=True)
class Finding:
    """One line of a check: what was looked at, whether it is as it should be, and the figures."""

    what: str
    ok: bool
    found: str


def noise(n_segments: int, seconds: float, sample_rate: int) -> np.ndarray:
    """Seeded noise (n_segments, n_samples): of different levels, each with a linear fade-out."""
    rng = np.random.default_rng(1234)
    n_samples = round(seconds * sample_rate)
    audio = rng.standard_normal((n_segments, n_samples), np.float32) * np.float32(0.1)
    fade = np.linspace(1.0, 0.05, n_samples, dtype=np.float32)
    return audio * fade * np.float32(0.5) ** np.arange(n_segments, dtype=np.float32)[:, None]


def check_encoder(
    encoder: Encoder, half: Encoder | None = None, twin: Encoder | None = None
) -> list[Finding]:
    """Check an encoder.

    Parameters
    ----------
    encoder : at float32
    twin : the same, loaded again
    half : the same at half precision, or None where there is none

    Returns
    -------
    list of Finding
    """
    longest = encoder.max_seconds or SECONDS
    audio = noise(3, max(encoder.min_seconds, min(SHORT_S, longest)), encoder.sample_rate)
    groups = _groups(encoder)
    findings = [_shapes(encoder, audio)]
    if not findings[0].ok:
        return findings  # nothing can be said about the rest
    try:
        together = _embed(encoder, audio, groups)
    except NonFiniteError as error:
        return [*findings, Finding("finite values", False, str(error))]
    findings.append(Finding("finite values", True, "in every layer"))
    alone = [_embed(encoder, segment[None], groups) for segment in audio]
    alone = [np.concatenate(parts) for parts in zip(*alone, strict=True)]
    pairs = list(zip(together, alone, strict=True))
    off = max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)) for a, b in pairs)
    findings.append(
        Finding("batch = single", off <= BATCH_TOLERANCE, f"differ by {off:.1e} of the largest")
    )
    again = _embed(encoder, audio, groups)
    off = max(float(np.abs(a - b).max()) for a, b in zip(together, again, strict=True))
    findings.append(
        Finding("the same twice", off == 0, "to the bit" if off == 0 else f"differ by {off:.1e}")
    )
    if twin is not None:
        findings.append(_loaded_twice(encoder, twin, audio, groups, together))
    if half is not None:
        findings.append(_half(encoder, half, audio, groups, together))
    findings.append(_cost(encoder, min(SECONDS, longest)))
    return findings


def _groups(encoder) -> list[list[int]]:
    """The layers, in groups that can be asked for together."""
    layers = range(encoder.first_layer, encoder.n_layers + 1)
    return [list(layers)] if encoder.sizes is None else [[k] for k in layers]


def _embed(encoder, audio, groups) -> list[np.ndarray]:
    """Embeddings (B, E) of every layer."""
    out = [encoder.embed(audio, group) for group in groups]  # (B, 1, L, E) each
    return [part[:, 0, k] for part in out for k in range(part.shape[2])]


@torch.inference_mode()
def _shapes(encoder, audio) -> Finding:
    """The shape of each layer's hidden states."""
    layers = list(range(encoder.first_layer, encoder.n_layers + 1))
    batch = torch.from_numpy(audio).to(encoder.device)
    shapes = [tuple(state.shape) for state in encoder.states(batch, layers, torch.float32)]
    fits = len(shapes) == len(layers) and all(
        len(shape) == 3 and shape[0] == len(audio) and shape[1] > 0 for shape in shapes
    )
    alike = len(set(shapes)) == 1
    found = f"{len(shapes)} x {shapes[0]}" if alike else ", ".join(map(str, shapes))
    rate = encoder.frame_rate
    if fits and rate is not None:
        expected = audio.shape[1] / encoder.sample_rate * rate
        # Windows at the edges: up to two frames fewer, or one more.
        off = [k for k, shape in enumerate(shapes) if not -2.5 < shape[1] - expected < 1.5]
        if off:
            fits = False
            found += f": layer {off[0]} has not about {expected:.1f} frames ({rate:g} Hz)"
    return Finding("shapes (B, T, D)", fits, found)


def _loaded_twice(encoder, twin, audio, groups, first) -> Finding:
    """The encoder loaded again: the same fingerprint and numbers."""
    if twin.fingerprint != encoder.fingerprint:
        return Finding("loaded twice", False, "the fingerprints differ")
    pairs = zip(first, _embed(twin, audio, groups), strict=True)
    off = max(float(np.abs(a - b).max()) for a, b in pairs)
    found = "the same to the bit" if off == 0 else f"the numbers differ by {off:.1e}"
    return Finding("loaded twice", off == 0, found)


def _half(encoder, half, audio, groups, full) -> Finding:
    """Half against full precision: cosine of the embeddings, the lowest of all layers."""
    name = half.precision
    if half.fingerprint != encoder.fingerprint:
        return Finding(f"{name} = float32", False, "loaded twice, the fingerprints differ")
    try:
        found = _embed(half, audio, groups)
    except NonFiniteError as error:
        return Finding(f"{name} = float32", False, str(error))
    cosines = [
        float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
        for a, b in zip(full, found, strict=True)
    ]
    layer = int(np.argmin(cosines))
    redone = f", {half.redone} batches redone in float32" if half.redone else ""
    return Finding(
        f"{name} = float32",
        cosines[layer] >= MIN_COSINE,
        f"cosine at least {cosines[layer]:.6f} (layer {layer}){redone}",
    )


def _cost(encoder, seconds) -> Finding:
    """Seconds and peak memory of one segment to the last layer."""
    from tune.system.memory import peak_memory

    audio = noise(1, seconds, encoder.sample_rate)
    layers = [encoder.n_layers]
    encoder.embed(audio, layers)  # warm
    with peak_memory(encoder) as peak:
        started = time.perf_counter()
        encoder.embed(audio, layers)
        took = time.perf_counter() - started
    return Finding(
        f"cost of {seconds:.4g} s",
        True,
        f"{took:.3f} s, peak {peak['peak_memory_bytes'] / 1e9:.3f} GB (weights "
        f"{peak['weights_bytes'] / 1e9:.3f} GB), {encoder.device}",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """`list`, `check NAME` or `convert NAME`; leaves with code 1 when a check fails."""
    parser = Parser(prog="python -m tune.encoders", description=__doc__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="list | check | convert"
    )
    commands.add_parser("list", help="the encoders known by name, and what else can be loaded")
    check = commands.add_parser("check", help="load an encoder and check it")
    check.add_argument("name", help="as --encoder of train_probe.py takes it")
    check.add_argument(
        "--trust_remote_code",
        nargs="?",
        const=True,
        default=False,
        type=to_bool,
        metavar="BOOL",
        help="let it execute Python code of its own",
    )
    check.add_argument("--revision", metavar="COMMIT", help="of a hub model")
    check.add_argument(
        "--weights",
        choices=["pretrained", "random"],
        default="pretrained",
        help="random: muq's size without a download",
    )
    convert = commands.add_parser(
        "convert", help="make safetensors of a hub model's pickle, if you trust its authors"
    )
    convert.add_argument("name", help="muq-mulan, mert-330m or a hub id")
    convert.add_argument("--revision", metavar="COMMIT", help="of the hub model")
    args = parser.parse_args(argv)
    set_up_logging(True)
    if args.command == "list":
        _list()
    elif args.command == "convert":
        _convert(args.name, args.revision)
    elif not _check(args):
        sys.exit(1)


def _list() -> None:
    """Print the table of encoders and the families of models."""
    from rich.table import Table

    from tune.encoders import plugin
    from tune.encoders.feature_extractors import FAMILIES
    from tune.encoders.registry import ENCODERS

    table = Table("--encoder", "state", "weights", "licence", "what")
    for name, row in ENCODERS.items():
        table.add_row(name, _state_of(name, row), _place_of(row), row.licence or "", row.about)
    table.add_row(
        "FOLDER or HUB_ID",
        "",
        "",
        "",
        "MuQ, MuQ-MuLan, or a transformers audio model, by its "
        "config.json; weights from safetensors only",
    )
    for name, spec in plugin.installed().items():
        table.add_row(name, "works now", "", "", f"of an installed package: {spec}")
    table.add_row(
        "FILE.py:NAME",
        "",
        "",
        "",
        "your own (also PACKAGE.MODULE:NAME): a torch module, a callable "
        "or an Encoder, see docs/encoders.md",
    )
    console = _console()
    console.print(table)
    console.print("transformers models are known by their feature extractor:", highlight=False)
    for name, row in FAMILIES.items():
        models = ", ".join(row.models or ("any with convolutions over the waveform",))
        console.print(f"  {name}: {models}", highlight=False)


def _state_of(name: str, row) -> str:
    """What a row of the table needs before it can be used."""
    from tune.encoders import convert

    if row.package and importlib.util.find_spec(row.package) is None:
        return f"needs a step: {row.install}"
    if row.repo is None:
        return "refused" if name == "musicfm" else "works now"
    needs = []
    if row.pickled and convert.converted(row.repo) is None:
        needs.append(f"needs a step: convert {name}")
    if row.code:
        needs.append("needs trust: --trust_remote_code")
    return ", ".join(needs) or "works now"


def _place_of(row) -> str:
    """The size of a row's weights, and whether they still have to be downloaded."""
    from tune.encoders import convert, hub

    if row.repo is None:
        return row.size
    there = convert.converted(row.repo) or hub.cached(row.repo, row.revision)
    return f"{row.size}, {'in the cache' if there else 'to download'}"


def _convert(name: str, revision: str | None) -> None:
    """Convert a model of the hub and say where it is."""
    from tune.encoders import convert
    from tune.encoders.registry import ENCODERS, EncoderRow

    row = ENCODERS.get(name) or EncoderRow(None, "", repo=name)
    if row.repo is None or "/" not in row.repo:
        raise EncoderError(f"{name} is no model on the hub: there is nothing to convert")
    about = ", ".join(filter(None, (row.size, row.licence and f"weights {row.licence}")))
    folder = convert.convert(row.repo, revision, about)
    trust = " --trust_remote_code" * row.code
    print(f"{folder}: from now on --encoder {name}{trust} is loaded from there")


def _check(args) -> bool:
    """Load an encoder, check it and print what was found; say whether all is well."""
    from rich.markup import escape
    from rich.table import Table

    from tune.encoders.registry import load_encoder

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = precision_on(device, "auto")
    given = {
        "device": device,
        "weights": args.weights,
        "revision": args.revision,
        "trust_remote_code": args.trust_remote_code,
    }
    encoder = load_encoder(args.name, **given)
    twin = load_encoder(args.name, **given)
    half = load_encoder(args.name, precision="bf16" if precision == "no" else precision, **given)
    half = None if half.precision == "no" else half  # mel, a callable of one's own
    longest, rate = encoder.max_seconds, encoder.frame_rate
    size = encoder.embedding_dim if encoder.sizes is None else "/".join(map(str, encoder.sizes))
    console = _console()
    console.print(
        f"{encoder.label}: layers {encoder.first_layer} to {encoder.n_layers} of {size} values, "
        f"{'states that do not follow time' if rate is None else f'{rate:g} states a second'}, "
        f"{encoder.sample_rate} Hz, segments of {encoder.min_seconds:g} s or more"
        f"{'' if longest is None else f', at most {longest:.4g} s'}",
        highlight=False,
    )
    if encoder.revision:
        console.print(f"revision {encoder.revision}", highlight=False)
    if encoder.licence:
        console.print(f"licence of the weights: {encoder.licence}", highlight=False)
    findings = check_encoder(encoder, half, twin)
    table = Table("check", "", "found")
    for item in findings:
        table.add_row(
            item.what, "[green]ok[/]" if item.ok else "[bold red]FAILS[/]", escape(item.found)
        )
    console.print(table)
    failed = [item.what for item in findings if not item.ok]
    console.print(f"not fit for use: {', '.join(failed)}" if failed else "fit for use")
    return not failed


def _console():
    """A console that doesn't break lines of a piped table."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)
