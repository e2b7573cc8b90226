"""Greedy generation under whatever edit is attached: batched, left-padded, with a KV cache."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import TOKEN_BUDGET, encode_prompt, padded, refuse_one_string
from lofit_lens.interventions import Intervention, attached
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.prefixes import Prefix, begun
from lofit_lens.progress import progress


def generated_text(model: LensModel, ids: Sequence[int], stop: Sequence[str]) -> str:
    """The text of generated tokens, up to the end-of-sequence token and the first stop string."""
    eos = model.tokenizer.eos_token_id
    ids = list(ids)
    if eos in ids:
        ids = ids[: ids.index(eos)]
    text = model.tokenizer.decode(ids, skip_special_tokens=True)
    cuts = [text.find(mark) for mark in stop if mark in text]
    return text[: min(cuts)] if cuts else text


def generate(
    model: LensModel,
    prompts: Sequence[str],
    intervention: Intervention | None = None,
    *,
    max_new_tokens: int = 16,
    stop: Sequence[str] = (),
    token_budget: int = TOKEN_BUDGET,
) -> list[str]:
    """Continue each prompt greedily, and return the new text without its end-of-sequence token and stop string.

    The edit applies at every position: at the prompt's when it is read, at each new token's when that is read. An answer
    does not depend on which prompts share its batch (rounding apart, which can only matter where two tokens tie).

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        prompts: the texts to continue.
        intervention: edit to apply, or None for the base model.
        max_new_tokens: the most that is generated.
        stop: strings at which an answer ends.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: the model, the intervention or a prompt cannot be used; before anything is run.
    """
    n_ctx = check_model(model).n_ctx
    refuse_one_string(prompts=prompts)
    encoded = [encode_prompt(model, prompt) for prompt in prompts]
    for i, ids in enumerate(encoded):
        if len(ids) + max_new_tokens > n_ctx:
            raise ValueError(
                f"prompt {i} has {len(ids)} tokens and {max_new_tokens} may follow; the model's context has {n_ctx}: "
                f"{prompts[i][:60]!r}..."
            )
    texts = [""] * len(prompts)
    bar = progress(None, "generate", total=len(prompts))
    with torch.no_grad(), attached(model, intervention):
        for group, prefix in begun(model, encoded, [len(ids) + max_new_tokens for ids in encoded], token_budget):
            answers = continued(model, prefix, max_new_tokens, stop)
            for i, answer in zip(group, answers, strict=True):
                texts[i] = generated_text(model, answer, stop)
            bar.update(len(group))
    bar.close()
    return texts


def _is_finished(model: LensModel, ids: list[int], stop: Sequence[str]) -> bool:
    if ids and ids[-1] == model.tokenizer.eos_token_id:
        return True
    return bool(stop) and any(mark in model.tokenizer.decode(ids) for mark in stop)


def continued(model: LensModel, prefix: Prefix, max_new_tokens: int, stop: Sequence[str]) -> list[list[int]]:
    """The tokens that greedily follow each prompt, up to the one that ends its answer; uses the prefix up."""
    tokens, mask = padded(model, prefix.unread, side="left")
    mask = torch.cat([prefix.mask, mask], dim=-1)
    answers: list[list[int]] = [[] for _ in prefix.unread]
    finished = [False] * len(answers)
    cache = prefix.cache
    for _ in range(max_new_tokens):
        with model.hooks(fwd_hooks=[lens.last_position_only(model)]):
            logits, cache = lens.forward_with_cache(model, tokens, mask, cache)
        tokens = _extend(model, answers, finished, logits[:, -1], stop)
        if all(finished):
            break
        tokens = tokens.unsqueeze(-1).to(mask.device)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=-1)
    return answers


def _extend(
    model: LensModel,
    answers: list[list[int]],
    finished: list[bool],
    logits: Float[Tensor, "batch d_vocab"],
    stop: Sequence[str],
) -> Int[Tensor, "batch"]:
    """Append each unfinished answer's most likely token; returns the tokens of all rows, finished ones included."""
    chosen = logits.argmax(-1)
    for row, token in enumerate(chosen.tolist()):
        if not finished[row]:
            answers[row].append(token)
            finished[row] = _is_finished(model, answers[row], stop)
    return chosen
