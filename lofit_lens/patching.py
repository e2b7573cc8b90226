"""TransformerLens's own activation patching, called from here alone.

Its tools take a `TransformerBridge` and a `HookedTransformer` as they are, grouped-query attention included.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import patching

from lofit_lens import lens
from lofit_lens.lens import LensModel
from lofit_lens.progress import progress


def patched_head_metrics(
    model: LensModel,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    metric: Callable[[Tensor], Tensor],
    heads: Sequence[tuple[int, int]],
) -> Float[Tensor, "k"]:
    """A metric of the corrupted tokens' logits, with one head after another patched from the clean ones at all positions.

    Args:
        model: what is attached to it stays at work.
        clean: token ids, without padding.
        corrupted: as many.
        metric: a number from logits.
        heads: named, because the tool left alone takes those of every layer, and a layer may have no attention.
    """
    patch: Any = patching.get_act_patch_attn_head_out_all_pos
    rows = pd.DataFrame(heads, columns=["layer", "head"])
    points = [lens.z_hook(layer) for layer in sorted({layer for layer, _ in heads})]
    _, cache = model.run_with_cache(clean, names_filter=points)
    # The tool draws a bar of its own, in logs too, and has no switch for it.
    own_bar, patching.__dict__["tqdm"] = patching.__dict__["tqdm"], lambda items: progress(items, "patching")
    try:
        return patch(model, corrupted, cache, metric, index_axis_names=None, index_df=rows)
    finally:
        patching.__dict__["tqdm"] = own_bar
