"""What a user of `generate` relies on beyond the model contract: where answers end, and what is refused."""

import logging

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from lofit_lens import Head, HeadIntervention, answer_logprobs, check_model, evaluate, generate, lens
from lofit_lens.batches import TokenSequence, encode_prompt
from lofit_lens.generation import GreedyAnswer, generated_text, greedy_answers
from lofit_lens.tasks import Example
from lofit_lens.tiny import tiny_pair


def test_text_ends_at_eos_and_at_the_first_stop_string(llama):
    ids = llama.tokenizer("an answer. And\nmore", add_special_tokens=False)["input_ids"]
    assert generated_text(llama, ids, ()) == "an answer. And\nmore"
    assert generated_text(llama, ids, ("\n", ".")) == "an answer"
    assert generated_text(llama, [*ids[:2], llama.tokenizer.eos_token_id, *ids], ()) == "an"


def test_a_stop_string_cuts_what_would_have_been_generated(speaker):
    (whole,) = generate(speaker, ["tell me"], max_new_tokens=12)
    mark = whole[3]
    assert generate(speaker, ["tell me"], max_new_tokens=12, stop=[mark]) == [whole[: whole.index(mark)]]


def test_a_stop_string_ends_an_answer_where_it_cuts_its_text(llama):
    """Special tokens are not in the text: they are no stop string, and may stand in the middle of one."""
    check_model(llama)  # before it says what it is told to
    tokenizer = llama.tokenizer
    a, b = (tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "ab")
    pad = tokenizer.pad_token_id
    after = {a: pad, pad: b, b: a}
    read = []

    def say(logits, hook):
        said = torch.full_like(logits, -1.0)
        said[..., [after.get(token, a) for token in read[-1][-logits.shape[1] :]]] = 1.0
        return said

    script = [("embed.hook_in", lambda tokens, hook: read.append(tokens[0].tolist())), ("unembed.hook_out", say)]
    with llama.hooks(fwd_hooks=script):
        assert generate(llama, ["?"], max_new_tokens=6, stop=[tokenizer.pad_token]) == ["abab"]
        (answer,) = greedy_answers(llama, [TokenSequence(encode_prompt(llama, "?"), (pad,))], 6, ["ab"], token_budget=256)
    assert answer.ids == (a, pad, b)


def test_a_guess_is_taken_as_far_as_it_holds(speaker):
    prompt = encode_prompt(speaker, "tell me")
    said = greedy(speaker, [TokenSequence(prompt, (0,))], 6)[0].ids
    assert len(said) == 6
    other = 3 + (said[3] + 1) % 200
    guesses = [said, said[:3], (*said[:3], other, *said[4:]), (other,), (*said[:5], other)]
    answers = greedy(speaker, [TokenSequence(prompt, guess) for guess in guesses], 6)
    assert [answer.ids for answer in answers] == [said] * len(guesses)
    # The last token comes from the pass over the guess, whatever was guessed there.
    assert [answer.guessed for answer in answers] == [True, False, False, False, True]
    # An answer that ends within its guess has ended, whatever was guessed behind.
    assert [a.ids for a in greedy(speaker, [TokenSequence(prompt, guess) for guess in guesses], 2)] == [said[:2]] * len(guesses)


def greedy(model, sequences, max_new_tokens) -> list[GreedyAnswer]:
    return sorted(greedy_answers(model, sequences, max_new_tokens, (), token_budget=256))


@pytest.fixture
def forgetful() -> TransformerBridge:
    """Its learned positions begin anew in every pass, so that keys and values of an earlier one are of no use."""
    hf_model, tokenizer = tiny_pair("llama")
    positions = torch.randn(256, 48, generator=torch.Generator().manual_seed(1))
    hf_model.get_input_embeddings().register_forward_hook(lambda module, args, value: value + positions[: value.shape[1]])
    return TransformerBridge.boot_transformers("tiny-forgetful", hf_model=hf_model, tokenizer=tokenizer, device="cpu")


