"""Head scores by intervention, against loops over heads with hooks of their own."""

import dataclasses

import pytest
import torch
from transformer_lens import patching

import lofit_lens as ll
from lofit_lens.causal import leave_one_out_scores, patching_scores, swapped_name_pairs
from lofit_lens.interventions import ResidualIntervention
from lofit_lens.models import base_of
from lofit_lens.patching import patched_head_metrics
from lofit_lens.tasks import IOI
from lofit_lens.tasks.base import Example

EXAMPLES = [
    Example("Q: who? A:", " Bo.", rejected=(" Al.",)),
    Example("Q: when was it, and where? A:", " now", rejected=(" never", " here")),
    Example("Q: why? A:", " so", rejected=(" no",)),
    Example("Q: how? A:", " thus", rejected=(" not", " by no means")),
]
HEADS = (ll.Head(2, 1), ll.Head(0, 3), ll.Head(1, 0))


@pytest.fixture
def edit() -> ll.HeadIntervention:
    generator = torch.Generator().manual_seed(0)
    scale, offset = torch.randn(2, 3, 16, generator=generator)
    return ll.HeadIntervention(HEADS, scale=0.5 * scale, offset=0.5 * offset, made_by={"method": "by hand"})


def without(edit: ll.HeadIntervention, head: ll.Head) -> ll.HeadIntervention:
    """The same heads, that one's vectors zero."""
    kept = torch.tensor([[float(other != head)] for other in edit.heads])
    return dataclasses.replace(edit, scale=edit.scale * kept, offset=edit.offset * kept)


# Leave one out


def loss(model, edit: ll.HeadIntervention) -> float:
    prompts, answers = [e.prompt for e in EXAMPLES], [e.answer for e in EXAMPLES]
    return -sum(ll.answer_logprobs(model, prompts, answers, edit, eos=True).tolist()) / len(EXAMPLES)


def test_a_head_scores_the_loss_that_rises_without_its_vectors(model, toy_task, edit):
    scores = leave_one_out_scores(model, toy_task({"val": EXAMPLES}), edit)
    for head in HEADS:
        # Float32 on both sides.
        assert scores[head] == pytest.approx(loss(model, without(edit, head)) - loss(model, edit), abs=1e-4)
    assert set(scores.rank()) == set(HEADS)
    assert scores.values.isnan().sum() == 12 - 3
    assert scores.quantity == "log-likelihood of the answer, in nats, lost without the head"
    assert scores.is_signed
    assert scores.base_model == base_of(model)
    assert scores.n_key_value_heads == (model.cfg.n_key_value_heads or model.cfg.n_heads)
    assert scores.made_by == {
        "method": "leave one out (loss)",
        "task": "toy",
        "task_settings": {},
        "split": "val",
        "of": {"method": "by hand"},
    }


def test_a_head_of_a_preference_task_scores_the_margin_that_narrows_without_its_vectors(llama, toy_task, edit):
    scores = leave_one_out_scores(llama, toy_task({"val": EXAMPLES}, loss="dpo", metric="mc1"), edit)

    def margin(edit: ll.HeadIntervention) -> float:
        found = 0.0
        for example in EXAMPLES:  # the first of several wrong answers is the one that DPO reads
            pair = [example.answer, example.rejected[0]]
            right, wrong = ll.answer_logprobs(llama, [example.prompt] * 2, pair, edit, eos=True).tolist()
            found += (right - wrong) / len(EXAMPLES)
        return found

    expected = {head: margin(edit) - margin(without(edit, head)) for head in HEADS}
    assert {head: scores[head] for head in HEADS} == pytest.approx(expected, abs=1e-4)
    of_answers = {head: loss(llama, without(edit, head)) - loss(llama, edit) for head in HEADS}
    assert {head: scores[head] for head in HEADS} != pytest.approx(of_answers, abs=1e-2)
    assert scores.quantity == "margin of the answer over the wrong one, in nats, lost without the head"


def test_a_preference_task_without_a_wrong_answer_is_refused(llama, toy_task, edit):
    with pytest.raises(ValueError, match="has no rejected answer"):
        leave_one_out_scores(llama, toy_task({"val": [Example("Q:", " a")]}, loss="dpo"), edit)


