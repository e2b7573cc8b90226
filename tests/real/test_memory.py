"""How much memory multiple choice takes beside the model, measured in processes of their own."""

import subprocess
import sys

import pytest

SCORE = """
import resource, sys
import torch
import lofit_lens as ll

torch.set_num_threads(2)
model = ll.load_model("smollm2-135m-instruct")
ll.check_model(model)
preset = "Answer each question shortly and truthfully, and say so if the answer is not known to anybody. " * 10
questions = [
    {"q": f"What is the {i}th word of the song that was sung in the year {1900 + i}?", "a": "Nobody knows that word.",
     "wrong": [f"It is the word {word}, as everybody who was there remembers." for word in ("sea", "hill", "moon", "oak")]}
    for i in range(int(sys.argv[1]))
]
task = ll.tasks.Records({"test": questions}, prompt=preset + "Q: {q}\\nA:", answer=" {a}", rejected=" {wrong}", metric="mc1")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ll.evaluate(model, task)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def grown_by(n_questions: int) -> int:
    """Megabytes that the peak rose while so many questions were scored."""
    done = subprocess.run([sys.executable, "-c", SCORE, str(n_questions)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in kilobytes on Linux only")
def test_multiple_choice_takes_little_memory_however_many_questions():
    few, many = grown_by(10), grown_by(60)
    assert max(few, many) < 300
    # What the allocator keeps differs from run to run.
    assert many < few + 60
