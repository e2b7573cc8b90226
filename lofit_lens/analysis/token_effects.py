"""What an edit does along a text: each token's log-probability, how far the prediction moves, and where heads look.

For the token t at each place of a text but the first, with p the base model's distribution there and q the edited model's,

    change    log q(t) - log p(t)                   above 0: the edited model expects this token more
    KL        sum_v p(v) log(p(v) / q(v))           how far the prediction has moved, whichever token follows

in nats: what `side_effects` averages, token by token. A head's pattern is its softmax over the tokens that it attends to; an
edit at `hook_z` changes those of later layers only.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.batches import TokenSequence, collate, encode_prompt, padded
from lofit_lens.heads import Head, checked_heads
from lofit_lens.interventions import Intervention, PromptIntervention, attached
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.scoring import answer_logits
from lofit_lens.side_effects import token_costs
from lofit_lens.vocabulary import token_labels


@dataclass(frozen=True, eq=False)
class TokenEffects:
    """A text's tokens under an edit, in nats; nothing predicts the first one.

    Args:
        tokens: labels of all tokens.
        base_logprobs: of each token but the first, under the base model.
        edited_logprobs: under the edited one.
        kl: of the base model's distribution from the edited one's, at the same places.
    """

    tokens: tuple[str, ...]
    base_logprobs: Float[Tensor, "predicted"]
    edited_logprobs: Float[Tensor, "predicted"]
    kl: Float[Tensor, "predicted"]

    @property
    def change(self) -> Float[Tensor, "predicted"]:
        return self.edited_logprobs - self.base_logprobs

    def to_frame(self) -> pd.DataFrame:
        """A row for each predicted token: `position`, `token`, `base_logprob`, `edited_logprob`, `change`, `kl`."""
        return pd.DataFrame(
            {
                "position": range(1, len(self.tokens)),
                "token": self.tokens[1:],
                "base_logprob": self.base_logprobs.tolist(),
                "edited_logprob": self.edited_logprobs.tolist(),
                "change": self.change.tolist(),
                "kl": self.kl.tolist(),
            }
        )


@dataclass(frozen=True, eq=False)
class AttentionPatterns:
    """Where some heads look on a text, without and with an edit; each row sums to 1.

    Args:
        tokens: labels of all tokens.
        heads: in the order of the patterns.
        base: of the base model; `to` attends to `source`.
        edited: of the edited one.
    """

    tokens: tuple[str, ...]
    heads: tuple[Head, ...]
    base: Float[Tensor, "k to source"]
    edited: Float[Tensor, "k to source"]


@torch.no_grad()
def token_effects(model: LensModel, text: str, intervention: Intervention) -> TokenEffects:
    """What an edit does to the prediction of every token of a text.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        text: two tokens or more; to an edit that depends on positions, the first one is the prompt, and the rest its answer.
        intervention: the edit; not one of prompts, behind which a text's tokens are elsewhere.

    Raises:
        ValueError: a text too short or too long, or an edit that does not fit.
    """
    ids = _ids(model, text, intervention, at_least=2)
    batch = collate(model, [TokenSequence(ids[:1], ids[1:])])
    base = answer_logits(model, batch)
    with attached(model, intervention):
        edited = answer_logits(model, batch)
    edited_cost, base_cost, kl = token_costs(base, edited, batch).float().cpu()
    return TokenEffects(tuple(token_labels(model.tokenizer, ids)), -base_cost, -edited_cost, kl)


@torch.no_grad()
def attention_patterns(
    model: LensModel, text: str, heads: Iterable[tuple[int, int]], intervention: Intervention
) -> AttentionPatterns:
    """Where heads look on a text, before and after an edit.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights, whose attention is computed eagerly.
        text: one token or more.
        heads: whose patterns.
        intervention: the edit, of every position.

    Raises:
        ValueError: a text that is too long, an edit or heads that do not fit, or a model that does not compute patterns.
    """
    info = check_model(model)
    chosen = checked_heads(heads, info.n_layers, info.n_heads)
    ids = _ids(model, text, intervention, at_least=1)
    if not intervention.position_free:
        raise ValueError("got an edit that depends on where prompts end, wanted one of every position: a text has no prompt")
    base = _patterns(model, ids, chosen)
    with attached(model, intervention):
        edited = _patterns(model, ids, chosen)
    return AttentionPatterns(tuple(token_labels(model.tokenizer, ids)), chosen, base, edited)


def _ids(model: LensModel, text: str, intervention: Intervention, *, at_least: int) -> tuple[int, ...]:
    check_model(model)
    if isinstance(intervention, PromptIntervention):
        raise ValueError("got an edit of prompts, wanted one of the model itself: behind other text, tokens are elsewhere")
    ids = encode_prompt(model, text)
    if not at_least <= len(ids) <= model.cfg.n_ctx:
        raise ValueError(f"the text has {len(ids)} tokens, wanted {at_least} to {model.cfg.n_ctx}: {text[:60]!r}")
    return ids


def _patterns(model: LensModel, ids: tuple[int, ...], heads: tuple[Head, ...]) -> Float[Tensor, "k to source"]:
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        return lambda pattern, hook: seen.update({layer: pattern[0].float().cpu()})

    layers = sorted({head.layer for head in heads})
    with model.hooks(fwd_hooks=[(lens.pattern_hook(layer), keep(layer)) for layer in layers]):
        lens.plain_forward(model, *padded(model, [ids], side="right"))
    if len(seen) < len(layers):
        raise ValueError("this model computes no attention patterns; load it with attn_implementation='eager'")
    return torch.stack([seen[head.layer][head.index] for head in heads])
