"""A fit that is killed, at whatever moment, goes on to the very numbers of the fit that is not."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import save_file

import lofit_lens as ll
from lofit_lens import checkpoints, fitting
from lofit_lens.methods import RED, BitFit, JoLA, LoFiT, LoRA, LoReFT
from lofit_lens.tasks import Example


def comparison(a: int, b: int) -> Example:
    right, wrong = ("Yes", "No") if a > b else ("No", "Yes")
    return Example(f"Q: Is {a} more than {b}? A:", f" {right}.", rejected=(f" {wrong}, it is not.",))


EXAMPLES = [comparison(a, b) for a, b in [(9, 22), (3, 4), (888, 1), (2, 7), (6, 5), (1, 3333), (7, 4)]]
#: 7 examples in batches of 4: two steps an epoch.
LOFIT = LoFiT(k=3, scale_lr=2e-2, offset_lr=5e-2, scale_epochs=2, offset_epochs=3, batch_size=4)
FITS = {
    "lofit": (LOFIT, "cross_entropy", 10),
    "lofit with dpo": (LOFIT, "dpo", 10),
    "lofit as published": (dataclasses.replace(LOFIT, as_published=True), "dpo", 10),
    # Resumes above the first layer, with residuals run in several pieces.
    "offsets at upper heads": (dataclasses.replace(LOFIT, heads=((1, 2), (2, 0)), token_budget=64), "dpo", 6),
    "jola": (JoLA(learning_rate=2e-2, penalty=1e-2, epochs=3, batch_size=4), "cross_entropy", 6),
    "jola as published": (JoLA(learning_rate=2e-2, as_published=True, epochs=3, batch_size=4), "cross_entropy", 6),
    "lora": (LoRA(rank=2, dropout=0.3, learning_rate=2e-2, epochs=3, batch_size=4), "cross_entropy", 6),
    "loreft": (LoReFT(rank=2, learning_rate=2e-2, epochs=3, batch_size=4), "dpo", 6),
    "red": (RED(learning_rate=2e-2, epochs=3, batch_size=4, weight_decay=0.1), "cross_entropy", 6),
    "bitfit": (BitFit(learning_rate=2e-2, epochs=3, batch_size=4), "cross_entropy", 6),
}


class StoppedError(Exception):
    """Where a test stops a fit."""


class Steps:
    """Counts steps of training, and stops it in one of them."""

    def __init__(self) -> None:
        self.taken, self.stop_at = 0, None

    def take(self, *arguments):
        if self.taken == self.stop_at:
            raise StoppedError
        self.taken += 1
        return ACCUMULATE(*arguments)


ACCUMULATE = fitting.accumulate_gradient


@pytest.fixture
def steps(monkeypatch):
    counted = Steps()
    monkeypatch.setattr(fitting, "accumulate_gradient", counted.take)
    return counted


def interrupted(steps: Steps, stop_at: int, method, model, task, folder, **how) -> None:
    steps.taken, steps.stop_at = 0, stop_at
    with pytest.raises(StoppedError), ll.resumable(folder, **how):
        method.fit(model, task, seed=3)
    steps.taken, steps.stop_at = 0, None


def learned(intervention) -> dict[str, torch.Tensor]:
    values = {name: value if isinstance(value, Mapping) else {"": value} for name, value in vars(intervention).items()}
    return {f"{name} {key}": v for name, own in values.items() for key, v in own.items() if isinstance(v, torch.Tensor)}


def assert_same(fit, whole) -> None:
    assert fit.losses == whole.losses
    assert learned(fit.intervention).keys() == learned(whole.intervention).keys() != set()
    assert all(torch.equal(value, learned(whole.intervention)[name]) for name, value in learned(fit.intervention).items())
    assert getattr(fit.intervention, "heads", None) == getattr(whole.intervention, "heads", None)
    assert (fit.scores is None) == (whole.scores is None)
    assert fit.scores is None or torch.equal(fit.scores.values, whole.scores.values)


def names_in(folder) -> list[str]:
    return sorted(os.listdir(folder))


# Equality


@pytest.mark.parametrize("name", FITS)
def test_an_interrupted_fit_goes_on_to_the_same_numbers(llama, toy_task, steps, tmp_path, name):
    method, loss, n_steps = FITS[name]
    task = toy_task({"train": EXAMPLES}, loss=loss)
    whole = method.fit(llama, task, seed=3)
    assert steps.taken == n_steps
    for stop_at in (0, 1, 3, n_steps - 1):
        folder = tmp_path / str(stop_at)
        interrupted(steps, stop_at, method, llama, task, folder, every=0)
        with ll.resumable(folder):
            fit = method.fit(llama, task, seed=3)
        assert steps.taken == n_steps - stop_at
        assert_same(fit, whole)
        assert names_in(folder) == [f"stage-{i + 1}.safetensors" for i in range(len(whole.losses))]


def test_it_may_be_interrupted_again_and_again(llama, toy_task, steps, tmp_path):
    task = toy_task({"train": EXAMPLES}, loss="dpo")
    whole = LOFIT.fit(llama, task, seed=3)
    for _ in range(9):
        interrupted(steps, 1, LOFIT, llama, task, tmp_path, every=0)
    with ll.resumable(tmp_path):
        assert_same(LOFIT.fit(llama, task, seed=3), whole)
    assert steps.taken == 1


def test_a_stage_that_is_finished_is_not_trained_again(llama, toy_task, steps, passes, tmp_path):
    task = toy_task({"train": EXAMPLES})
    interrupted(steps, 6, LOFIT, llama, task, tmp_path)
    with ll.resumable(tmp_path):
        fit = LOFIT.fit(llama, task, seed=3)
    assert steps.taken == 6, "step 2 begins anew, as `every` was not over; step 1 has been written at its end"
    steps.taken, n_passes = 0, len(passes)
    with ll.resumable(tmp_path):
        assert_same(LOFIT.fit(llama, task, seed=3), fit)
    assert (steps.taken, len(passes)) == (0, n_passes)


def test_several_fits_are_kept_one_after_another(llama, toy_task, steps, tmp_path):
    task, method = toy_task({"train": EXAMPLES}), FITS["red"][0]

    def fits() -> list[ll.Fit]:
        return [method.fit(llama, task, seed=seed) for seed in range(3)]

    whole, steps.taken, steps.stop_at = fits(), 0, 8
    with pytest.raises(StoppedError), ll.resumable(tmp_path, every=0):
        fits()
    steps.taken, steps.stop_at = 0, None
    with ll.resumable(tmp_path, every=0):
        for fit, wanted in zip(fits(), whole, strict=True):
            assert_same(fit, wanted)
    assert steps.taken == 10
    assert names_in(tmp_path) == [f"stage-{i}.safetensors" for i in (1, 2, 3)]


def test_random_numbers_of_others_are_not_touched(as_users_run_it, llama, toy_task, steps, tmp_path):
    method, task = FITS["lora"][0], toy_task({"train": EXAMPLES})
    interrupted(steps, 3, method, llama, task, tmp_path, every=0)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    with ll.resumable(tmp_path):
        method.fit(llama, task, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


# Kills

KILLED = """
import json, os, signal, sys
import torch
import lofit_lens as ll
from lofit_lens import checkpoints, fitting

