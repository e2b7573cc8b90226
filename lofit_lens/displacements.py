"""What each head's offset adds to the residual stream: one displacement, the same at every token.

For the offset v of head h in layer l

    d = v W_O[l, h]

Where a norm stands between W_O and the stream (Gemma 2 and 3, OLMo 2), it makes A x / s(x) + b of all heads' sum x. Then

    d = A (v W_O[l, h])

which reaches the stream divided by s(x), a positive number that differs from token to token. An offset moves no bias.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention, attached
from lofit_lens.lens import LensModel


def offsets_of(intervention: HeadIntervention, name: str = "the intervention") -> dict[Head, Float[Tensor, "d_head"]]:
    """The offset of each head, in float64 on the CPU.

    Args:
        intervention: an adapter; scales that it may have too are not looked at.
        name: what an error calls it.

    Raises:
        ValueError: it has none.
    """
    if intervention.offset is None or not intervention.heads:
        raise ValueError(
            f"{name} has no offsets, only scales or no heads at all; wanted one that adds a vector to z: the result of LoFiT, "
            "ITI or JoLA"
        )
    return dict(zip(intervention.heads, intervention.offset.detach().cpu().double(), strict=True))


@torch.no_grad()
def offset_displacements(model: LensModel, intervention: HeadIntervention) -> Float[Tensor, "k d_model"]:
    """d of each head, in float32.

    Raises:
        ValueError: no offsets, heads that the model does not have, or something between W_O and the stream that is no norm.
    """
    offsets_of(intervention)
    with attached(model, intervention):
        pass  # what does not fit is refused
    displacements = []
    for head in intervention.heads:
        norm = lens.norm_behind_attention(model, head.layer)
        lifted = intervention.restrict([head]).residual_bias(model)[[head.layer]]
        displacements.append(lifted if norm is None else lens.norm_parts(model, norm, lifted)[0])
    return torch.cat(displacements)
