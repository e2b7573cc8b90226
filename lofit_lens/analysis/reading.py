"""What offsets say in the vocabulary: the logit lens on each head's displacement (paper, Appendix E; nostalgebraist 2020).

A head's offset adds a displacement d to the residual stream at every token (see `displacements`). With N(x) = A x / s(x), the
final norm less its bias, each lens gives logits over the vocabulary, and their softmax:

    without norm    d W_U
    with norm       N(d) W_U
    Jacobian        N(J_l d) W_U

Without the norm, the length of d counts: a short one leaves all probabilities near 1 / d_vocab. With the norm, d is read as if
the stream held nothing else: only its direction counts, once it is long next to the norm's epsilon. The paper does not say
which of the two it used, nor how it lifted v to the stream's width.

J_l is a Jacobian lens (Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models"), fitted
on text: how much the stream behind the last block changes on average, to first order, for a displacement at every token behind
block l. That is what an offset is, but for block l's own MLP, whose response is left out. An offset may be too large for the
first order to hold.

A displacement has no bias. Those of the norm and of W_U are left out; they would be the same for every head. So a negated
offset reads the other way round. Logits are those of W_U, before a soft cap or multiplier (Gemma 2's, Cohere's).
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lofit_lens import lens
from lofit_lens.displacements import offset_displacements
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model
from lofit_lens.vocabulary import token_labels

Lens = Literal["without norm", "with norm", "Jacobian"]
Side = Literal["top", "bottom"]


@runtime_checkable
class FittedJacobianLens(Protocol):
    """What is used of `transformer_lens.tools.analysis.JacobianLens`."""

    @property
    def source_layers(self) -> list[int]: ...

    def validate_model(self, model: Any) -> Any: ...

    def transport(self, residual: Tensor, layer: int) -> Tensor: ...


class ReadToken(NamedTuple):
    """A token that a lens reads from a head's offset.

    Args:
        head: whose offset.
        lens: see the module.
        side: whether it is one of the likeliest or of the unlikeliest.
        rank: from 1, the most extreme.
        token: as `vocabulary.token_labels` shows it.
        logit: of W_U, without bias.
        probability: softmax of all logits, in [0, 1].
    """

    head: Head
    lens: Lens
    side: Side
    rank: int
    token: str
    logit: float
    probability: float


@dataclass(frozen=True)
class OffsetReading:
    """The likeliest and unlikeliest tokens of each head's offset; logits without bias, probabilities in [0, 1].

    Args:
        tokens: by lens, then head in the order of the intervention, then side, most extreme first.
    """

    tokens: tuple[ReadToken, ...]

    @property
    def heads(self) -> tuple[Head, ...]:
        return tuple(dict.fromkeys(read.head for read in self.tokens))

    def of(self, lens: Lens, side: Side = "top", k: int = 10) -> dict[Head, tuple[ReadToken, ...]]:
        """For each head, its `k` most extreme tokens in order.

        Raises:
            ValueError: a lens or side that was not read, or more tokens than were.
        """
        asked = [read for read in self.tokens if (read.lens, read.side) == (lens, side)]
        n_read = max((read.rank for read in asked), default=0)
        if not 1 <= k <= n_read:
            lenses = list(dict.fromkeys(read.lens for read in self.tokens))
            raise ValueError(
                f"got lens {lens!r}, side {side!r} and k = {k}, of which {n_read} tokens were read; wanted one of {lenses}, "
                f"one of {get_args(Side)}, and at most the k of `read_offsets(k=...)`"
            )
        return {head: tuple(read for read in asked if read.head == head and read.rank <= k) for head in self.heads}

    def to_frame(self) -> pd.DataFrame:
        """One row per head, lens, side and rank."""
        rows = [(read.head.label, *read.head, *read[1:]) for read in self.tokens]
        return pd.DataFrame(rows, columns=["head", "layer", "index", *ReadToken._fields[1:]])

    def table(self, k: int = 10, *, lens: Lens = "with norm", side: Side = "top") -> pd.DataFrame:
        """One row per head, its `k` most extreme tokens in one string, as in the paper's Appendix E.

        Raises:
            ValueError: as `of`.
        """
        rows = {head.label: ", ".join(read.token for read in own) for head, own in self.of(lens, side, k).items()}
        return pd.DataFrame({"tokens": rows.values()}, index=pd.Index(rows.keys(), name="head"))


@torch.no_grad()
def read_offsets(
    model: LensModel, intervention: HeadIntervention, *, k: int = 10, jacobian_lens: FittedJacobianLens | None = None
) -> OffsetReading:
    """Read each head's offset with the logit lens, without and with the final norm. No text is run.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        intervention: its scales, if any, are not looked at.
        k: tokens at either end.
        jacobian_lens: read with this too: a `transformer_lens.tools.analysis.JacobianLens` of the same TransformerBridge,
            fitted (`JacobianLens.fit`: a backward pass for every few dimensions of the residual stream and every text) or
            fetched (`JacobianLens.from_pretrained`). At the last layer nothing is transported.

    Raises:
        ValueError: no offsets, heads that the model does not have, k, an architecture that cannot be read, or a Jacobian lens
            of another model or without an edited layer.
        TypeError: a Jacobian lens for a HookedTransformer.
    """
    check_model(model)
    W_U = lens.unembedding_weights(model).float()
    if not 1 <= k <= W_U.shape[1]:
        raise ValueError(f"k = {k} tokens asked for; wanted 1 to {W_U.shape[1]}, the size of the vocabulary")
    displacements = offset_displacements(model, intervention)
    read_from: dict[Lens, Tensor] = {"without norm": displacements, "with norm": _normalised(model, displacements)}
    if jacobian_lens is not None:
        transported = _transported(model, jacobian_lens, intervention.heads, displacements)
        read_from["Jacobian"] = _normalised(model, transported)
    tokens: list[ReadToken] = []
    for name, vectors in read_from.items():
        for head, logits in zip(intervention.heads, vectors.to(W_U.device) @ W_U, strict=True):
            tokens.extend(_ends(model, head, name, logits, k))
    return OffsetReading(tuple(tokens))


def _normalised(model: LensModel, vectors: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_model"]:
    linear, scale = lens.norm_parts(model, lens.FINAL_NORM, vectors)
    return linear / scale


def _transported(
    model: LensModel, jacobian_lens: FittedJacobianLens, heads: tuple[Head, ...], displacements: Float[Tensor, "k d_model"]
) -> Float[Tensor, "k d_model"]:
    """J_l d of each head. The stream behind the last block is where it goes to, so there J_l is the identity."""
    jacobian_lens.validate_model(model)
    last = model.cfg.n_layers - 1
    if missing := sorted({head.layer for head in heads} - {last, *jacobian_lens.source_layers}):
        raise ValueError(f"the Jacobian lens has no layers {missing}, where heads are edited; fit it with them")
    moved = [
        d if head.layer == last else jacobian_lens.transport(d, head.layer)
        for head, d in zip(heads, displacements, strict=True)
    ]
    return torch.stack(moved)


def _ends(model: LensModel, head: Head, name: Lens, logits: Float[Tensor, "d_vocab"], k: int) -> list[ReadToken]:
    probabilities = logits.softmax(-1)
    tokens = []
    for side in get_args(Side):
        values, ids = logits.topk(k, largest=side == "top")
        columns = (token_labels(model.tokenizer, ids.tolist()), values.tolist(), probabilities[ids].tolist())
        tokens.extend(ReadToken(head, name, side, rank, *row) for rank, row in enumerate(zip(*columns, strict=True), start=1))
    return tokens
