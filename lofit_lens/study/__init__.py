"""Studies: a grid of tasks, heads, methods and seeds, whose cells go into a store that survives anything."""

from lofit_lens.study.grid import HEAD_SOURCES, Cell, Study
from lofit_lens.study.head_transfers import head_transfer_of
from lofit_lens.study.items import Catalogue, Item, Selection
from lofit_lens.study.leftovers import Leftover, leftovers
from lofit_lens.study.plan import Plan, plan
from lofit_lens.study.running import retry_study, run_study
from lofit_lens.study.table import head_scores, runs, study_status, study_table, time_table
from lofit_lens.study.work import Worker, state_of

__all__ = [
    "HEAD_SOURCES",
    "Catalogue",
    "Cell",
    "Item",
    "Leftover",
    "Plan",
    "Selection",
    "Study",
    "Worker",
    "head_scores",
    "head_transfer_of",
    "leftovers",
    "plan",
    "retry_study",
    "run_study",
    "runs",
    "state_of",
    "study_status",
    "study_table",
    "time_table",
]
