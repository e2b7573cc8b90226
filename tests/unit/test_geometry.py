"""The geometry of offsets: against loops, against ITI's own edits, and chance against simulation."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import special, stats

import lofit_lens as ll
from lofit_lens import lens
from lofit_lens.activations import collect_z
from lofit_lens.analysis import (
    HeadActivations,
    OffsetGeometry,
    collect_head_activations,
    cosine_null,
    offset_geometry,
    offset_plane,
)
from lofit_lens.heads import Head
from lofit_lens.interventions import HeadIntervention
from lofit_lens.methods import ITI
from lofit_lens.probes import LabelledAnswers, fit_probes, held_out, labelled_answers
from lofit_lens.tasks import Example

HEADS = (Head(2, 3), Head(0, 1), Head(2, 0))
EXAMPLES = [
    Example(f"Q: Is {a} more than {b}? A:", f" {right}.", rejected=(f" {wrong}.", " Who knows?"))
    for a, b in [(9, 2), (3, 4), (8, 1), (2, 7), (6, 5), (1, 3)]
    for right, wrong in [("Yes" if a > b else "No", "No" if a > b else "Yes")]
]
#: Right answers at (3, 4) and (1, 2), wrong ones at (-1, 0) and (1, 0), in the first two of 16 dimensions. Mass-mean is (2, 3);
#: projections on it are 18, 8, -2, 2, of mean 6.5 and variance (11.5^2 + 1.5^2 + 8.5^2 + 4.5^2) / 4 = 56.75, all over |(2, 3)|.
POINTS = torch.nn.functional.pad(torch.tensor([[3.0, 4.0], [-1.0, 0.0], [1.0, 2.0], [1.0, 0.0]]), (0, 14))
LABELLED = LabelledAnswers(("a", "a", "d", "d"), (" b", " c", " e", " f"), (True, False, True, False), (0, 0, 1, 1), ("x",) * 4)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_hand(z: torch.Tensor = POINTS, heads: tuple[Head, ...] = HEADS) -> HeadActivations:
    """Every head says the same."""
    is_held_out = torch.tensor([False, False, True, True])
    return HeadActivations(heads, z.expand(len(heads), *z.shape), LABELLED, is_held_out)


def in_plane(*vectors: tuple[float, float]) -> torch.Tensor:
    return torch.nn.functional.pad(torch.tensor(vectors), (0, 14))


@pytest.fixture
def task(toy_task):
    return toy_task({"train": EXAMPLES})


def cosine_of(geometry: OffsetGeometry, direction: str, space: str) -> np.ndarray:
    frame = geometry.to_frame()
    return frame.loc[(frame["direction"] == direction) & (frame["space"] == space), "cosine"].to_numpy()


# Chance


def test_in_three_dimensions_every_cosine_is_as_likely():
    """Archimedes: the area of a slice of the sphere depends on its thickness alone."""
    null = cosine_null(3)
    np.testing.assert_allclose(null.pdf([-0.99, 0.0, 0.5]), 0.5)
    np.testing.assert_allclose(null.ppf([0.025, 0.5, 0.975]), [-0.95, 0, 0.95], atol=1e-12)


@pytest.mark.parametrize("n", [2, 4, 16, 64, 256])
def test_the_density_and_both_tails_are_those_of_the_docstring(n):
    c = np.array([-0.6, -0.1, 0.0, 0.3, 0.9])
    np.testing.assert_allclose(cosine_null(n).pdf(c), (1 - c**2) ** ((n - 3) / 2) / special.beta(1 / 2, (n - 1) / 2))
    np.testing.assert_allclose(2 * cosine_null(n).sf(np.abs(c)), stats.beta(1 / 2, (n - 1) / 2).sf(c**2), rtol=1e-6)


def test_random_directions_are_as_chance_says_and_not_as_in_fewer_dimensions():
    cosines = torch.nn.functional.normalize(normal(20_000, 16), dim=1)[:, 0].numpy()
    assert stats.kstest(cosines, cosine_null(16).cdf).pvalue > 0.01
    assert stats.kstest(cosines, cosine_null(12).cdf).pvalue < 1e-6


def test_one_dimension_has_no_chance():
    with pytest.raises(ValueError, match="got n = 1 dimensions, wanted at least 2"):
        cosine_null(1)


def test_p_is_exact_for_what_is_uniform_in_the_space_and_not_for_what_is_so_elsewhere(llama, task):
    """Offsets of 300 adapters at one head, drawn for each space in turn, against one that lies where z varies most."""
    head = (Head(1, 2),)
    activations = collect_head_activations(llama, task, heads=head)
    covariance = torch.cov(activations.z[0].double().T, correction=0)
    fixed = HeadIntervention(head, offset=torch.linalg.eigh(covariance).eigenvectors[:, -1:].T.float())
    W_O = lens.head_output_weights(llama, 1)[2].double()
    drawn = normal(300, 16, seed=2).double()
    # v W_O is uniform in W_O's image for v = g L^(-1), where W_O W_O^T = L L^T.
    ridged = covariance + 0.001 * covariance.trace() / 16 * torch.eye(16)
    uniform = {
        "z": drawn,
        "residual": drawn @ torch.linalg.inv(torch.linalg.cholesky(W_O @ W_O.T)),
        "whitened": drawn @ torch.linalg.cholesky(ridged).T,
    }
    found = {}
    for made_for, vectors in uniform.items():
        others = {str(i): HeadIntervention(head, offset=vector[None].float()) for i, vector in enumerate(vectors)}
        frame = offset_geometry(llama, fixed, activations, others=others, n_components=0).to_frame()
        frame = frame[frame["direction"].isin(others)]
        for space, p in frame.groupby("space")["p"]:
            found[made_for, space] = stats.kstest(p, "uniform").pvalue
    # Exact or not, one seed in a hundred fails the first of these in each space (300 seeds: 1 % in z and in the residual
    # stream); seed 2 is none of them. What is not exact fails by far.
    assert all(found[space, space] > 0.01 for space in uniform)
    elsewhere = [("z", "residual"), ("z", "whitened"), ("whitened", "z"), ("whitened", "residual")]
    assert all(found[pair] < 1e-3 for pair in elsewhere)


# Activations


def test_what_is_collected_is_z_of_the_heads_in_their_order(model, task):
    activations = collect_head_activations(model, task, heads=HEADS, seed=3)
    labelled = labelled_answers(EXAMPLES, seed=3)
    z = collect_z(model, labelled.prompts, labelled.answers)
    assert activations.heads == HEADS
    assert torch.equal(activations.is_right, torch.tensor([True, False, False] * 6))
    assert torch.equal(activations.is_held_out, held_out(labelled.questions, 0.2, seed=3))
    for head, found in zip(HEADS, activations.z, strict=True):
        assert torch.equal(found, z[head.layer, :, head.index])


def test_all_heads_are_the_default_and_some_can_be_taken_out(llama, task):
    activations = collect_head_activations(llama, task)
    assert activations.z.shape == (12, 18, 16)
    some = activations.restrict([(2, 3), (0, 1)])
    assert some.heads == ((2, 3), (0, 1))
    assert torch.equal(some.z, activations.z[[11, 1]])


def test_nothing_behind_the_last_head_is_run(llama, task):
    ran = []
    hooks = [(lens.z_hook(layer), lambda z, hook, layer=layer: ran.append(layer)) for layer in range(3)]
    ll.check_model(llama)
    with llama.hooks(fwd_hooks=hooks):
        collect_head_activations(llama, task, heads=[(1, 0), (0, 3)])
    assert set(ran) == {0, 1}


def test_with_a_folder_activations_are_kept_there_and_taken_from_there(llama, task, tmp_path):
    first = collect_head_activations(llama, task, heads=HEADS, folder=tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(bytes(kept.stat().st_size))
    assert first.z.any()
    assert not collect_head_activations(llama, task, heads=HEADS, folder=tmp_path).z.any()


def test_heads_and_tasks_that_cannot_be_used_are_refused_before_the_model_runs(llama, task, toy_task, passes):
    with pytest.raises(ValueError, match="L3H0 is out of range"):
        collect_head_activations(llama, task, heads=[(3, 0)])
    with pytest.raises(ValueError, match="got 1 question to probe on"):
        collect_head_activations(llama, toy_task({"train": EXAMPLES[:1]}))
    with pytest.raises(ValueError, match="the train split of task 'toy' is empty"):
        collect_head_activations(llama, toy_task({}))
    assert not passes


# Cosines


def test_everything_equals_a_loop_over_heads_and_directions(model, task):
    made = HeadIntervention(HEADS, offset=normal(3, 16))
    other = HeadIntervention((Head(0, 1), Head(1, 1)), scale=normal(2, 16), offset=normal(2, 16, seed=1))
    activations = collect_head_activations(model, task, heads=HEADS, seed=3)
    frame = offset_geometry(model, made, activations, others={"other": other}, n_components=2).to_frame()
    found = {(row.label, row.direction, row.space): (row.cosine, row.p) for row in frame.itertuples()}
    labelled = labelled_answers(EXAMPLES, seed=3)
    z_of_all = collect_z(model, labelled.prompts, labelled.answers)
    is_right = np.array(labelled.is_right)
    probes = fit_probes(z_of_all, torch.tensor(is_right), held_out(labelled.questions, 0.2, seed=3))
    expected = {}
    for head, v in zip(HEADS, made.offset.double().numpy(), strict=True):
        z = z_of_all[head.layer, :, head.index].double().numpy()
        mass_mean = sum(z[is_right]) / 6 - sum(z[~is_right]) / 12
        centred = z - z.mean(0)
        covariance = sum(np.outer(one, one) for one in centred) / 18
        values, vectors = np.linalg.eigh(covariance)
        ridge = 0.001 * np.trace(covariance) / 16
        T = sum(np.outer(u, u) / np.sqrt(value + ridge) for value, u in zip(values, vectors.T, strict=True))
        np.testing.assert_allclose(T @ (covariance + ridge * np.eye(16)) @ T, np.eye(16), atol=1e-9)
        directions = {"probe": probes.weights[head].double().numpy(), "mass-mean": mass_mean}
        for i in (1, 2):
            component = vectors[:, -i]
            directions[f"PC{i}"] = component * np.sign(component @ mass_mean)
        if head == (0, 1):
            directions["other"] = other.offset[0].double().numpy()
        W_O = model.blocks[head.layer].attn.W_O[head.index].detach().double().numpy()
        for name, d in directions.items():
            pairs = {"z": (v, d), "residual": (v @ W_O, d @ W_O), "whitened": (T @ v, T @ d)}
            if name == "probe":
                pairs["whitened"] = (T @ v, np.linalg.inv(T) @ d)
            for space, (one, two) in pairs.items():
                cosine = sum(one * two) / np.sqrt(sum(one**2) * sum(two**2))
                expected[head.label, name, space] = (cosine, stats.beta(1 / 2, 15 / 2).sf(cosine**2))
    assert found.keys() == expected.keys()
    for key, numbers in expected.items():
        # In double precision; the smallest eigenvalues of 18 answers in 16 dimensions cost some digits.
        assert found[key] == pytest.approx(numbers, abs=1e-6), key


def test_an_edit_of_itis_lies_along_its_direction_with_its_alpha(model, task):
    """Whatever the seed: the same answers, probes and standard deviations."""
    activations = collect_head_activations(model, task, heads=HEADS, seed=5)
    for direction, spaces in {"mass-mean": ("z", "residual", "whitened"), "probe": ("z", "residual")}.items():
        for alpha in (7.0, -7.0):
            edit = ITI(heads=HEADS, alpha=alpha, direction=direction).fit(model, task, seed=5).intervention
            geometry = offset_geometry(model, edit, activations)
            for space in spaces:
                # Offsets are float32; whitening enlarges their rounding by up to sqrt(1000), the ridge's bound.
                np.testing.assert_allclose(cosine_of(geometry, direction, space), np.sign(alpha), atol=1e-6)
            np.testing.assert_allclose(geometry.effective_alphas, 7.0, rtol=1e-5)
            if direction == "mass-mean":
                np.testing.assert_allclose(geometry.mass_mean_alphas, alpha, rtol=1e-5)


def test_lengths_and_alphas_by_hand(llama):
    """Mass-mean, -2 times it, and (3, -2) across it, on which projections are 1, -3, -1, 3, of variance 5, over |(2, 3)|."""
    made = HeadIntervention(HEADS, offset=in_plane((2.0, 3.0), (-4.0, -6.0), (3.0, -2.0)))
    geometry = offset_geometry(llama, made, by_hand(), n_components=1)
    np.testing.assert_allclose(cosine_of(geometry, "mass-mean", "z"), [1, -1, 0], atol=1e-12)
    strengths = geometry.strengths().set_index("label")
    assert list(strengths.index) == ["L2H3", "L0H1", "L2H0"]
    assert list(zip(strengths["layer"], strengths["head"], strict=True)) == [(2, 3), (0, 1), (2, 0)]
    np.testing.assert_allclose(strengths["length"], [13**0.5, 52**0.5, 13**0.5])
    np.testing.assert_allclose(strengths["effective_alpha"], [13 / 56.75**0.5, 26 / 56.75**0.5, 13 / 5**0.5])
    np.testing.assert_allclose(strengths["mass_mean_alpha"], [13 / 56.75**0.5, -26 / 56.75**0.5, 0], atol=1e-12)


def test_the_probe_reads_so_whitened_it_agrees_with_what_a_linear_discriminant_reads(llama, task, monkeypatch):
    """(S + r I)^(-1) mass-mean, as a readout, is the direction T mass-mean; as a displacement it is another."""
    activations = collect_head_activations(llama, task, heads=HEADS)

    def discriminants(self):
        found = []
        for z, mass_mean in zip(self.z.double(), self.mass_means(), strict=True):
            covariance = torch.cov(z.T, correction=0)
            found.append(torch.linalg.solve(covariance + 0.001 * covariance.trace() / 16 * torch.eye(16), mass_mean))
        return torch.stack(found)

    as_displacement = HeadIntervention(HEADS, offset=discriminants(activations).float())
    monkeypatch.setattr(HeadActivations, "probe_weights", discriminants)
    made = HeadIntervention(HEADS, offset=normal(3, 16))
    geometry = offset_geometry(llama, made, activations, others={"added": as_displacement})
    read, added, mass_mean = (cosine_of(geometry, name, "whitened") for name in ("probe", "added", "mass-mean"))
    np.testing.assert_allclose(read, mass_mean, atol=1e-6)
    assert not np.allclose(added, mass_mean, atol=0.05)


def test_principal_components_point_as_mass_mean_does(llama, task):
    activations = collect_head_activations(llama, task, heads=HEADS)
    edit = HeadIntervention(HEADS, offset=activations.mass_means().float())
    geometry = offset_geometry(llama, edit, activations, n_components=16)
    squares = np.array([cosine_of(geometry, f"PC{i}", "z") for i in range(1, 17)])
    # The sign of a component that is orthogonal to the mass mean is rounding.
    assert (squares >= -1e-6).all()
    # Sixteen orthogonal directions in sixteen dimensions.
    np.testing.assert_allclose((squares**2).sum(0), 1)


def test_a_cosine_that_there_is_not_has_no_row(llama):
    """Offsets of length 0, a head that always says the same, and heads that another adapter does not edit."""
    made = HeadIntervention(HEADS, offset=in_plane((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)))
    other = HeadIntervention((Head(2, 0), Head(1, 1)), offset=in_plane((1.0, 0.0), (1.0, 0.0)))
    activations = by_hand()
    activations = dataclasses.replace(activations, z=torch.stack([POINTS, torch.zeros_like(POINTS), POINTS]))
    geometry = offset_geometry(llama, made, activations, others={"other": other}, n_components=1)
    frame = geometry.to_frame()
    assert list(frame.columns) == ["label", "layer", "head", "direction", "space", "cosine", "p"]
    assert not frame.isna().any().any()
    rows = set(frame[["label", "direction", "space"]].itertuples(index=False, name=None))
    of_still_head = {("L0H1", "PC1", "z"), ("L0H1", "PC1", "residual")}
    assert {row for row in rows if row[0] != "L2H0"} == of_still_head
    assert {row[1] for row in rows if row[0] == "L2H0"} == {"probe", "mass-mean", "PC1", "other"}
    assert geometry.effective_alphas.isnan().tolist() == [True, True, False]  # no offset has no direction to vary along
    assert geometry.mass_mean_alphas.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("still", [0.0, 0.1])
def test_a_head_that_always_says_the_same_is_kept_with_the_others(llama, tmp_path, still):
    activations = by_hand()
    activations = dataclasses.replace(activations, z=torch.stack([POINTS, torch.full_like(POINTS, still), POINTS]))
    geometry = offset_geometry(llama, HeadIntervention(HEADS, offset=normal(3, 16)), activations, n_components=1)
    again = ll.load_result(ll.save_result(geometry, tmp_path / "geometry.json"))
    for alphas in (again.effective_alphas, again.mass_mean_alphas):
        assert alphas.isnan().tolist() == [False, True, False]
    assert geometry.strengths()["effective_alpha"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intervention": HeadIntervention(HEADS, scale=normal(3, 16))}, "the intervention has no offsets, only scales"),
        ({"intervention": HeadIntervention((), offset=normal(0, 16))}, "the intervention has no offsets"),
        ({"intervention": HeadIntervention((Head(3, 0),), offset=normal(1, 16))}, "L3H0 is out of range"),
        ({"intervention": HeadIntervention(HEADS, offset=normal(3, 8))}, "d_head = 8, the model's heads 16"),
        ({"activations": by_hand(heads=HEADS[:2])}, r"no activations of \['L2H0'\], only of \['L2H3', 'L0H1'\].*collect"),
        (
            {"activations": by_hand(POINTS[:, :8])},
            "the activations have d_head = 8, the offsets 16; collect them of this model",
        ),
        ({"others": {"mine": HeadIntervention(HEADS, scale=normal(3, 16))}}, "the adapter 'mine' has no offsets"),
        ({"others": {"mine": HeadIntervention((Head(1, 0),), offset=normal(1, 16))}}, "'mine' edits none of .*'L2H3'.*fit it"),
        ({"others": {"PC2": HeadIntervention(HEADS, offset=normal(3, 16))}}, r"called \['PC2'\].*other names"),
        ({"n_components": 4}, "n_components = 4; 4 answers in 16 dimensions have 0 to 3"),
        ({"n_components": -1}, "n_components = -1"),
    ],
)
def test_what_has_no_geometry_is_refused(llama, monkeypatch, change, message):
    monkeypatch.setattr(HeadActivations, "probe_weights", lambda self: pytest.fail("something was computed"))
    given = {"intervention": HeadIntervention(HEADS, offset=normal(3, 16)), "activations": by_hand(), "n_components": 3}
    with pytest.raises(ValueError, match=message):
        offset_geometry(llama, **{**given, **change})


# The plane


def test_a_plane_by_hand():
    """Mass-mean (2, 3) and an offset (3, 4): e1 = (2, 3) / sqrt 13; across it is (3, -2) / sqrt 13, on which the offset has 1.

    Points from their mean (1, 1.5) are (2, 2.5), (-2, -1.5), (0, 0.5), (0, -1.5): on (2, 3) that is 11.5, -8.5, 1.5, -4.5, and
    on (3, -2) it is 1, -3, -1, 3.
    """
    made = HeadIntervention(HEADS, offset=in_plane((3.0, 4.0), (1.0, 0.0), (1.0, 0.0)))
    plane = offset_plane(made, by_hand(), (2, 3), alpha=2.0)
    assert (plane.head, plane.direction, plane.alpha) == (Head(2, 3), "mass-mean", 2.0)
    root = 13**0.5
    np.testing.assert_allclose(plane.points, np.array([[11.5, 1], [-8.5, -3], [1.5, -1], [-4.5, 3]]) / root, atol=1e-12)
    np.testing.assert_allclose(plane.offset, [18 / root, 1 / root])
    np.testing.assert_allclose(plane.iti, [2 * 56.75**0.5 / root, 0])
    assert plane.variance_share == pytest.approx(1.0)
    frame = plane.to_frame()
    assert list(frame.columns) == ["prompt", "answer", "is_right", "along_iti", "across_iti"]
    assert frame.loc[2, ["prompt", "answer", "is_right"]].tolist() == ["d", " e", True]
    assert frame["along_iti"].tolist() == plane.points[:, 0].tolist()


@pytest.mark.parametrize("direction", ["mass-mean", "probe"])
def test_a_plane_equals_a_loop_over_answers(llama, task, direction):
    made = HeadIntervention(HEADS, offset=normal(3, 16))
    activations = collect_head_activations(llama, task, heads=HEADS, seed=3)
    plane = offset_plane(made, activations, HEADS[1], direction=direction)
    iti = ITI(heads=HEADS, direction=direction).fit(llama, task, seed=3).intervention.offset[1].double().numpy()
    v, z = made.offset[1].double().numpy(), activations.z[1].double().numpy()
    e1 = iti / np.linalg.norm(iti)
    e2 = v - (v @ e1) * e1
    e2 = e2 / np.linalg.norm(e2)
    mean = z.mean(0)
    in_plane = total = 0.0
    for one, point in zip(z, plane.points.numpy(), strict=True):
        # ITI's offset is float32.
        np.testing.assert_allclose(point, [(one - mean) @ e1, (one - mean) @ e2], atol=1e-5)
        in_plane += point @ point
        total += (one - mean) @ (one - mean)
    assert plane.variance_share == pytest.approx(in_plane / total)
    assert 0 < plane.variance_share < 1
    np.testing.assert_allclose(plane.iti, [np.linalg.norm(iti), 0], rtol=1e-5)
    np.testing.assert_allclose(plane.offset, [v @ e1, v @ e2], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intervention": HeadIntervention(HEADS, scale=normal(3, 16))}, "the intervention has no offsets, only scales"),
        ({"head": (1, 1)}, r"cannot restrict to \['L1H1'\]"),
        ({"activations": by_hand(heads=HEADS[1:])}, r"no activations of \['L2H3'\]"),
        ({"direction": "random"}, "got direction 'random'; wanted mass-mean or probe"),
        ({"intervention": HeadIntervention(HEADS, offset=in_plane((0.2, 0.3), (1, 0), (1, 0)))}, "L2H3 lies along .* no plane"),
        ({"intervention": HeadIntervention(HEADS, offset=in_plane((0.0, 0.0), (1, 0), (1, 0)))}, "or one is zero"),
        ({"activations": by_hand(torch.zeros(4, 16))}, "or one is zero"),
    ],
)
def test_what_spans_no_plane_is_refused(as_users_run_it, change, message):
    given = {"intervention": HeadIntervention(HEADS, offset=normal(3, 16)), "activations": by_hand(), "head": (2, 3)}
    with pytest.raises(ValueError, match=message):
        offset_plane(**{**given, **change})