@pytest.mark.parametrize("metric", [None, "mc1"])
def test_a_head_scores_the_metric_that_falls_without_its_vectors(llama, toy_task, edit, metric):
    task = toy_task({"test": EXAMPLES}, metric="exact_match" if metric else "mc1")
    scores = leave_one_out_scores(llama, task, 3 * edit, split="test", measure="metric", metric=metric)
    whole = ll.evaluate(llama, task, 3 * edit, metric="mc1").value
    expected = [whole - ll.evaluate(llama, task, without(3 * edit, head), metric="mc1").value for head in HEADS]
    assert any(expected)
    assert [scores[head] for head in HEADS] == expected
    assert scores.quantity == "mc1 lost without the head"


def test_without_its_only_head_an_edit_is_the_base_model(llama, toy_task, edit):
    scores = leave_one_out_scores(llama, toy_task({"val": EXAMPLES}), edit.restrict(HEADS[:1]))
    assert scores[HEADS[0]] == pytest.approx(loss(llama, 0 * edit) - loss(llama, edit.restrict(HEADS[:1])), abs=1e-4)
    assert scores.top(1) == HEADS[:1]


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": "rank"}, "got measure 'rank' and metric None; wanted one of"),
        ({"metric": "mc1"}, "got measure 'loss' and metric 'mc1'"),
        ({"measure": "metric", "metric": "f1"}, "metric 'f1'; wanted one of exact_match, mc1"),
        ({"split": "dev"}, "split 'dev'; wanted one of"),
        ({"split": "test"}, "the test split of task 'toy' is empty"),
    ],
)
def test_what_cannot_be_measured_is_refused(llama, toy_task, edit, settings, message):
    with pytest.raises(ValueError, match=message):
        leave_one_out_scores(llama, toy_task({"val": EXAMPLES}), edit, **settings)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (ll.HeadIntervention((), offset=torch.zeros(0, 16)), "got an edit of no head; wanted one of at least one"),
        (ResidualIntervention((0,), torch.ones(1, 48)), "got a ResidualIntervention, which edits no heads; wanted a HeadInt"),
    ],
)
def test_an_edit_that_no_head_can_be_left_out_of_is_refused(llama, toy_task, passes, edit, message):
    with pytest.raises(ValueError, match=message):
        leave_one_out_scores(llama, toy_task({"val": EXAMPLES}), edit)
    assert passes == []


# Activation patching

#: Every byte is a token: two lengths, one of them twice.
CLEAN = ["The cat sat", "A dog, a log", "The hat ran"]
CORRUPTED = ["The rat sat", "A fog, a log", "The bat ran"]
ANSWERS, WRONG = [" mat", "xyz", " was"], ["on", "!", "q"]


def difference(model, prompt: str, i: int) -> float:
    tokenizer = model.tokenizer
    right, wrong = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (ANSWERS[i], WRONG[i]))
    last = model(tokens_of(model, prompt))[0, -1]
    return (last[right] - last[wrong]).item()


def tokens_of(model, prompt: str) -> torch.Tensor:
    bos = [model.tokenizer.bos_token_id] if model.cfg.default_prepend_bos else []
    return torch.tensor([bos + model.tokenizer(prompt, add_special_tokens=False)["input_ids"]])


def oriented(model) -> tuple[list[str], list[str]]:
    """Of a random model nobody knows which prompts make the answers likelier."""
    clean, corrupted = (sum(difference(model, prompts[i], i) for i in range(3)) for prompts in (CLEAN, CORRUPTED))
    return (CLEAN, CORRUPTED) if clean > corrupted else (CORRUPTED, CLEAN)


def patched_by_loop(model, clean: list[str], corrupted: list[str]) -> list[float]:
    scores = []
    ends = [sum(difference(model, prompts[i], i) for i in range(3)) for prompts in (clean, corrupted)]
    for layer in range(3):
        point = f"blocks.{layer}.attn.hook_z"
        for head in range(4):
            total = 0.0
            for i in range(3):
                seen = []
                with model.hooks(fwd_hooks=[(point, lambda z, hook, seen=seen: seen.append(z.clone()))]):
                    model(tokens_of(model, clean[i]))

                def patch(z, hook, seen=seen, head=head):
                    z = z.clone()
                    z[:, :, head] = seen[0][:, :, head]
                    return z

                with model.hooks(fwd_hooks=[(point, patch)]):
                    total += difference(model, corrupted[i], i)
            scores.append((total - ends[1]) / (ends[0] - ends[1]))
    return scores


