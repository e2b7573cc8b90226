"""LoReFT: what is learned keeps its form, and its effect is the formula at the edges of each prompt."""

import pytest
import torch

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.batches import encode
from lofit_lens.methods import LoReFT
from lofit_lens.methods.loreft import orthonormal
from lofit_lens.tasks import Example

EXAMPLES = [Example(f"Q: Is {a} more than {b}? A:", " Yes." if a > b else " No.") for a, b in [(9, 2), (3, 4), (8, 1), (2, 7)]]
#: Products of float32 rows of 48 numbers.
ROUNDING = 1e-5


@pytest.fixture
def task(toy_task):
    return toy_task({"train": EXAMPLES})


def test_rows_are_orthonormal_by_gram_schmidt():
    U = torch.tensor([[[0.0, 3.0, 4.0], [5.0, 3.0, 4.0]]])
    torch.testing.assert_close(orthonormal(U), torch.tensor([[[0.0, 0.6, 0.8], [1.0, 0.0, 0.0]]]))


@pytest.mark.parametrize("rank", [1, 5, 48])
def test_after_training_the_rotation_is_orthonormal(llama, task, rank):
    made = LoReFT(rank=rank, learning_rate=5e-2, epochs=3, batch_size=4).fit(llama, task).intervention
    for R in made.rotation:
        assert (R @ R.T - torch.eye(rank)).abs().max() < ROUNDING


def test_all_three_parts_are_learned(llama, task):
    early, late = (
        LoReFT(rank=2, learning_rate=rate, epochs=2, batch_size=4).fit(llama, task).intervention for rate in (1e-12, 5e-2)
    )
    for part in ("rotation", "weight", "bias"):
        assert (getattr(early, part) - getattr(late, part)).abs().amax(-1).min() > 1e-3


def test_the_start_is_that_of_a_linear_layer_beside_a_random_rotation(llama, task):
    made = LoReFT(rank=8, learning_rate=1e-12, epochs=1).fit(llama, task).intervention
    bound = 48**-0.5
    assert made.weight.abs().max() <= bound
    assert made.bias.abs().max() <= bound
    # 3 x 8 x 48 uniform draws, whose deviation bound / sqrt 3 is known to 1.3 %: five of them.
    assert made.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.065)
    assert made.weight.mean().abs() < 5 * made.weight.std() / made.weight.numel() ** 0.5
    assert made.bias.abs().max() > bound / 2
    assert (made.rotation.mean().abs() < 5 * 48**-0.5 / made.rotation.numel() ** 0.5).all()


@pytest.mark.parametrize(("layers", "prefix", "suffix"), [((2, 0), 1, 2), ((1,), 0, 3), (None, 4, 0), ((0,), 99, 1)])
@torch.no_grad()
def test_a_fit_is_its_formula_in_a_loop_over_layers_and_positions(llama, task, layers, prefix, suffix):
    method = LoReFT(rank=2, layers=layers, prefix=prefix, suffix=suffix, learning_rate=5e-2, epochs=2, batch_size=4)
    made = method.fit(llama, task).intervention
    assert made.layers == ((0, 1, 2) if layers is None else layers)
    prompts, answers = [e.prompt for e in EXAMPLES[:2]], [" Yes and no.", " No."]
    found = ll.answer_logprobs(llama, prompts, answers, made)
    for i, (sequence, score) in enumerate(zip(encode(llama, prompts, answers, eos=False), found, strict=True)):
        n = len(sequence.prompt)
        edges = [place for place in range(n) if place < prefix or place >= n - suffix]

        def by_hand(row, edges=edges):
            R, W, b = made.rotation[row], made.weight[row], made.bias[row]

            def edit(h, hook):
                h = h.clone()
                for place in edges:
                    vector = h[0, place].clone()
                    for r in range(2):
                        h[0, place] += R[r] * (W[r] @ vector + b[r] - R[r] @ vector)
                return h

            return edit

        hooks = [(lens.resid_post_hook(llama, layer), by_hand(row)) for row, layer in enumerate(made.layers)]
        with llama.hooks(fwd_hooks=hooks):
            logprobs = llama(torch.tensor([sequence.prompt + sequence.answer]))[0].log_softmax(-1)
        total = sum(logprobs[n - 1 + place, token].item() for place, token in enumerate(sequence.answer))
        # Float32 sums in another order; log-probabilities of order 10 to 50.
        assert score.item() == pytest.approx(total, abs=1e-3), i
    assert (found - ll.answer_logprobs(llama, prompts, answers)).abs().min() > 1e-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, "got layers .*wanted at least one of 0 to 2, and none twice"),
        ({"layers": (0, 3)}, "got layers .*wanted at least one of 0 to 2, and none twice"),
        ({"rank": 49}, "got rank 49; wanted at most d_model = 48"),
        ({"prefix": 0, "suffix": 0}, "got prefix 0 and suffix 0; wanted none below 0, one above"),
        ({"prefix": -1}, "got prefix -1 and suffix 3; wanted none below 0, one above"),
    ],
)
def test_what_cannot_be_used_is_refused(llama, task, settings, message):
    with pytest.raises(ValueError, match=message):
        LoReFT(**settings).fit(llama, task)
