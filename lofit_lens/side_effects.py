"""What an edit costs elsewhere: how it changes the model's prediction of ordinary text (ITI, Li et al. 2023, section 5).

For every token of a text but the first, with p the base model's distribution over the next token, q the edited model's, and
t the token that follows:

    cross-entropy   -log q(t)                       how well the edited model still predicts text; -log p(t) the base model
    KL              sum_v p(v) log(p(v) / q(v))     how far its predictions have moved, whichever token follows

in nats a token, averaged over each text's tokens. The published code samples texts at random and leaves KL out; here the
texts are given, and every text's numbers are kept. The text of a prompt edit stands in front of every text for q alone, and is
not predicted itself; t runs over the same tokens for p and q.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens.batches import Batch, TokenSequence, by_length, collate, encode_prompt, naming, refuse_one_string
from lofit_lens.interventions import Intervention, PromptIntervention, attached
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.progress import progress
from lofit_lens.scoring import DIVERGED, ROWS_OF_LOGITS, answer_logits, logit_rows, per_sequence, target_logprobs
from lofit_lens.statistics import mean_interval
from lofit_lens.tasks import open_web_text

#: Every position's logits are needed, so fewer tokens go through the model at once than elsewhere; at most
#: `scoring.logit_rows`, fewer for large vocabularies.
TOKEN_BUDGET = 256


@dataclass(frozen=True)
class SideEffects:
    """Nats a token, for each text.

    Args:
        cross_entropy: of the text under the edited model.
        base_cross_entropy: of the text under the base model.
        kl: of the edited model's predictions from the base model's.
        n_tokens: predicted tokens.
    """

    cross_entropy: tuple[float, ...]
    base_cross_entropy: tuple[float, ...]
    kl: tuple[float, ...]
    n_tokens: tuple[int, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per text."""
        return pd.DataFrame(vars(self))

    def __str__(self) -> str:
        means = self.summary()
        after, before, rise, kl = (
            f"{mean:.3f}" if name in ("cross_entropy", "base_cross_entropy") else f"{mean:.4f} [{low:.4f}, {high:.4f}]"
            for name, mean, low, high in means.itertuples()
        )
        return (
            f"side effects: cross-entropy {after} from {before}, rise {rise}, KL {kl} nats a token (n = {len(self.kl)} texts)"
        )

    def summary(self) -> pd.DataFrame:
        """Mean over texts and its 95 % interval (BCa bootstrap), of each quantity and of the rise in cross-entropy."""
        rise = tuple(after - before for after, before in zip(self.cross_entropy, self.base_cross_entropy, strict=True))
        quantities = {
            "cross_entropy": self.cross_entropy,
            "base_cross_entropy": self.base_cross_entropy,
            "rise_in_cross_entropy": rise,
            "kl": self.kl,
        }
        rows = {name: (sum(values) / len(values), *mean_interval(values)) for name, values in quantities.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"])


def side_effects(
    model: LensModel,
    intervention: Intervention,
    texts: Sequence[str] | None = None,
    *,
    max_tokens: int = 128,
    token_budget: int = TOKEN_BUDGET,
) -> SideEffects:
    """How an edit changes the prediction of texts that it was not made for.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        intervention: the edit. To one that depends on positions, such as LoReFT's, a text's first token is the prompt, and the
            rest its answer.
        texts: ordinary text, held out from whatever the edit was fitted on; None takes 100 texts of OpenWebText, as ITI
            does, and fetches them the first time (`tasks.open_web_text`). `tasks.texts_of` makes them of a file or of
            another task.
        max_tokens: of each text that are looked at (the published 128), or as many as the model's context has room for.
        token_budget: padded tokens that go through the model at once, as far as `scoring.logit_rows` allows.

    Raises:
        ConnectionError: OpenWebText is wanted, is not on this machine, and the hub is out of reach.
        ValueError: no texts, one of fewer than two tokens, or an edit that does not fit; before anything is run.
        ArithmeticError: a cross-entropy or KL is not finite.
    """
    [found] = side_effects_of_each(model, [intervention], texts, max_tokens=max_tokens, token_budget=token_budget)
    return found


@torch.no_grad()
def side_effects_of_each(
    model: LensModel,
    interventions: Sequence[Intervention],
    texts: Sequence[str] | None = None,
    *,
    max_tokens: int = 128,
    token_budget: int = TOKEN_BUDGET,
) -> list[SideEffects]:
    """The side effects of several edits on the same tokens, for which the base model reads each text only once.

    Args:
        model: as in `side_effects`.
        interventions: one or more edits.
        texts: as in `side_effects`.
        max_tokens: as in `side_effects`; the context must have room for the longest text that one of the edits puts in front.
        token_budget: as in `side_effects`.

    Raises:
        ConnectionError, ValueError, ArithmeticError: as `side_effects`, or there are no edits.
    """
    check_model(model)
    texts = open_web_text() if texts is None else texts
    refuse_one_string(texts=texts)
    if not interventions:
        raise ValueError("got no edits to measure; wanted at least one")
    if not texts or max_tokens < 2:
        raise ValueError(f"got {len(texts)} texts and max_tokens={max_tokens}; wanted at least one text and two tokens")
    in_front = [_text_in_front(model, intervention) for intervention in interventions]
    longest = max(in_front, key=len)
    sequences = _encoded(model, texts, min(max_tokens, model.cfg.n_ctx - len(longest)))
    for intervention in interventions:
        with attached(model, intervention):
            pass  # what does not fit is refused, before anything is run
    results = torch.empty(len(interventions), 3, len(texts))
    lengths = [len(_behind(model, longest, sequence)) for sequence in sequences]
    bar = progress(None, "side effects", total=len(texts))
    for group in by_length(lengths, min(token_budget, logit_rows(model))):
        results[:, :, group] = _of_batch(model, interventions, in_front, [sequences[i] for i in group])
        bar.update(len(group))
    bar.close()
    is_finite = results.isfinite().all(1)
    for i in range(len(interventions)):
        if n_bad := int((~is_finite[i]).sum()):
            which = f" under edit {i}" if len(interventions) > 1 else ""
            raise ArithmeticError(f"cross-entropy or KL is not finite for {n_bad} of {len(texts)} texts{which}; {DIVERGED}")
    n_tokens = tuple(len(sequence.answer) for sequence in sequences)
    return [SideEffects(*map(tuple, of_edit), n_tokens=n_tokens) for of_edit in results.tolist()]


def _encoded(model: LensModel, texts: Sequence[str], length: int) -> list[TokenSequence]:
    """The first tokens of each text; all but the first are predicted."""
    sequences = []
    for i, text in enumerate(texts):
        with naming(f"text {i}"):
            ids = encode_prompt(model, text)[:length]
        if len(ids) < 2:
            raise ValueError(f"text {i} has fewer than two tokens, so nothing is predicted: {text!r}; leave it out")
        sequences.append(TokenSequence(ids[:1], ids[1:]))
    return sequences


def _text_in_front(model: LensModel, intervention: Intervention) -> tuple[int, ...]:
    """Token ids of what a prompt edit puts in front of every text."""
    if not isinstance(intervention, PromptIntervention) or not intervention.text:
        return ()
    in_front = encode_prompt(model, intervention.text)
    if len(in_front) + 2 > model.cfg.n_ctx:
        raise ValueError(
            f"the edit's text has {len(in_front)} tokens, and the model's context of {model.cfg.n_ctx} leaves no room for two "
            "of a text behind it; take fewer worked examples"
        )
    return in_front


def _behind(model: LensModel, in_front: tuple[int, ...], sequence: TokenSequence) -> TokenSequence:
    """The same text with other tokens in front, and one BOS at most."""
    if not in_front:
        return sequence
    own_start = () if sequence.prompt == (model.tokenizer.bos_token_id,) else sequence.prompt
    return TokenSequence(in_front + own_start, sequence.answer)


def _of_batch(
    model: LensModel,
    interventions: Sequence[Intervention],
    in_front: Sequence[tuple[int, ...]],
    sequences: list[TokenSequence],
) -> Float[Tensor, "edit 3 text"]:
    batch = collate(model, sequences)
    base = answer_logits(model, batch)
    lengths = torch.tensor([len(sequence.answer) for sequence in sequences])
    results = []
    for intervention, ids in zip(interventions, in_front, strict=True):
        with attached(model, intervention):
            edited = answer_logits(model, collate(model, [_behind(model, ids, sequence) for sequence in sequences]))
        per_token = token_costs(base, edited, batch)
        results.append(torch.stack([per_sequence(values, batch).cpu() / lengths for values in per_token]))
    return torch.stack(results)


def token_costs(
    base: Float[Tensor, "place d_vocab"], edited: Float[Tensor, "place d_vocab"], batch: Batch
) -> Float[Tensor, "3 answer_token"]:
    """Of each answer token, cross-entropy under the edit and under the base model, and KL where it is predicted; in nats."""
    parts = zip(base.split(ROWS_OF_LOGITS), edited.split(ROWS_OF_LOGITS), strict=True)
    kl = torch.cat([_kl(*part) for part in parts])
    return torch.stack([-target_logprobs(edited, batch), -target_logprobs(base, batch), kl])


def _kl(base: Float[Tensor, "place d_vocab"], edited: Float[Tensor, "place d_vocab"]) -> Float[Tensor, "place"]:
    p, q = base.log_softmax(-1), edited.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
