"""What a study costs beyond its unavoidable parts, and what a second worker saves: SmolLM2, one thread a process.

python -m pytest -s tests/benchmarks/bench_study.py
"""

import time
from dataclasses import replace

import pytest
import torch

from lofit_lens.cluster import run_on_ray
from lofit_lens.store import RunStore
from lofit_lens.study import Study, run_study, study_status, time_table
from lofit_lens.tasks import Counterfactual, Kinship, Truth

SIZES = {"n_train": 16, "n_val": 2, "n_test": 16}
#: 3 tasks, 5 sources of heads, 2 seeds: 30 fits and evaluations, 3 evaluations of the base model, 6 + 6 + 2 head scores.
STUDY = Study(
    name="bench",
    models=["smollm2-135m-instruct"],
    tasks={"kinship": Kinship(**SIZES), "counterfactual": Counterfactual(**SIZES), "truth": Truth(**SIZES)},
    methods={"lofit": {"scale_epochs": 2, "offset_epochs": 2}},
    heads=["own", "others", "iti", "random"],
    k=[0.1],
    seeds=[0, 1],
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_what_a_study_costs_beyond_its_unavoidable_parts(tmp_path):
    started = time.monotonic()
    run_study(STUDY, RunStore(tmp_path))
    wall = time.monotonic() - started
    times = time_table(STUDY, RunStore(tmp_path)).set_index("part")
    assert set(study_status(STUDY, RunStore(tmp_path))["state"]) == {"done"}
    needed = times.loc[["scores", "fit", "evaluate"], "seconds"].sum()
    print(f"\n{times.to_string(float_format='{:.2f}'.format)}")
    print(f"wall {wall:.0f} s, {wall / needed:.2f} of the unavoidable {needed:.0f} s (wanted 1.30)")
    assert wall <= 1.3 * needed


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_what_a_second_worker_saves(tmp_path):
    ray = pytest.importorskip("ray")
    few = replace(STUDY, heads=("own", "random"))
    seconds, values = {}, {}
    for workers in (1, 2):
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        store = RunStore(tmp_path / str(workers))
        run_on_ray(replace(few, methods={}), RunStore(tmp_path / "warm"))  # Ray is up
        started = time.monotonic()
        run_on_ray(few, store)
        seconds[workers] = time.monotonic() - started
        values[workers] = store.table()["value"].tolist()
        ray.shutdown()
    assert values[1] == values[2]
    print(f"\n{seconds}: {seconds[1] / seconds[2]:.2f} times as fast with two workers (wanted 1.6)")
    assert seconds[1] >= 1.6 * seconds[2]
