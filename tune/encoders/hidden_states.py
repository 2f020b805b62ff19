"""A transformers model's hidden states, taken at its stack of layers while it runs.

The stack is the list of modules whose inputs and outputs are the `hidden_states` that the model
itself returns. Models that return none (old code under a new transformers) are taken at the list
that is as long as their configuration says; models whose states are something else (CLAP, whose
stages shrink an image) are asked for all of them.

Usually `hidden_states[0]` is what the first layer is given and `[k]` the output of layer k. Some
models (MERT-v2) leave the first one out: there `hidden_states[0]` is the output of layer 1. Layers
are numbered by the layer that made them all the same, and 0 is the input of layer 1.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from tune.encoders.base import EncoderError


def find_stack(name: str, model: nn.Module, inputs: dict, config) -> tuple:
    """Find a model's stack of layers by running it once.

    Parameters
    ----------
    inputs : features of a short segment, by the name of the model's argument
    config : names `num_hidden_layers`, for a model that returns no hidden states

    Returns
    -------
    path : str or None
        Name of the `nn.ModuleList`, None when no list gives what the model returns.
    tied : bool
        True when the last hidden state is the model's output (after its final norm) instead of the
        last layer's.
    sizes : list of int
        Size of each hidden state.
    first : int
        Number of the first one: 1 for a model that has to be asked and leaves layer 0 out.

    Raises
    ------
    EncoderError
        When the model has no hidden states, or can't be run on its features.
    """
    lists = {
        key: part
        for key, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and len(part)
    }
    seen = {key: [] for key in lists}  # key -> [(index, first input, output)]
    hooks = []
    for key, part in lists.items():
        for index, layer in enumerate(part):

            def note(module, args, kwargs, output, key=key, index=index):
                seen[key].append((index, _first(args, kwargs), _state(output)))

            hooks.append(layer.register_forward_hook(note, with_kwargs=True))
    try:
        with torch.inference_mode():
            out = model(**inputs, output_hidden_states=True)
    except Exception as error:  # whatever the model's code raises
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"{name} can't be run on what its feature extractor makes: "
            f"{type(error).__name__}: {reason}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    own, last = getattr(out, "hidden_states", None), getattr(out, "last_hidden_state", None)
    for key, calls in seen.items():
        if [index for index, _, _ in calls] != list(range(len(lists[key]))):
            continue
        states = [calls[0][1], *(output for _, _, output in calls)]
        if not all(isinstance(state, torch.Tensor) and state.ndim == 3 for state in states):
            continue
        if own is None:
            if len(calls) == getattr(config, "num_hidden_layers", None):
                tied = last is not None and last.shape == states[-1].shape
                return key, tied, [state.shape[-1] for state in states], 0
            continue
        made = states[len(states) - len(own) :] if len(own) in (len(calls), len(states)) else []
        if made and all(map(_same, own[:-1], made[:-1])):
            for tied, final in ((False, made[-1]), (True, last)):
                if _same(own[-1], final):
                    return key, tied, [state.shape[-1] for state in states], 0
    if not own:
        raise EncoderError(
            f"{name} returns no hidden states, and no list of its modules holds the "
            f"{getattr(config, 'num_hidden_layers', 'unknown number of')} layers of its "
            f"configuration"
        )
    sizes = [state.shape[-1 if state.ndim == 3 else 1] for state in own]
    return None, False, sizes, int(len(own) == getattr(config, "num_hidden_layers", None))


def walk(
    model: nn.Module,
    path: str | None,
    inputs: dict,
    layers: Sequence[int],
    n_layers: int,
    tied: bool,
    first: int = 0,
    on_output: Callable[[object], None] | None = None,
) -> Iterator[torch.Tensor]:
    """Run a model and yield the hidden states of the layers, in their order.

    Parameters
    ----------
    path, tied : as `find_stack` returns
    n_layers : number of the last hidden state
    first : number of the model's own `hidden_states[0]`, where it is asked for them
    on_output : called with the model's output before the first state is yielded
    """
    if path is None:
        out = model(**inputs, output_hidden_states=True)
        if on_output:
            on_output(out)
        yield from (out.hidden_states[k - first] for k in layers)
        return
    stack, kept, hooks = model.get_submodule(path), {}, []

    def keep_input(module, args, kwargs):
        kept[0] = _first(args, kwargs)

    for k in layers:
        if k == 0:
            hooks.append(stack[0].register_forward_pre_hook(keep_input, with_kwargs=True))
        elif not (tied and k == n_layers):

            def keep(module, args, output, k=k):
                kept[k] = _state(output)

            hooks.append(stack[k - 1].register_forward_hook(keep))
    try:
        out = model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if on_output:
        on_output(out)
    if tied and n_layers in layers:
        kept[n_layers] = out.last_hidden_state
    for k in layers:
        yield kept.pop(k)


def cast_inputs_of(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast what a model in half precision is given from now on."""

    def cast_inputs(module, args, kwargs):
        return args, {
            key: value.to(dtype) if _is_float(value) else value for key, value in kwargs.items()
        }

    model.register_forward_pre_hook(cast_inputs, with_kwargs=True)


def _is_float(value) -> bool:
    """Say whether an argument is a tensor of floating-point numbers."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _first(args: tuple, kwargs: dict):
    """What a layer is given: its first argument."""
    return args[0] if args else kwargs.get("hidden_states")


def _state(output):
    """A layer's hidden state: its output, or the first part of it."""
    return output[0] if isinstance(output, tuple) else output


def _same(a, b) -> bool:
    """Say whether two states are one; the same object also when it is NaN."""
    return a is b or (a is not None and b is not None and torch.equal(a, b))