@torch.no_grad()
@pytest.mark.parametrize("token_budget", [1, 2048])
def test_patching_equals_a_loop_over_heads_and_pairs(model, token_budget):
    clean, corrupted = oriented(model)
    scores = patching_scores(model, clean, corrupted, ANSWERS, WRONG, token_budget=token_budget)
    # Float32 logits, divided by a difference that may be small.
    assert scores.values.flatten().tolist() == pytest.approx(patched_by_loop(model, clean, corrupted), rel=1e-4, abs=1e-4)
    assert (scores.made_by["method"], scores.made_by["pairs"]) == ("activation patching", 3)
    assert scores.made_by["clean"] == pytest.approx(sum(difference(model, clean[i], i) for i in range(3)) / 3, abs=1e-4)


@torch.no_grad()
def test_patching_works_under_an_edit_and_leaves_the_model_alone(llama, edit):
    with ll.attached(llama, edit):
        clean, corrupted = oriented(llama)
        expected = patched_by_loop(llama, clean, corrupted)
        scores = patching_scores(llama, clean, corrupted, ANSWERS, WRONG)
    assert scores.values.flatten().tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert not any(point.fwd_hooks for point in llama.hook_dict.values())


@torch.no_grad()
def test_the_heads_that_are_named_are_patched_and_the_tool_gets_its_bar_back(llama, capfd):
    clean, corrupted, bar = tokens_of(llama, CLEAN[0]), tokens_of(llama, CORRUPTED[0]), patching.tqdm

    def run(heads, metric=lambda logits: logits[0, -1, 5]):
        return patched_head_metrics(llama, clean, corrupted, metric, heads)

    all_of_them = run([(layer, head) for layer in range(3) for head in range(4)])
    assert run([(2, 3), (0, 1)]).tolist() == [all_of_them[11], all_of_them[1]]
    with pytest.raises(ZeroDivisionError):
        run([(0, 0)], metric=lambda logits: 1 / 0)
    assert patching.tqdm is bar
    assert capfd.readouterr() == ("", "")


def test_a_planted_head_is_found(llama):
    """Only where the head's weights write anything can its output bring something back."""
    planted = ll.Head(1, 2)
    kept = torch.full((12, 16), -1.0)
    heads = tuple(ll.Head(layer, index) for layer in range(3) for index in range(4))
    kept[heads.index(planted)] = 0.0
    with ll.attached(llama, ll.HeadIntervention(heads, scale=kept)):
        clean, corrupted = oriented(llama)
        scores = patching_scores(llama, clean, corrupted, ANSWERS, WRONG)
    assert scores.top(1) == (planted,)
    assert all(scores[head] == pytest.approx(0, abs=1e-5) for head in scores.rank()[1:])


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({1: ["The cart sat", *CORRUPTED[1:]]}, "pair 0 has 12 clean and 13 corrupted tokens; wanted as many of each"),
        ({3: ["on", "x", "q"]}, "the answers 'xyz' and 'x' of pair 1 start with the same token"),
        ({2: ANSWERS[:2]}, r"got \[3, 3, 2, 3\] clean prompts, corrupted prompts, answers and wrong answers"),
        ({place: [] for place in range(4)}, "at least one"),
        ({0: CLEAN[0]}, "clean_prompts is one string"),
        ({3: ["on", "", "q"]}, "pair 1: the answer '' tokenises to nothing"),
        ({1: CLEAN}, "the logit difference is .* on the clean prompts and .* on the corrupted ones; wanted a larger one"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(gpt2, changes, message):
    arguments = [changes.get(place, given) for place, given in enumerate((CLEAN, CORRUPTED, ANSWERS, WRONG))]
    with pytest.raises(ValueError, match=message):
        patching_scores(gpt2, *arguments)


def test_in_a_corrupted_sentence_the_other_person_acts():
    examples = IOI(n_test=12).test
    pairs = swapped_name_pairs(examples)
    for clean, corrupted, answer, wrong in zip(*pairs, strict=True):
        assert [(one, other) for one, other in zip(clean.split(), corrupted.split(), strict=True) if one != other] == [
            (wrong.strip(), answer.strip())
        ]
        assert (corrupted.count(answer.strip()), corrupted.count(wrong.strip())) == (2, 1)
    assert pairs.clean_prompts == tuple(example.prompt for example in examples)
    with pytest.raises(ValueError, match=r"example 1 has no subject and indirect_object in its info; wanted examples of IOI"):
        swapped_name_pairs([examples[0], EXAMPLES[0]])
