"""Any task of lm-evaluation-harness (Gao et al.), on the model under an edit: MMLU, for one.

The harness runs the wrapped Hugging Face model itself (`HFLM`) while our hooks are attached to it, so its prompts, few-shot
examples and metrics are its own; the text of a prompt edit goes in front of the contexts that it makes. It needs the extra
`lofit-lens[lm-eval]`; most of its tasks download their data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from lofit_lens import lens
from lofit_lens.batches import refuse_one_string
from lofit_lens.interventions import Intervention, PromptIntervention, attached, prompted
from lofit_lens.lens import LensModel
from lofit_lens.models import check_model

#: For standard errors of metrics without a formula (F1, BLEU); the error's own error is then about 1 / sqrt(2 * 1000) = 2 %.
BOOTSTRAP_RESAMPLES = 1000


def evaluate_with_harness(
    model: LensModel,
    tasks: Sequence[str | Mapping[str, Any]],
    intervention: Intervention | None = None,
    *,
    n_shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    task_folder: str | Path | None = None,
) -> pd.DataFrame:
    """Score a model, under an edit, on tasks of lm-evaluation-harness.

    Args:
        model: a TransformerBridge with raw weights (the harness runs the model that it wraps).
        tasks: names of the harness's tasks or groups ("mmlu"), or task configurations as dicts.
        intervention: edit to apply, or None for the base model; a prompt edit's text comes before the harness's examples.
        n_shots: few-shot examples; None is each task's own number.
        limit: the first examples of each task only.
        batch_size: examples that go through the model at once.
        task_folder: a folder with task configurations of your own (YAML).

    Returns:
        A row for each task and metric: value, standard error (NaN where the harness gives none), and n.

    Raises:
        ImportError: the extra is not installed.
        ValueError: the model is not a Bridge, the edit depends on positions, the harness does not know a task, or a task scores
            whole texts and the edit is one of prompts.
    """
    check_model(model)
    if intervention is not None and not intervention.position_free:
        raise ValueError("the harness does not say where prompts end; wanted an edit that is the same at every position")
    refuse_one_string(tasks=tasks)  # pyright: ignore[reportArgumentType]
    if not lens.is_bridge(model):
        raise ValueError("the harness runs the Hugging Face model inside a TransformerBridge; this is a HookedTransformer")
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise ImportError(f"{error}; the harness comes with an extra: pip install 'lofit-lens[lm-eval]'") from error
    harness: Any = lm_eval  # its decorators hide the signatures of what they decorate
    manager = harness.tasks.TaskManager(include_path=None if task_folder is None else str(task_folder))
    unknown = [name for name in tasks if isinstance(name, str) and name not in manager.all_tasks]
    if unknown:
        raise ValueError(
            f"the harness does not know {unknown}; `lm-eval ls tasks` lists what it knows, or give task_folder=..."
        )
    wrapped = harness.models.huggingface.HFLM(
        pretrained=model.original_model,
        tokenizer=model.tokenizer,
        batch_size=batch_size,
        # The harness would else ask the tokenizer, whatever the model was trained with.
        add_bos_token=bool(model.cfg.default_prepend_bos),
    )
    _put_in_front(wrapped, intervention)
    with attached(model, intervention):
        settings = {"limit": limit, "task_manager": manager, "bootstrap_iters": BOOTSTRAP_RESAMPLES}
        found = harness.simple_evaluate(wrapped, tasks=list(tasks), num_fewshot=n_shots, **settings)
    return _to_frame(found)


def _put_in_front(wrapped: Any, intervention: Intervention | None) -> None:
    """Let every context that the harness asks this wrapper about have a prompt edit's text in front."""
    if not isinstance(intervention, PromptIntervention):
        return

    def behind_text(answer: Callable[..., Any]) -> Callable[..., Any]:
        def run(requests: Sequence[Any], **settings: Any) -> Any:
            contexts = prompted(intervention, [request.args[0] for request in requests])
            pairs = zip(requests, contexts, strict=True)
            return answer([replace(request, arguments=(context, *request.args[1:])) for request, context in pairs], **settings)

        return run

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError(
            "a task that scores whole texts (loglikelihood_rolling) has no prompts for this edit's text to go in front of; "
            "leave the task out, or measure what the edit costs on texts with side_effects"
        )

    wrapped.loglikelihood = behind_text(wrapped.loglikelihood)
    wrapped.generate_until = behind_text(wrapped.generate_until)
    wrapped.loglikelihood_rolling = refuse


def _to_frame(found: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for task, results in found["results"].items():
        for key, value in results.items():
            metric, _, filtered_by = key.partition(",")
            if filtered_by and not metric.endswith("_stderr"):
                error = results.get(f"{metric}_stderr,{filtered_by}")
                n = found["n-samples"].get(task, {}).get("effective")
                rows.append({"task": task, "metric": metric, "value": value, "stderr": error, "n": n})
    frame = pd.DataFrame(rows, columns=["task", "metric", "value", "stderr", "n"])
    return frame.assign(stderr=pd.to_numeric(frame["stderr"], errors="coerce"))
