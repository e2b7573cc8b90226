"""Find the few attention heads that learn a task (LoFiT), and look at them, on TransformerLens."""

from lofit_lens import activations, analysis, causal, comparison, methods, plots, probes, selection, study, tasks
from lofit_lens.checkpoints import resumable
from lofit_lens.evaluation import check_task, evaluate, evaluate_folds
from lofit_lens.generation import generate
from lofit_lens.heads import Head, HeadScores
from lofit_lens.interventions import HeadIntervention, Intervention, attached, load_adapter
from lofit_lens.judging import YesNoJudge, evaluate_open_ended
from lofit_lens.methods import Fit
from lofit_lens.models import check_model, load_model, tiny_model
from lofit_lens.outcomes import Evaluation
from lofit_lens.rendering import save_figure, save_figures, save_images
from lofit_lens.report import write_report
from lofit_lens.results import load_result, save_result
from lofit_lens.scoring import answer_logprobs
from lofit_lens.selection import random_scores
from lofit_lens.side_effects import SideEffects, side_effects
from lofit_lens.store import RunStore
from lofit_lens.study import Study, run_study

__all__ = [
    "Evaluation",
    "Fit",
    "Head",
    "HeadIntervention",
    "HeadScores",
    "Intervention",
    "RunStore",
    "SideEffects",
    "Study",
    "YesNoJudge",
    "activations",
    "analysis",
    "answer_logprobs",
    "attached",
    "causal",
    "check_model",
    "check_task",
    "comparison",
    "evaluate",
    "evaluate_folds",
    "evaluate_open_ended",
    "generate",
    "load_adapter",
    "load_model",
    "load_result",
    "methods",
    "plots",
    "probes",
    "random_scores",
    "resumable",
    "run_study",
    "save_figure",
    "save_figures",
    "save_images",
    "save_result",
    "selection",
    "side_effects",
    "study",
    "tasks",
    "tiny_model",
    "write_report",
]
