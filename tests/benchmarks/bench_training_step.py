"""What a training step costs, ours against the obvious way, in one run: 8 CLUTRR-length stories, float32, 2 threads.

Printed, never asserted: machines differ and are noisy. The losses of both ways are asserted to be the same.
"""

import random
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lofit_lens as ll
from lofit_lens.batches import TOKEN_BUDGET
from lofit_lens.fitting import Optimisation, accumulate_gradient, weights_frozen
from lofit_lens.frozen import ResidualStore
from lofit_lens.heads import Head
from lofit_lens.lens import z_hook
from lofit_lens.losses import l1_penalty
from lofit_lens.objectives import AnswerObjective
from lofit_lens.tasks import Example

ROUNDS = 5
L1 = 1e-3


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(2)
    return ll.load_model("smollm2-135m-instruct")


def stories(model, n: int, length: int) -> list[Example]:
    """Random words in CLUTRR's size; the cost of a step depends on the number of tokens alone."""
    words = ("brother", "sister", "went", "to", "her", "house", "with", "dinner", "on", "Sunday")
    generator = random.Random(0)
    return [Example(" ".join(generator.choices(words, k=length)), " grandmother") for _ in range(n)]


def obvious_step(model, sequences, heads: list[Head], scale: Tensor | None, offset: Tensor | None) -> float:
    """The published way: a loop over slices of flat z, full logits of every position, cross-entropy with a label mask."""
    n_heads, d_head = model.cfg.n_heads, model.cfg.d_head
    row_of = {head: row for row, head in enumerate(heads)}

    def edit(layer: int):
        def hook_fn(z, hook):
            flat = z.reshape(*z.shape[:2], -1)
            parts = []
            for index in range(n_heads):
                part = flat[..., index * d_head : (index + 1) * d_head]
                row = row_of.get(Head(layer, index))
                if row is not None:
                    a = torch.zeros(d_head) if scale is None else scale[row]
                    v = torch.zeros(d_head) if offset is None else offset[row]
                    part = (a + 1) * part + v
                parts.append(part)
            return torch.cat(parts, dim=-1).reshape(z.shape)

        return hook_fn

    width = max(len(s) for s in sequences)
    tokens = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    labels = torch.full_like(tokens, -100)
    for row, s in enumerate(sequences):
        tokens[row, : len(s)] = torch.tensor(s.prompt + s.answer)
        mask[row, : len(s)] = 1
        labels[row, len(s.prompt) : len(s)] = torch.tensor(s.answer)
    with model.hooks(fwd_hooks=[(z_hook(layer), edit(layer)) for layer in sorted({h.layer for h in heads})]):
        logits = model(tokens, attention_mask=mask)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
    if scale is not None:
        (L1 * scale.abs().sum()).backward()
    return loss.item()


def compare(name: str, ours: Callable[[], float], obvious: Callable[[], float]) -> None:
    ours(), obvious()  # warm-up
    ratios, seconds = [], []
    for _ in range(ROUNDS):
        times = []
        for step in (ours, obvious):
            started = time.perf_counter()
            loss = step()
            times.append(time.perf_counter() - started)
            if step is ours:
                our_loss = loss
        assert our_loss == pytest.approx(loss, rel=1e-4)
        ratios.append(times[0] / times[1])
        seconds.append(times)
    median = [statistics.median(column) for column in zip(*seconds, strict=True)]
    print(
        f"\n{name}: ours {median[0]:.2f} s, obvious {median[1]:.2f} s, ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}, {ROUNDS} pairs)"
    )


def test_step_1_scales_at_all_heads(model):
    objective = AnswerObjective(model, stories(model, 8, 109))
    heads = tuple(Head(*head) for head in ll.check_model(model).all_heads)
    scale = (torch.randn(len(heads), model.cfg.d_head) * 1e-3).requires_grad_()
    intervention = ll.HeadIntervention(heads, scale=scale)
    store = ResidualStore(model, 0)

    def ours() -> float:
        loss = accumulate_gradient(model, objective, intervention, list(range(8)), Optimisation(1e-2), store)
        (L1 * l1_penalty(scale)).backward()
        return loss

    with weights_frozen(model):
        print(f"\n{sum(map(len, objective.sequences)) / 8:.0f} tokens a story")
        compare("step 1", ours, lambda: obvious_step(model, objective.sequences, list(heads), scale, None))


@pytest.mark.parametrize("lowest", [15, 20])
def test_step_2_offsets_in_the_upper_half(model, lowest):
    objective = AnswerObjective(model, stories(model, 8, 109))
    drawn = [head for head in ll.random_scores(model).rank() if head.layer >= lowest]
    heads = tuple({Head(lowest, 0), *drawn[:27]})
    offset = (torch.randn(len(heads), model.cfg.d_head) * 1e-3).requires_grad_()
    intervention = ll.HeadIntervention(heads, offset=offset)
    store = ResidualStore(model, lowest)
    store.fill(model, objective.sequences, TOKEN_BUDGET)

    def ours() -> float:
        return accumulate_gradient(model, objective, intervention, list(range(8)), Optimisation(1e-2), store)

    with weights_frozen(model):
        compare(
            f"step 2, {len(heads)} heads from layer {lowest} up",
            ours,
            lambda: obvious_step(model, objective.sequences, list(heads), None, offset),
        )
