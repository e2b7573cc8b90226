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

from lofit_lens.batches import TokenSequence, by_length, collate, encode_prompt, naming, refuse_one_string
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


@torch.no_grad()
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
    check_model(model)
    texts = open_web_text() if texts is None else texts
    refuse_one_string(texts=texts)
    if not texts or max_tokens < 2:
        raise ValueError(f"got {len(texts)} texts and max_tokens={max_tokens}; wanted at least one text and two tokens")
    in_front = _text_in_front(model, intervention)
    length = min(max_tokens, model.cfg.n_ctx - len(in_front))
    encoded = []
    for i, text in enumerate(texts):
        with naming(f"text {i}"):
            encoded.append(encode_prompt(model, text)[:length])
        if len(encoded[i]) < 2:
            raise ValueError(f"text {i} has fewer than two tokens, so nothing is predicted: {text!r}; leave it out")
    with attached(model, intervention):
        pass  # what does not fit is refused, before anything is run
    sequences = [TokenSequence(ids[:1], ids[1:]) for ids in encoded]
    edited = [_behind(model, in_front, sequence) for sequence in sequences]
    results = torch.empty(3, len(texts))
    bar = progress(None, "side effects", total=len(texts))
    for group in by_length(map(len, edited), min(token_budget, logit_rows(model))):
        results[:, group] = _of_batch(model, intervention, [sequences[i] for i in group], [edited[i] for i in group])
        bar.update(len(group))
    bar.close()
    if not results.isfinite().all():
        n_bad = int((~results.isfinite()).any(0).sum())
        raise ArithmeticError(f"cross-entropy or KL is not finite for {n_bad} of {len(texts)} texts; {DIVERGED}")
    cross_entropy, base_cross_entropy, kl = (tuple(row) for row in results.tolist())
    return SideEffects(cross_entropy, base_cross_entropy, kl, tuple(len(sequence.answer) for sequence in sequences))


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
    model: LensModel, intervention: Intervention, sequences: list[TokenSequence], edited_sequences: list[TokenSequence]
) -> Float[Tensor, "3 text"]:
    batch = collate(model, sequences)
    base = answer_logits(model, batch)
    with attached(model, intervention):
        edited = answer_logits(model, collate(model, edited_sequences))
    parts = zip(base.split(ROWS_OF_LOGITS), edited.split(ROWS_OF_LOGITS), strict=True)
    kl = torch.cat([_kl(*part) for part in parts])
    per_token = (-target_logprobs(edited, batch), -target_logprobs(base, batch), kl)
    lengths = torch.tensor([len(sequence.answer) for sequence in sequences])
    return torch.stack([per_sequence(values, batch).cpu() / lengths for values in per_token])


def _kl(base: Float[Tensor, "place d_vocab"], edited: Float[Tensor, "place d_vocab"]) -> Float[Tensor, "place"]:
    p, q = base.log_softmax(-1), edited.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
