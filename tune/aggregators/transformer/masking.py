"""Masked modelling of tokens: which ones are masked, the losses, and what a loss must beat.

All losses are given per track, as the mean over its masked tokens, so that a batch's loss is a sum
over tracks. With mse and cosine that is the same whichever way the batch is divided; InfoNCE draws
its negatives from what passes through the model together.
"""

import torch
from torch.nn import functional as F

OBJECTIVES = ("mse", "cosine", "infonce")
TEMPERATURE = 0.1


def draw_masked(n_tokens: int, mask_prob: float, span: int, generator) -> torch.Tensor:
    """Choose the tokens of a track to hide.

    Parameters
    ----------
    n_tokens : at least 2
    mask_prob : share of the tokens to hide; at least one is masked and at least one stays
    span : tokens masked in a row (spans may touch)
    generator : torch.Generator on the CPU

    Returns
    -------
    (N,) bool
    """
    if n_tokens < 2:
        raise ValueError(f"a track needs 2 tokens or more to hide one, got {n_tokens}")
    # The fraction is settled by chance, so that short tracks too hide `mask_prob` on average.
    wanted = int(mask_prob * n_tokens + torch.rand((), generator=generator).item())
    wanted = min(max(wanted, 1), n_tokens - 1)
    span = min(span, wanted)
    masked = torch.zeros(n_tokens, dtype=torch.bool)
    for start in torch.randperm(n_tokens - span + 1, generator=generator).tolist():
        missing = wanted - int(masked.sum())
        if missing <= 0:
            break
        fresh = (~masked[start : start + span]).nonzero()[:missing, 0]
        masked[start + fresh] = True
    return masked


def losses(
    objective: str,
    predicted: torch.Tensor,
    tokens: torch.Tensor,
    masked: torch.Tensor,
    attention_mask: torch.Tensor,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """Loss of each track.

    Parameters
    ----------
    objective : "mse" (squared error, mean over dimensions), "cosine" (1 - cosine) or "infonce"
        (van den Oord et al. 2018: tell the masked token from all other tokens of its own track and
        of the batch, by cosine)
    predicted, tokens : (B, N, D)
    masked, attention_mask : (B, N) bool

    Returns
    -------
    (B,)
    """
    if objective == "mse":
        each = F.mse_loss(predicted, tokens, reduction="none").mean(-1)  # (B, N)
    elif objective == "cosine":
        each = 1 - F.cosine_similarity(predicted, tokens, dim=-1, eps=1e-6)
    elif objective == "infonce":
        return _infonce(predicted, tokens, masked, attention_mask, temperature)
    else:
        raise ValueError(f"--objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
    return (each * masked).sum(1) / masked.sum(1)


def _infonce(predicted, tokens, masked, attention_mask, temperature):
    """Cross-entropy of each masked token against all real tokens of the batch, per track."""
    keys = F.normalize(tokens[attention_mask], dim=-1, eps=1e-6)  # (K, D)
    number = torch.full(attention_mask.shape, -1, device=attention_mask.device)
    number[attention_mask] = torch.arange(len(keys), device=attention_mask.device)
    queries = F.normalize(predicted[masked], dim=-1, eps=1e-6)  # (Q, D)
    each = F.cross_entropy(queries @ keys.T / temperature, number[masked], reduction="none")
    track = masked.nonzero()[:, 0]  # (Q,)
    total = each.new_zeros(len(attention_mask)).index_add(0, track, each)
    return total / masked.sum(1)


def track_losses(
    summary: torch.Tensor,
    tokens: torch.Tensor,
    masked: torch.Tensor,
    temperature: float = TEMPERATURE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each track's [CLS]: recognise its own masked part among the batch's, by InfoNCE.

    Masked modelling alone gives the [CLS] token no task of its own. Here the visible part's [CLS]
    has to find the mean of the track's masked tokens among those of the batch's other tracks.

    Parameters
    ----------
    summary : (B, D), of the [CLS] state
    tokens, masked : (B, N, D) and (B, N)

    Returns
    -------
    (B,) losses, and (B,) 1.0 where it was recognised
    """
    weight = masked.unsqueeze(-1).to(tokens.dtype)
    keys = (tokens * weight).sum(1) / weight.sum(1)  # (B, D)
    keys = F.normalize(keys, dim=-1, eps=1e-6)
    scores = F.normalize(summary, dim=-1, eps=1e-6) @ keys.T / temperature  # (B, B)
    own = torch.arange(len(keys), device=keys.device)
    return F.cross_entropy(scores, own, reduction="none"), (scores.argmax(1) == own).float()


def copy_nearest(
    tokens: torch.Tensor, masked: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Predict each token by the nearest visible one in time (the earlier of two equally near).

    Parameters
    ----------
    tokens : (B, N, D)
    masked, attention_mask : (B, N) bool; every track has a visible token

    Returns
    -------
    (B, N, D)
    """
    at = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    distance = (at[:, None] - at).abs()  # (N, N)
    visible = (attention_mask & ~masked)[:, None]  # (B, 1, N)
    nearest = distance.masked_fill(~visible, len(at)).argmin(-1)  # (B, N)
    return tokens.gather(1, nearest.unsqueeze(-1).expand_as(tokens))
