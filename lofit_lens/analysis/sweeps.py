"""How a metric changes with something that edits were fitted at: how many heads, how many training examples.

With s(x, r, i) the score of example i under the edit of run r (a seed, say) that was fitted at x, the curve is

    mean over examples i of  mean over runs r of  s(x, r, i)

and its interval covers which examples were drawn: an example's outcomes under several runs are not independent, so they count
as one, their mean. What another run would have given it does not cover: with two or three runs, look at their points.
(LoFiT, arXiv 2406.01563, Figures 4 and 5: the number of training examples, and the share of heads.)

Fitting is the caller's:

    shares = {100 * k: [LoFiT(k=k).fit(model, task, seed=seed).intervention for seed in (0, 1)] for k in (0.01, 0.03, 0.1)}
    found = sweep(model, task, shares, quantity="heads (% of all)")
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from lofit_lens.batches import TOKEN_BUDGET
from lofit_lens.evaluation import check_evaluation, evaluate
from lofit_lens.interventions import Intervention
from lofit_lens.lens import LensModel
from lofit_lens.outcomes import Evaluation
from lofit_lens.progress import progress
from lofit_lens.tasks.base import Metric, Split, Task


@dataclass(frozen=True)
class Sweep:
    """Evaluations of edits that were fitted at several values of one quantity.

    Args:
        quantity: what x is, with its unit; the label of an axis.
        evaluations: for each x, ascending, one for each run, all of the same examples.
    """

    quantity: str
    evaluations: Mapping[float, tuple[Evaluation, ...]]

    def mean(self, x: float) -> Evaluation:
        """Every example's scores at x, averaged over runs."""
        runs = self.evaluations[x]
        scores = {name: _means([run.scores[name] for run in runs]) for name in runs[0].scores}
        return Evaluation(runs[0].task, runs[0].split, runs[0].metric, scores, task_settings=runs[0].task_settings)

    def to_frame(self) -> pd.DataFrame:
        """One row per x and run (its place among the runs of that x): the metric in [0, 1] with its 95 % interval."""
        cells = [(x, run, found) for x, runs in self.evaluations.items() for run, found in enumerate(runs)]
        return pd.DataFrame([{"quantity": self.quantity, "x": x, "run": run, **found.to_row()} for x, run, found in cells])

    def summary(self) -> pd.DataFrame:
        """One row per x: the mean over runs of the metric in [0, 1], with the 95 % interval over examples."""
        return pd.DataFrame(
            [
                {"quantity": self.quantity, "x": x, "n_runs": len(runs), **self.mean(x).to_row()}
                for x, runs in self.evaluations.items()
            ]
        )


def _means(of_runs: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(sum(scores) / len(scores) for scores in zip(*of_runs, strict=True))


def sweep(
    model: LensModel,
    task: Task,
    interventions: Mapping[float, Sequence[Intervention]],
    *,
    quantity: str,
    split: Split = "test",
    metric: Metric | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Sweep:
    """Evaluate edits that were fitted at several values of one quantity.

    Args:
        model: a TransformerBridge or HookedTransformer with raw weights.
        task: what all of them are judged on.
        interventions: for each x, the edit of each run.
        quantity: what x is, with its unit.
        split: of the task.
        metric: as `evaluate` takes it; None is the task's own.
        token_budget: padded tokens that go through the model at once.

    Raises:
        ValueError: no x, one that is not a finite number or has no edits, or what `evaluate` refuses; before anything is run.
        ArithmeticError: scores of one of the edits are not finite.
    """
    if not interventions or not all(map(math.isfinite, interventions)) or not all(interventions.values()):
        counts = {x: len(runs) for x, runs in interventions.items()}
        raise ValueError(f"got {counts} (x: number of edits); wanted one or more finite x, and at least one edit at each")
    cells = [(x, edit) for x in sorted(interventions) for edit in interventions[x]]
    for _, edit in cells:
        check_evaluation(model, task, edit, split=split, metric=metric)
    found: dict[float, tuple[Evaluation, ...]] = {}
    for x, edit in progress(cells, f"{task.name}: {quantity}"):
        evaluation = evaluate(model, task, edit, split=split, metric=metric, token_budget=token_budget)
        found[x] = (*found.get(x, ()), evaluation)
    return Sweep(quantity, found)
