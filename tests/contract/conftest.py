"""Models for the contract: every family as a Bridge, and HookedTransformers where TransformerLens still has them.

These tests run in two environments, on the newest TransformerLens and on 3.9.0.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

import lofit_lens as ll
from lofit_lens.embedded import embedded_path
from lofit_lens.tiny import FAMILIES, tiny_pair, tiny_tokenizer

try:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
except ImportError:
    HookedTransformer = None

HOOKED = ("hooked-tiny", "hooked-llama")


def hooked_llama(hf_model, tokenizer):
    """A HookedTransformer with raw weights, converted from a Hugging Face Llama."""
    config = hf_model.config
    cfg = HookedTransformerConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_ctx=256,
        d_head=config.head_dim,
        n_heads=config.num_attention_heads,
        n_key_value_heads=config.num_key_value_heads,
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        act_fn=config.hidden_act,
        eps=config.rms_norm_eps,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=config.head_dim,
        rotary_base=int(config.rope_parameters["rope_theta"]),
        gated_mlp=True,
        final_rms=True,
        original_architecture="LlamaForCausalLM",
        device="cpu",
        dtype=torch.float32,
    )
    model = HookedTransformer(cfg, tokenizer=tokenizer, default_padding_side="right")
    model.load_state_dict(convert_llama_weights(hf_model, cfg), strict=False)
    return model.eval()


def hooked_tiny(tokenizer):
    """A HookedTransformer built from a configuration: learned positions, LayerNorm, biases everywhere."""
    cfg = HookedTransformerConfig(
        n_layers=3, d_model=48, n_ctx=256, d_head=16, n_heads=4, d_mlp=64, d_vocab=259, act_fn="gelu", seed=0, device="cpu"
    )
    model = HookedTransformer(cfg, tokenizer=tokenizer, default_padding_side="right")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(0.3 * noise + 1 if name.endswith(".w") else 0.2 * noise)
    return model.eval()


def needs_hooked_transformer():
    if HookedTransformer is None:
        pytest.skip("this TransformerLens has no HookedTransformer; `make compat` runs the test on 3.9.0")


@pytest.fixture(scope="session", params=[*FAMILIES, *HOOKED] if HookedTransformer else FAMILIES)
def model(request):
    """Each family as a TransformerBridge, then (on TransformerLens 3) two HookedTransformers."""
    if request.param not in HOOKED:
        return ll.tiny_model(request.param)
    return hooked_tiny(tiny_tokenizer()) if request.param == "hooked-tiny" else hooked_llama(*tiny_pair("llama"))


@pytest.fixture(scope="session")
def hooked_pair():
    """A Bridge and a HookedTransformer of the same weights."""
    needs_hooked_transformer()
    return ll.tiny_model("llama"), hooked_llama(*tiny_pair("llama"))


@pytest.fixture
def new_hooked_transformer():
    """Makes a HookedTransformer that a test may spoil."""
    needs_hooked_transformer()
    return lambda: hooked_tiny(tiny_tokenizer())


@pytest.fixture(scope="session")
def hooked_smollm2():
    """SmolLM2's weights in a HookedTransformer, with the Bridge of the same weights."""
    needs_hooked_transformer()
    bridge = ll.load_model("smollm2-135m-instruct")
    hf_model = AutoModelForCausalLM.from_pretrained(embedded_path("smollm2-135m-instruct"), dtype=torch.float32)
    hooked = hooked_llama(hf_model, bridge.tokenizer)
    hooked.cfg.default_prepend_bos = False
    return bridge, hooked
