"""Any transformers audio model with hidden states as a frozen encoder.

Layers are counted as transformers counts them: 0 is `hidden_states[0]`, k is `hidden_states[k]`.
They are taken where the model makes them, at its stack of layers, so that only those asked for are
kept and the layers above the deepest one can be dropped; that this gives what the model itself
returns is checked when it is loaded. Features are extracted in float32, one segment at a time.
"""

import contextlib
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrize

from tune.encoders import hub, remote_code
from tune.encoders.base import DTYPES, MIN_SECONDS, Encoder, EncoderError, cast_copy
from tune.encoders.feature_extractors import (
    FAMILIES,
    extract,
    family_of,
    frame_mask,
    measured_family,
)
from tune.encoders.hidden_states import cast_inputs_of, find_stack, walk

log = logging.getLogger(__name__)

FORWARD_VERSION = 1  # raised when a change here or in `feature_extractors` changes the numbers
UNUSED = ("masked_spec_embed",)  # weights that only training needs
VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
CONVERT = (
    "from transformers import AutoFeatureExtractor as F, AutoModel as M; "
    "[c.from_pretrained(NAME).save_pretrained(FOLDER) for c in (F, M)]"
)


class TransformersEncoder(Encoder):
    """A transformers model at one precision.

    Parameters
    ----------
    tower : the module that takes the features
    family : its row of `FAMILIES`
    extractor : its feature extractor
    config : the tower's configuration
    digest : of weights, configurations and code
    """

    def __init__(self, name, tower, family, extractor, config, digest, *, precision, device):
        geometry = family.geometry(config, extractor)
        self.sample_rate = extractor.sampling_rate
        self.min_seconds = max(MIN_SECONDS, geometry.min_samples / self.sample_rate)
        if geometry.max_samples is not None:
            self.max_seconds = geometry.max_samples / self.sample_rate
        self.family, self.extractor, self.config = family, extractor, config
        self.model = tower.to(device)
        self._precise = self.mask = None
        self.path, self.tied, sizes, self.first_layer = find_stack(
            name, self.model, self._probe(device), config
        )
        super().__init__(
            name,
            frame_rate=geometry.frame_rate,
            n_layers=len(sizes) - 1 + self.first_layer,
            embedding_dim=sizes[-1],
            precision=precision,
            device=device,
            fingerprint=digest,
        )
        self.sizes = [*sizes[: self.first_layer], *sizes] if len(set(sizes)) > 1 else None
        self.deepest = self.n_layers
        if precision != "no":
            # The float32 original, for batches that overflow in half precision, waits on the CPU.
            # Half precision would shift rotary positions.
            dtype = DTYPES[precision]
            self._precise = self.model.to("cpu")
            self.model = cast_copy(self._precise, dtype, self.device, keep=("inv_freq",))
            cast_inputs_of(self.model, dtype)

    def keep_layers(self, deepest):
        """Drop the layers above the deepest one asked for, and their memory."""
        self.deepest = deepest
        if self.sizes is not None:
            self.embedding_dim = self.sizes[deepest]
        for model in filter(None, (self.model, self._precise) if self.path else ()):
            stack = model.get_submodule(self.path)
            above = list(stack[max(1, deepest) :])
            del stack[max(1, deepest) :]
            if self.own_code and not self._runs(model):
                stack.extend(above)  # its code counts them

    def _runs(self, model) -> bool:
        """Say whether a model's own code runs with the layers that are left."""
        where = next(model.parameters()).device
        try:
            with torch.inference_mode():
                model(**self._probe(where))
        except Exception:  # whatever its code raises
            return False
        return True

    def _probe(self, device) -> dict[str, torch.Tensor]:
        """Features of the shortest segment of noise, to run the model on once."""
        return self._features(_noise(round(self.min_seconds * self.sample_rate)), device)

    def states(self, audio, layers, dtype):
        """Yield hidden states (B, T, D) of the layers; where frames follow time, of audio only."""
        for state in self.hidden_states(audio, layers, dtype):
            yield self.family.frames(state, audio.shape[1], self)

    def hidden_states(self, audio, layers, dtype=torch.float32):
        """Yield the layers' hidden states as transformers gives them, padding included.

        Parameters
        ----------
        audio : tensor of float32, shape (B, n_samples)
        layers : ascending layer numbers
        """
        if min(layers) < self.first_layer or max(layers) > self.deepest:
            raise ValueError(f"layers must lie in {self.first_layer}..{self.deepest}, got {layers}")
        model = self.model
        if dtype == torch.float32 and self._precise is not None:
            model = self._precise.to(self.device)
        inputs = self._features(audio.cpu().numpy(), self.device)
        # Convolutions in true float32 when float32 is what was asked for (cuDNN's default is TF32).
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=dtype != torch.float32):
            yield from walk(
                model,
                self.path,
                inputs,
                layers,
                self.n_layers,
                self.tied,
                self.first_layer,
                self._keep_mask,
            )

    def _keep_mask(self, output) -> None:
        """Keep the mask over frames that a model returns beside its states."""
        self.mask = frame_mask(output)

    def _features(self, audio: np.ndarray, device) -> dict[str, torch.Tensor]:
        """The features of a batch, in float32 on the device; the model's hooks cast them."""
        found = extract(self.extractor, self.family.inputs, audio)
        return {
            k: v.to(device, torch.float32 if v.is_floating_point() else v.dtype)
            for k, v in found.items()
        }


