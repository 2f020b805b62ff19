"""Which flags belong together: --agg with --seg, --layer and the flags of single aggregators.

All scripts ask here, so that they refuse the same things in the same words.
"""

from collections.abc import Sequence

from tune.aggregators.registry import find_row

# Flag -> the trait of a row that it belongs to, and the aggregator that has it.
BELONGS = {
    "aggregator_checkpoint": ("pretrained", "transformer"),
    "readout": ("pretrained", "transformer"),
    "tune_aggregator": ("pretrained", "transformer"),
    "n_tokens": ("fixed_n", "concat"),
}


def check_one_layer(layer: str) -> None:
    """Raise ValueError when a Transformer is to join more than one layer."""
    if layer in ("all", "mix", "reduce"):
        raise ValueError(f"a Transformer joins one layer's tokens: --layer last or K, not {layer}")


def check_flags(
    agg: str,
    segs: Sequence[str],
    layer: str,
    *,
    needs_checkpoint: bool = True,
    aggregator_lr: float | None = None,
    **given,
) -> None:
    """Raise ValueError when settings don't belong together.

    Parameters
    ----------
    agg : an aggregator (`tune.aggregators.registry.find_row`)
    segs : the segment rules' names
    layer : "last", "all", "mix" or a number
    needs_checkpoint : whether a Transformer can't do without a checkpoint
    aggregator_lr : learning rate of what learns in front of the probe
    given : flags of `BELONGS`, those that the script has
    """
    row = find_row(agg)
    if row.several_segs and len(segs) < 2:
        raise ValueError(f"--agg {agg} needs several --seg, such as 10 30 full")
    if len(segs) > 1 and not row.several_segs:
        raise ValueError(f"several --seg need --agg hierarchical, got --agg {agg}")
    for flag, value in given.items():
        trait, owner = BELONGS[flag]
        if value and not getattr(row, trait):
            raise ValueError(f"--{flag} belongs to --agg {owner}, got --agg {agg}")
    if row.pretrained:
        if needs_checkpoint and not (
            given["aggregator_checkpoint"] or given.get("tune_aggregator")
        ):
            scratch = " or --tune_aggregator, which trains it from scratch with the probe"
            raise ValueError(
                f"--agg {agg} needs --aggregator_checkpoint (pretrain_aggregator.py makes one)"
                + scratch * ("tune_aggregator" in given)
            )
        check_one_layer(layer)
    if layer == "reduce" and row.pooling:
        raise ValueError(f"--layer reduce joins no tokens: --agg {agg} goes with --layer mix")
    if layer == "reduce" and row.gated:
        raise ValueError(f"--layer reduce chooses no views: --agg {agg} goes with --layer mix")
    if aggregator_lr and not (row.learns or layer in ("mix", "reduce")):
        raise ValueError(f"--aggregator_lr: nothing learns in front of the probe with --agg {agg}")
