"""RED against a hook written by hand on the heads' outputs side by side."""

import pytest
import torch

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.methods import RED
from lofit_lens.tasks import Example

TOKENS = torch.randint(3, 259, (2, 9), generator=torch.Generator().manual_seed(0))
EXAMPLES = [Example(f"Q: Is {a} more than {b}? A:", " Yes." if a > b else " No.") for a, b in [(9, 2), (3, 4), (8, 1), (2, 7)]]


@pytest.fixture
def task(toy_task):
    return toy_task({"train": EXAMPLES})


@pytest.mark.parametrize(("layers", "edited"), [("all", (0, 1, 2)), ("lower", (0,)), ("upper", (1, 2))])
@torch.no_grad()
def test_it_scales_and_shifts_all_heads_of_a_layer_side_by_side(llama, task, layers, edited):
    made = RED(layers=layers, learning_rate=5e-2, epochs=3, batch_size=4).fit(llama, task).intervention
    # Head after head, layer after layer: a row of 4 * 16 numbers for each layer.
    assert made.heads == tuple((layer, index) for layer in edited for index in range(4))
    scale, offset = made.scale.reshape(-1, 64), made.offset.reshape(-1, 64)

    def by_hand(row):
        def edit(z, hook):
            flat = z.flatten(2)
            return ((1 + scale[row]) * flat + offset[row]).unflatten(2, z.shape[2:])

        return edit

    with llama.hooks(fwd_hooks=[(lens.z_hook(layer), by_hand(row)) for row, layer in enumerate(edited)]):
        wanted = llama(TOKENS)
    with ll.attached(llama, made):
        got = llama(TOKENS)
    # Float32 products and sums in another order; logits of order 1 to 10.
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - llama(TOKENS)).abs().max() > 0.1


def test_both_vectors_of_every_head_are_learned(llama, task):
    start, end = (RED(learning_rate=rate, epochs=1, batch_size=4).fit(llama, task).intervention for rate in (1e-12, 1e-2))
    # AdamW's first step is as long as the rate in every dimension that has a gradient.
    for part in ("scale", "offset"):
        moved = (getattr(end, part) - getattr(start, part)).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-2, atol=0)


def test_half_of_one_layer_is_refused(toy_task):
    model = ll.tiny_model("llama", n_layers=1)
    with pytest.raises(ValueError, match="no head in the lower half of 1 layers; layers='all' edits every one"):
        RED(layers="lower").fit(model, toy_task({"train": EXAMPLES}))
    assert len(RED(layers="upper", epochs=1).fit(model, toy_task({"train": EXAMPLES})).intervention.heads) == 4
