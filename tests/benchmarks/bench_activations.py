"""What collecting the heads' outputs costs, ours against one plain pass a text, in one run: float32, 2 threads.

Printed, never asserted: machines differ and are noisy. That both ways come to the same activations is asserted.
"""

import time

import torch

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.activations import collect_z
from lofit_lens.batches import encode
from lofit_lens.probes import labelled_answers

ANSWERS = 300


@torch.no_grad()
def plain(model, prompts, answers) -> torch.Tensor:
    """One full pass a text, every hook_z kept whole, its last token taken."""
    info = ll.check_model(model)
    found = torch.empty(info.n_layers, len(prompts), info.n_heads, info.d_head)
    for i, sequence in enumerate(encode(model, prompts, answers, eos=False)):
        _, cache = model.run_with_cache(
            torch.tensor([sequence.prompt + sequence.answer]), names_filter=[lens.z_hook(n) for n in range(info.n_layers)]
        )
        for layer in range(info.n_layers):
            found[layer, i] = cache[lens.z_hook(layer)][0, -1]
    return found


def test_truthfulqa_answers(published):
    torch.set_num_threads(2)
    model = ll.load_model("smollm2-135m-instruct")
    ll.check_model(model)
    examples = [
        example
        for fold in ll.tasks.TruthfulQA.folds(all_pairs=True, data_dir=published)
        for example in {(e.prompt, e.answer): e for e in fold.train}.values()
    ]
    labelled = labelled_answers(examples)
    texts = sorted(set(zip(labelled.prompts, labelled.answers, strict=True)))[:ANSWERS]
    prompts, answers = zip(*texts, strict=True)
    started = time.perf_counter()
    ours = collect_z(model, prompts, answers)
    took = time.perf_counter() - started
    started = time.perf_counter()
    theirs = plain(model, prompts, answers)
    obvious = time.perf_counter() - started
    assert (ours - theirs).abs().max() < 1e-4
    print(
        f"\nActivations of {len(texts)} TruthfulQA answers: ours {took:.0f} s, one plain pass each {obvious:.0f} s, "
        f"ratio {took / obvious:.2f}"
    )
