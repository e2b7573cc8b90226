"""How much memory multiple choice and ITI take beside the model, measured in processes of their own."""

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

#: Heads like Llama-2-7B's, 32 layers of 32 with d_head 128, in a narrow model. More iterations would take time, not memory.
ITI = """
import resource, sys
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM
import lofit_lens as ll
from lofit_lens.tiny import tiny_config, tiny_tokenizer

config = tiny_config("llama", n_layers=32)
config.num_attention_heads, config.num_key_value_heads, config.head_dim = 32, 32, 128
config.architectures = ["LlamaForCausalLM"]
hf_model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
model = TransformerBridge.boot_transformers("wide", hf_model=hf_model.eval(), tokenizer=tiny_tokenizer(), device="cpu")
assert len(ll.check_model(model).all_heads) == 1024
questions = [{"q": f"{i:03}?"} for i in range(int(sys.argv[1]) // 6)]
wrong = ["no", "so", "ah", "oh", "hm"]
task = ll.tasks.Records({"train": [{"wrong": wrong, **q} for q in questions]}, prompt="{q}", answer=" yes", rejected=" {wrong}")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ll.methods.ITI(k=48, max_iter=1).fit(model, task)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def grown_by(n: int, script: str = SCORE) -> int:
    """Megabytes that the peak rose while so many questions were scored, or so many answers looked at."""
    done = subprocess.run([sys.executable, "-c", script, str(n)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in kilobytes on Linux only")
def test_multiple_choice_takes_little_memory_however_many_questions():
    few, many = grown_by(10), grown_by(60)
    assert max(few, many) < 300
    # What the allocator keeps differs from run to run.
    assert many < few + 60


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in kilobytes on Linux only")
def test_iti_takes_little_more_memory_than_the_activations():
    """TruthfulQA's fold of 2,474 answers has 1,237 MB of activations, and all of it takes less than 2 GB."""
    activations = 2474 * 1024 * 128 * 4 // 2**20
    assert grown_by(2474, ITI) < activations + 500 < 2048
