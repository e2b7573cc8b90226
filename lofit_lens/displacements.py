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
from lofit_lens.interventions import HeadIntervention, attached
from lofit_lens.lens import LensModel


@torch.no_grad()
def offset_displacements(model: LensModel, intervention: HeadIntervention) -> Float[Tensor, "k d_model"]:
    """d of each head, in float32.

    Raises:
        ValueError: no offsets, heads that the model does not have, or something between W_O and the stream that is no norm.
    """
    if intervention.offset is None or not intervention.heads:
        raise ValueError(
            "the intervention has no offsets: it only scales heads, or edits none; wanted one with offsets, such as those of "
            "LoFiT and ITI"
        )
    with attached(model, intervention):
        pass  # what does not fit is refused
    displacements = []
    for head in intervention.heads:
        norm = lens.norm_behind_attention(model, head.layer)
        lifted = intervention.restrict([head]).residual_bias(model)[[head.layer]]
        displacements.append(lifted if norm is None else lens.norm_parts(model, norm, lifted)[0])
    return torch.cat(displacements)
