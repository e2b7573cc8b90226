"""LoFiT: Localized Fine-tuning on LLM Representations (Yin, Ye and Durrett, NeurIPS 2024, arXiv 2406.01563), section 3.

Step 1, attention head selection. Learn a scaling vector A at every head, everything else frozen:

    z[l, h]  <-  (1 + A[l, h]) * z[l, h]          minimise   loss + l1 * sum |A|          A ~ N(0, 0.001) at the start

and score each head by how far its scaling moved, S[l, h] = ||A[l, h]||_2. Step 2, bias tuning. Throw A away, start from the
base model again, and learn an offset v at the k best heads only:

    z[l, h]  <-  z[l, h] + v[l, h]                minimise   loss                         v ~ N(0, 0.001) at the start

The result is k vectors of d_head numbers; because they are constant, the edit equals a bias on those layers' attention output.

Where the paper and its code differ we follow the code and leave the other reachable: weight decay is 0 (paper: 0.01); the
penalty is a plain sum; a preference task trains step 1 with DPO too (paper: cross-entropy). Where the code does what nobody
would want, we do not: the DPO reference is the bare model (code, and `as_published`: the model with its initial noise), no
answer token is cut off by a fixed template length, and heads of two folds never overwrite each other's file.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from lofit_lens.fitting import Penalised, VectorKind, fit_vectors
from lofit_lens.heads import HeadScores, checked_heads, head_count
from lofit_lens.interventions import HeadIntervention, of_model, scores_from_norms
from lofit_lens.lens import LensModel
from lofit_lens.methods.base import Count, Fit, NotNegative, Positive, Trained, at_defaults
from lofit_lens.models import base_of, check_model
from lofit_lens.objectives import Objective
from lofit_lens.tasks.base import Task


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class LoFiT(Trained):
    """Both steps of LoFiT, or step 2 alone on heads that are given; what `Trained` has besides holds for both.

    Args:
        k: heads to keep: a count, or a fraction of all heads.
        select_by: what step 1 learns at every head: the paper's scaling, or an offset (its "bias-based" ablation, Table 2, at
            step 2's learning rate and epochs, without penalty).
        heads: skip step 1 and learn offsets here, for transfer: `replace(lofit, heads=other.scores.top(0.1))`.
        scale_lr: learning rate of step 1.
        offset_lr: learning rate of step 2; fewer heads want a larger one (paper, appendix D).
        l1: weight of the penalty in step 1.
        penalised: what it falls on: entries, as published, or whole heads (group-sparse; `losses.group_penalty`).
        scale_epochs: passes over the training data in step 1.
        offset_epochs: passes in step 2.
        init_std: of the vectors' start, in both steps.
        as_published: DPO's reference is the model under each step's start, its noise, as in the published code.
    """

    k: Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, le=1, strict=True)] = 0.1
    select_by: VectorKind = "scale"
    heads: tuple[tuple[int, int], ...] | None = None
    scale_lr: Positive = 5e-3
    offset_lr: Positive = 1e-2
    l1: NotNegative = 1e-3
    penalised: Penalised = "entries"
    scale_epochs: Count = 5
    offset_epochs: Count = 5
    init_std: NotNegative = 1e-3
    as_published: bool = False

    def select(self, model: LensModel, task: Task, *, seed: int = 0) -> HeadScores:
        """Step 1 alone: the norm of every head's learned scaling (or offset).

        Raises:
            ValueError: model or task cannot be used.
            NonFiniteLossError: the loss became NaN or infinite.
        """
        return self._select(model, task, self._objective(model, task), seed)[0]

    def selector(self) -> "LoFiT":
        """This, with everything that `select` does not read at its default: two that are equal score heads alike."""
        of_step_1, of_step_2 = ("scale_lr", "scale_epochs", "l1", "penalised"), ("offset_lr", "offset_epochs")
        return at_defaults(self, ("k", "heads", *(of_step_2 if self.select_by == "scale" else of_step_1)))

    def _select(self, model: LensModel, task: Task, objective: Objective, seed: int) -> tuple[HeadScores, tuple[float, ...]]:
        info = check_model(model)
        heads = checked_heads(info.all_heads, info.n_layers, info.n_heads)
        if self.select_by == "scale":
            of_scales = {"init_std": self.init_std, "l1": self.l1, "penalised": self.penalised}
            optimisation = self._optimisation(self.scale_lr, self.scale_epochs, **of_scales)
        else:
            optimisation = self._optimisation(self.offset_lr, self.offset_epochs, init_std=self.init_std)
        vectors, losses = fit_vectors(
            model,
            objective,
            heads,
            self.select_by,
            optimisation,
            seed=seed,
            refers_to_start=self.as_published,
            description=f"{task.name}: step 1, {self.select_by}s",
            settings=self.settings(),
        )
        quantity = {"scale": "norm of the learned scaling", "offset": "norm of the learned offset"}[self.select_by]
        described = {"quantity": quantity, "made_by": self._made_by(task, seed), **of_model(model)}
        scores = scores_from_norms(vectors, heads, info.n_layers, info.n_heads, **described)
        return scores, losses

    def fit(self, model: LensModel, task: Task, *, seed: int = 0) -> Fit[HeadIntervention]:
        """Select heads (unless they are given) and learn their offsets.

        Raises:
            ValueError: model, task, k or heads cannot be used; before anything is run.
            NonFiniteLossError: the loss became NaN or infinite.
        """
        info = check_model(model)
        losses: dict[str, tuple[float, ...]] = {}
        scores, heads = None, ()
        if self.heads is None:
            head_count(self.k, len(info.all_heads))  # a k that cannot be used is refused before step 1 is paid for
        else:
            heads = checked_heads(self.heads, info.n_layers, info.n_heads)
        objective = self._objective(model, task)
        if self.heads is None:
            scores, losses["selection"] = self._select(model, task, objective, seed)
            heads = scores.top(self.k)
        optimisation = self._optimisation(self.offset_lr, self.offset_epochs, init_std=self.init_std)
        offset, losses["offset"] = fit_vectors(
            model,
            objective,
            heads,
            "offset",
            optimisation,
            seed=seed,
            refers_to_start=self.as_published,
            description=f"{task.name}: step 2, offsets",
            settings=self.settings(),
        )
        intervention = HeadIntervention(
            heads,
            offset=offset,
            made_by=self._made_by(task, seed),
            head_scores=None if scores is None else tuple(scores[head] for head in heads),
            base_model=base_of(model),
        )
        return Fit(intervention, scores, losses)

    @classmethod
    def from_paper(cls, model: str, task: str, *, share: Literal["3%", "10%"] = "10%") -> "LoFiT":
        """The paper's own settings (appendix D, Table 6, and Tables 1 and 3 for the head counts).

        Args:
            model: `gemma-7b`, `llama2-7b` or `llama2-13b`.
            task: `truthfulqa`, `mquake`, `clutrr`, and for the Llamas `siqa`, `arc`, `boolq`, `svamp`.
            share: of all heads; the exact counts are the paper's. The last four tasks were run at 10 % only.

        Raises:
            ValueError: the paper did not run that.
        """
        row = _PAPER_RATES.get((model, task))
        rate = None if row is None else {"3%": row[2], "10%": row[3]}.get(share)
        if row is None or rate is None:
            known = ", ".join(f"{m}/{t}" for m, t in _PAPER_RATES)
            raise ValueError(f"the paper has no settings for {model}/{task} at {share} of heads; it has: {known}")
        epochs = 3 if task in ("siqa", "arc", "boolq") else 5
        batch_size = {"llama2-7b": 4, "llama2-13b": 2}[model] if task == "boolq" else 8
        return cls(
            k=_PAPER_HEADS[model][share],
            l1=row[0],
            scale_lr=row[1],
            offset_lr=rate,
            scale_epochs=epochs,
            offset_epochs=epochs,
            batch_size=batch_size,
        )


_PAPER_HEADS = {
    "gemma-7b": {"3%": 16, "10%": 48},
    "llama2-7b": {"3%": 32, "10%": 96},
    "llama2-13b": {"3%": 48, "10%": 160},
}

#: (model, task): l1, learning rate of step 1, learning rate of step 2 at 3 % and at 10 % of heads.
_PAPER_RATES: dict[tuple[str, str], tuple[float, float, float | None, float]] = {
    ("gemma-7b", "truthfulqa"): (5e-4, 5e-3, 2e-2, 8e-3),
    ("gemma-7b", "mquake"): (5e-4, 5e-3, 8e-3, 8e-3),
    ("gemma-7b", "clutrr"): (5e-3, 5e-4, 1e-2, 1e-2),
    ("llama2-7b", "truthfulqa"): (5e-4, 5e-3, 1e-2, 5e-3),
    ("llama2-7b", "mquake"): (1e-3, 5e-3, 1e-2, 5e-3),
    ("llama2-7b", "clutrr"): (5e-3, 5e-4, 1e-2, 5e-3),
    ("llama2-7b", "siqa"): (5e-3, 5e-4, None, 1e-2),
    ("llama2-7b", "arc"): (1e-3, 1e-3, None, 5e-3),
    ("llama2-7b", "boolq"): (5e-3, 5e-4, None, 8e-3),
    ("llama2-7b", "svamp"): (1e-3, 1e-3, None, 1e-2),
    ("llama2-13b", "truthfulqa"): (1e-3, 1e-3, 2e-2, 5e-3),
    ("llama2-13b", "mquake"): (1e-3, 1e-3, 8e-3, 5e-3),
    ("llama2-13b", "clutrr"): (1e-3, 1e-3, 1e-2, 8e-3),
    ("llama2-13b", "siqa"): (1e-3, 1e-3, None, 5e-3),
    ("llama2-13b", "arc"): (1e-3, 1e-3, None, 5e-3),
    ("llama2-13b", "boolq"): (1e-3, 1e-3, None, 5e-3),
    ("llama2-13b", "svamp"): (1e-3, 1e-3, None, 1e-2),
}