folder, where, left, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
accumulate, save = fitting.accumulate_gradient, checkpoints.save_file

def kill_here(place):
    global left
    if place == where:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def step(*arguments):
    loss = accumulate(*arguments)
    kill_here("step")
    return loss

def write(tensors, path, metadata):
    save(tensors, path, metadata)
    os.truncate(path, 1000)
    kill_here("write")
    save(tensors, path, metadata)

fitting.accumulate_gradient, checkpoints.save_file = step, write
task = ll.tasks.Truth(n_train=7, n_val=1, n_test=1)
method = ll.methods.LoFiT(k=3, scale_lr=2e-2, offset_lr=5e-2, scale_epochs=2, offset_epochs=3, batch_size=4)
with ll.resumable(folder, every=0):
    fit = method.fit(ll.tiny_model("llama"), task, seed=3)
fit.intervention.save(out)
print(json.dumps(fit.losses))
"""


def test_killed_with_signal_9_in_steps_and_amid_writing(llama, tmp_path):
    def run(*arguments) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", KILLED, str(tmp_path / "kept"), *arguments, str(tmp_path / "adapter")]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    # 4 steps of step 1 and 6 of step 2; each kill loses the step at hand.
    for moment in (("step", "3"), ("write", "4"), ("write", "3")):
        assert run(*moment).returncode == -signal.SIGKILL
    last = run("never", "1")
    assert last.returncode == 0, last.stderr
    whole = LOFIT.fit(llama, ll.tasks.Truth(n_train=7, n_val=1, n_test=1), seed=3)
    assert {stage: tuple(losses) for stage, losses in json.loads(last.stdout).items()} == whole.losses
    assert torch.equal(ll.load_adapter(tmp_path / "adapter", llama).offset, whole.intervention.offset)
    assert names_in(tmp_path / "kept") == ["stage-1.safetensors", "stage-2.safetensors"]


# When and where it writes


@pytest.mark.parametrize(("every", "written"), [(0, [1, 2, 3, 4, 5, 6]), (25, [3, 6]), (30, [3, 6]), (45, [5, 6]), (1e9, [6])])
def test_it_writes_no_more_often_than_asked_and_at_the_end(llama, toy_task, monkeypatch, tmp_path, every, written):
    steps = Steps()

    def ten_seconds_of_a_step(*arguments):
        monkeypatch.setattr(checkpoints.time, "monotonic", lambda: 10.0 * steps.taken)
        return steps.take(*arguments)

    def write(*arguments):
        seen.append(steps.taken)
        save_file(*arguments)

    seen: list[int] = []
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(fitting, "accumulate_gradient", ten_seconds_of_a_step)
    monkeypatch.setattr(checkpoints, "save_file", write)
    with ll.resumable(tmp_path, every=every):
        FITS["red"][0].fit(llama, toy_task({"train": EXAMPLES}), seed=3)
    assert seen == written


def test_outside_nothing_is_written(llama, toy_task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = toy_task({"train": EXAMPLES})
    with ll.resumable("kept"):
        pass
    FITS["red"][0].fit(llama, task)
    assert names_in(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written"), ll.resumable(tmp_path / "file"):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("every", [-1, float("nan")])
def test_a_time_that_is_none_is_refused(tmp_path, every):
    with pytest.raises(ValueError, match=f"got every={every}; wanted the seconds"), ll.resumable(tmp_path, every=every):
        pytest.fail("the block was entered")


# What is refused


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("red", {"learning_rate": 0.5}, r"got setting learning_rate 0\.02, wanted 0\.5"),
        ("red", {"epochs": 4}, "got batches '"),
        ("red", {"init_std": 0.1}, "got start '"),
        ("red", {"token_budget": 9}, "got setting token_budget 2048, wanted 9"),
        ("jola", {"penalty": 0.5}, r"got setting penalty 0\.01, wanted 0\.5"),
        ("jola", {"gate_lr": 0.5}, r"got setting gate_lr 0\.1, wanted 0\.5"),
        ("loreft", {"suffix": 1}, "got setting suffix 3, wanted 1"),
        ("lora", {"dropout": 0.1}, r"got setting dropout 0\.3, wanted 0\.1"),
        ("offsets at upper heads", {"heads": ((1, 1), (2, 0))}, r"got setting edited heads \[\[1, 2\], \[2, 0\]\]"),
        ("offsets at upper heads", {"dpo_beta": 0.1}, r"got setting dpo_beta 0\.5, wanted 0\.1"),
    ],
)
def test_another_methods_stage_is_refused(llama, toy_task, steps, tmp_path, name, changes, told):
    method, loss, _ = FITS[name]
    task = toy_task({"train": EXAMPLES}, loss=loss)
    interrupted(steps, 1, method, llama, task, tmp_path, every=0)
    other = dataclasses.replace(method, **changes)
    message = rf"stage-1\.safetensors is of another fit: .*{told}.*; delete the folder to begin anew, or give this fit one of"
    with pytest.raises(ValueError, match=message), ll.resumable(tmp_path):
        other.fit(llama, task, seed=3)
    assert steps.taken == 0


def test_the_stage_of_another_seed_task_or_model_is_refused(llama, toy_task, steps, tmp_path):
    method, task = FITS["bitfit"][0], toy_task({"train": EXAMPLES})
    interrupted(steps, 1, method, llama, task, tmp_path, every=0)
    others = [
        (llama, task, 4, r"got seeds \['3 \(cpu\)'\], wanted \['4 \(cpu\)'\]"),
        (llama, toy_task({"train": EXAMPLES[::-1]}), 3, "got sequences '"),
        (llama, toy_task({"train": EXAMPLES}, loss="dpo"), 3, "got objective 'AnswerObjective', wanted 'PreferenceObjective'"),
        (ll.tiny_model("llama", seed=1), task, 3, "got model '"),
        (ll.tiny_model("llama", dtype=torch.bfloat16), task, 3, r"got model '.*float32', wanted '.*bfloat16'"),
    ]
    for model, other_task, seed, told in others:
        with pytest.raises(ValueError, match=told), ll.resumable(tmp_path):
            method.fit(model, other_task, seed=seed)
    with pytest.raises(ValueError, match="got description 'toy: BitFit', wanted 'toy: RED'"), ll.resumable(tmp_path):
        FITS["red"][0].fit(llama, task, seed=3)
    assert steps.taken == 0


def _flip_last_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _flip_last_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: save_file({"losses": torch.zeros(3)}, path),
    ],
    ids=["one bit", "one byte short", "empty", "somebody else's"],
)
def test_a_damaged_file_is_refused(llama, toy_task, steps, tmp_path, damage):
    method, task = FITS["red"][0], toy_task({"train": EXAMPLES})
    interrupted(steps, 1, method, llama, task, tmp_path, every=0)
    damage(tmp_path / "stage-1.safetensors")
    with pytest.raises(ValueError, match=r"stage-1\.safetensors is damaged.*delete the folder"), ll.resumable(tmp_path):
        method.fit(llama, task, seed=3)
