"""What the figures of a transfer study are drawn of."""

from collections.abc import Iterator, Sequence

import lofit_lens as ll
from lofit_lens.analysis import head_overlap
from lofit_lens.results import Result
from lofit_lens.study import head_scores, head_transfer_of


def transfers_and_overlap(study: ll.Study, store: ll.RunStore, shares: Sequence[float]) -> Iterator[tuple[str, Result]]:
    """Fill the store, and yield the transfer at every share of heads, and what tasks' own heads share at the first."""
    ll.run_study(study, store)
    for share in shares:
        yield f"transfer-{share:g}", head_transfer_of(study, store, k=share)
    own: dict[str, list[ll.HeadScores]] = {task: [] for task in study.tasks}
    for selection, scores in head_scores(study, store).items():
        if selection.source == "own" and selection.k == shares[0]:
            own[selection.task].append(scores)
    yield "overlap", head_overlap(own, shares[0])