@pytest.mark.parametrize("positions", ["all", "generated"])
@pytest.mark.parametrize("token_budget", [60, 2048])
def test_a_model_whose_cache_is_of_no_use_generates_by_plain_passes(forgetful, caplog, positions, token_budget):
    caplog.set_level(logging.INFO)
    prompts = ["Once upon a time, in a land far away", "A", "The story of the three little pigs and the", "A tale", "Who?"]
    edit = HeadIntervention((Head(1, 2),), offset=2 * torch.ones(1, 16), positions=positions)
    texts = generate(forgetful, prompts, edit, max_new_tokens=8, token_budget=token_budget)
    info = check_model(forgetful)
    assert (info.can_share_prefix, info.can_pack) == (False, False)
    assert caplog.text.count("does without keeping keys and values, for answers to one prompt and in generation") == 1
    for prompt, text in zip(prompts, texts, strict=True):
        ids = list(encode_prompt(forgetful, prompt))
        first, new = len(ids) - 1 if positions == "generated" else 0, []

        def add(z, hook, first=first):
            z = z.clone()
            z[:, first:, 2] += 2
            return z

        with torch.no_grad(), forgetful.hooks(fwd_hooks=[(lens.z_hook(1), add)]):
            while len(new) < 8 and new[-1:] != [forgetful.tokenizer.eos_token_id]:
                new.append(forgetful(torch.tensor([ids + new]), use_cache=False)[0, -1].argmax().item())
        assert text == generated_text(forgetful, new, ())
    assert texts != generate(forgetful, prompts, max_new_tokens=8)


def test_every_token_that_the_model_names_ends_an_answer(speaker, monkeypatch, toy_task):
    settings, eos = speaker.original_model.generation_config, speaker.tokenizer.eos_token_id
    (whole,) = generate(speaker, ["tell me"], max_new_tokens=12)
    end = speaker.tokenizer(whole, add_special_tokens=False)["input_ids"][3]
    shorter = whole[: whole.index(whole[3])]
    for named, ends, text in [(None, {eos}, whole), (end, {eos, end}, shorter), ([eos, end], {eos, end}, shorter)]:
        monkeypatch.setattr(settings, "eos_token_id", named)
        assert lens.end_tokens(speaker) == ends
        assert generate(speaker, ["tell me"], max_new_tokens=12) == [text]
        result = evaluate(speaker, toy_task({"test": [Example("tell me", text)]}, max_new_tokens=12, stop=()))
        assert (result.value, result.generated) == (1, 0)
    monkeypatch.setattr(speaker.original_model, "generation_config", None)
    assert lens.end_tokens(speaker) == {eos}


@pytest.mark.parametrize("n", [0, -3])
def test_fewer_than_one_token_is_refused(llama, n):
    with pytest.raises(ValueError, match=f"got max_new_tokens={n}; wanted at least one token"):
        generate(llama, ["a"], max_new_tokens=n)


def test_an_edit_that_has_diverged_generates_nothing(llama):
    edit = HeadIntervention((Head(0, 1),), offset=torch.full((1, 16), torch.nan))
    with pytest.raises(ArithmeticError, match=r"logits are not finite; the edit has diverged: fit it again"):
        generate(llama, ["a"], edit)


def test_no_prompts_give_no_answers(llama):
    assert generate(llama, []) == []


def test_prompts_that_leave_no_room_are_refused(llama):
    with pytest.raises(ValueError, match=r"prompt 1 has 252 tokens and 16 may follow; the model's context has 256"):
        generate(llama, ["short", "x" * 251])


@pytest.mark.usefixtures("as_users_run_it")
def test_one_string_is_not_a_list_of_its_letters(llama):
    with pytest.raises(ValueError, match=r"prompts is one string, 'hello'; wanted a list"):
        generate(llama, "hello")
    with pytest.raises(ValueError, match=r"answers is one string"):
        answer_logprobs(llama, ["a", "b"], "xy")