def load_folder(
    folder,
    name,
    *,
    precision,
    device,
    compile=False,
    memory_budget=None,
    trust_remote_code=False,
    min_seconds=None,
    max_seconds=None,
) -> TransformersEncoder:
    """A transformers model from its folder.

    Parameters
    ----------
    memory_budget : sets nothing here: no front end
    min_seconds, max_seconds : the range of lengths, for a model that states none
    """
    folder = Path(folder)
    if compile:
        raise EncoderError(f"--compile is made for MuQ: leave it out for {name}")
    raw = hub.read_json(folder / "config.json")
    check_code(raw, name, trust_remote_code)
    needs = needs_code(raw)
    own = "(NAME, trust_remote_code=True)" if needs else "(NAME)"
    files = hub.check_weights(folder, name, CONVERT.replace("(NAME)", own))
    if not any((folder / file).is_file() for file in hub.CONFIGS[1:]):
        raise EncoderError(
            f"{name} holds no preprocessor_config.json (its feature extractor), which says how "
            f"audio becomes its input"
        )
    if needs:
        commit = hub.commit_of(folder)
        log.warning(
            "%s: executing its own code (%s)",
            name,
            f"revision {commit}; pin it: --revision={commit}" if commit else folder,
        )
    trust = {"trust_remote_code": needs}
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(folder, **trust)
            extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, **trust)
            if needs:
                weights = hub.read_weights(files)
                model, missing = remote_code.build(folder, config, weights, name)
                info = {"missing_keys": missing, "mismatched_keys": []}
            else:
                model, info = transformers.AutoModel.from_pretrained(
                    folder,
                    config=config,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
            if needs and type(extractor).__name__ not in FAMILIES:
                _check_loaded(model, model, info, name)
                family = measured_family(name, model, extractor, min_seconds)
            else:
                family = family_of(extractor, config.model_type, name)
    except EncoderError:
        raise
    except Exception as error:  # its own errors, the code's, safetensors'
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(f"{name} can't be loaded: {type(error).__name__}: {reason}") from error
    if getattr(extractor, "dither", 0):
        raise EncoderError(
            f"{name}: its feature extractor adds noise (dither {extractor.dither:g}), so that no "
            f"embedding comes out twice: set dither to 0 in its preprocessor_config.json"
        )
    tower = family.tower(model).eval().requires_grad_(False)
    _check_loaded(model, tower, info, name)
    if needs:
        with _quiet():
            twin = family.tower(remote_code.build(folder, config, weights, name)[0])
        n_samples = max(family.geometry(config, extractor).min_samples, extractor.sampling_rate)
        inputs = extract(extractor, family.inputs, _noise(n_samples))
        remote_code.check_same(tower, twin, inputs, name)
        del twin, weights
    _fold_parametrizations(tower)
    digest = _digest(tower, config, extractor, sorted(folder.rglob("*.py")) if needs else [])
    encoder = TransformersEncoder(
        name,
        tower,
        family,
        extractor,
        family.config(config),
        digest,
        precision=precision,
        device=device,
    )
    encoder.own_code = needs
    encoder.max_seconds = encoder.max_seconds or max_seconds
    return encoder


def needs_code(config: dict) -> bool:
    """Say whether a model can't be built without Python code of its own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return bool(config.get("auto_map")) and config.get("model_type") not in CONFIG_MAPPING


def check_code(config: dict, name: str, trust_remote_code: bool) -> None:
    """Raise unless the model needs no code of its own or the user trusts it."""
    if not needs_code(config):
        return
    values = sorted(str(value) for value in config["auto_map"].values())
    if any("--" in value for value in values):
        raise EncoderError(
            f"{name} runs code of another repository ({values[0]}), which its own revision doesn't "
            f"pin: put model and code into one folder and pass --encoder FOLDER"
        )
    if not trust_remote_code:
        files = ", ".join(f"{stem}.py" for stem in sorted({v.split(".")[0] for v in values}))
        raise EncoderError(
            f"{name} brings its own code ({files}), which is executed only with "
            f"--trust_remote_code: read it, and pin it with --revision COMMIT"
        )


@contextlib.contextmanager
def _quiet():
    """Keep transformers' progress bars and notes about unused weights to itself."""
    from transformers.utils import logging as notes

    level, bars = notes.get_verbosity(), notes.is_progress_bar_enabled()
    notes.set_verbosity_error()
    notes.disable_progress_bar()
    try:
        yield
    finally:
        notes.set_verbosity(level)
        if bars:
            notes.enable_progress_bar()


def _noise(n_samples: int) -> np.ndarray:
    """A quiet short segment (1, n_samples) to run the model on once."""
    return np.random.default_rng(0).standard_normal((1, n_samples), np.float32) * np.float32(0.1)


def _check_loaded(model, tower, info, name) -> None:
    """Raise when the tower's weights weren't all in the file: they would be random."""
    prefix = next(key for key, module in model.named_modules() if module is tower)
    prefix = f"{prefix}." if prefix else ""
    missing = [
        key
        for key in sorted(info["missing_keys"])
        if key.startswith(prefix) and not key.endswith(UNUSED)
    ]
    missing += sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise EncoderError(
            f"{name}: the weights don't fit the configuration: {len(missing)} are missing or of "
            f"another shape, the first is {missing[0]}"
        )


def _fold_parametrizations(tower: nn.Module) -> None:
    """Turn weight norms into plain weights: exact, and half precision doesn't compute norms."""
    for module in tower.modules():
        for key in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, key, leave_parametrized=True)


def _digest(tower, config, extractor, code) -> str:
    """SHA-256 over all that changes the numbers but audio, layers and precision."""
    major = transformers.__version__.split(".")[0]
    digest = hashlib.sha256(f"transformers {major} {FORWARD_VERSION}".encode())
    for part in (config, extractor):
        found = {k: v for k, v in part.to_dict().items() if k not in VOLATILE}
        digest.update(json.dumps(found, sort_keys=True, default=repr).encode())
    for path in code:
        digest.update(path.name.encode() + path.read_bytes())
    saved = tower.state_dict()
    others = {key: value for key, value in tower.named_buffers() if key not in saved}
    for key, value in (*sorted(saved.items()), *sorted(others.items())):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy())
    return digest.hexdigest()
