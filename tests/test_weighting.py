"""Task weighting: each method against a solver of its own definition, and the runs of a stack."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, nnls

from models import random_stream
from weighting import METHODS, Weighting, Weightings, parse

GRADIENT_METHODS = [name for name, method in METHODS.items() if method.needs_gram]
FORMS = [name for name in GRADIENT_METHODS if name != "gradnorm"]
LOSS_METHODS = ["uw", "gls", "imtl-l", "dwa", "rlw", "famo"]
KINDS = ["random", "badly scaled", "conflicting", "nearly parallel"]
EQUAL = {"upgrad": 0.5, "cagrad": 0.5}  # of the others 1


# ---- gradients and steps -------------------------------------------------------------------


def pairs(kind: str, n: int = 60) -> np.ndarray:
    """(n, 2, 7) gradients of the two tasks in seven parameters."""
    rng = np.random.default_rng(KINDS.index(kind))
    found = rng.normal(size=(n, 2, 7))
    if kind == "badly scaled":
        found *= 10.0 ** rng.uniform(-6, 6, size=(n, 2, 1))
    elif kind == "conflicting":
        found[:, 1] = -found[:, 0] * rng.uniform(0.1, 10, size=(n, 1)) + found[:, 1]
    elif kind == "nearly parallel":
        found[:, 1] = found[:, 0] * rng.uniform(0.5, 2, size=(n, 1)) + found[:, 1] * 0.03
    return found


def gram_of(gradients: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(gradients @ gradients.swapaxes(1, 2))


def weigh(runs: Weightings, losses, gram=None) -> tuple[torch.Tensor, torch.Tensor]:
    """A step's weights of shared and of own parameters, (R, 2) each."""
    shared, own = runs.by_losses(losses)
    return runs.by_gradients(shared, losses, gram), own


def make(text: str, runs: int, **data) -> Weighting:
    name, settings = parse(text)
    return METHODS[name](range(runs), "cpu", **settings, **data)


def weights(text: str, gradients: np.ndarray, steps: int = 1) -> np.ndarray:
    """A gradient method's weights at the last step in float64, (n, 2): each pair a run."""
    method, losses = make(text, len(gradients)), torch.ones(len(gradients), 2).double()
    method.epoch_end(0, losses)
    for _ in range(steps):
        found = method.weights(losses, gram_of(gradients))
    return found.numpy()


def shares(text: str, gradients: np.ndarray, steps: int = 1) -> np.ndarray:
    """ρ = w_F‖g_F‖ / (w_R‖g_R‖), (n,)."""
    parts = weights(text, gradients, steps) * np.linalg.norm(gradients, axis=2)
    return parts[:, 0] / parts[:, 1]


# ---- solvers: two gradients in, the step out -----------------------------------------------


def between(first: np.ndarray, second: np.ndarray, slope) -> np.ndarray:
    """The point of least value on the segment between two gradients; slope(point, direction)."""
    short, long = sorted((first, second), key=np.linalg.norm)  # so that a tiny weight is exact

    def along(u):
        return slope((1 - u) * short + u * long, long - short)

    u = 0.0 if along(0.0) >= 0 else 1.0 if along(1.0) <= 0 else None
    if u is None:
        u = brentq(along, 0, 1, xtol=1e-30, rtol=1e-15, maxiter=1000)
    return (1 - u) * short + u * long


def shortest(f, r):
    return between(f, r, lambda point, direction: point @ direction)


def conflict_averse(f, r, kappa=0.5):
    mean = (f + r) / 2
    radius = kappa * np.linalg.norm(mean)
    point = between(f, r, lambda x, d: mean @ d + radius * (x @ d) / np.linalg.norm(x))
    return mean + radius * point / np.linalg.norm(point)


def surgery(f, r):
    step = f + r
    for one, other in ((f, r), (r, f)):
        step = step - min(one @ other, 0) / (other @ other) * other
    return step


def cone_projections(f, r):
    """Moreau: the projection of g on the dual cone is g plus that of −g on the cone."""
    cone = np.stack([f / np.linalg.norm(f), r / np.linalg.norm(r)], 1)
    return sum(g + cone @ nnls(cone, -g)[0] for g in (f, r)) / 2


def aligned(f, r):
    """Every kept singular value of the gradients brought down to the least one."""
    stacked = np.stack([f, r])
    u, sigma, _ = np.linalg.svd(stacked, full_matrices=False)
    kept = sigma**2 > 2 * np.finfo(np.float32).eps * sigma[0] ** 2
    u, sigma = u[:, kept], sigma[kept]
    return (sigma[-1] * u / sigma @ u.sum(0)) @ stacked


SOLVERS = {
    "mgda": shortest,
    "cagrad": conflict_averse,
    "cagrad:kappa=0.9": lambda f, r: conflict_averse(f, r, 0.9),
    "pcgrad": surgery,
    "upgrad": cone_projections,
    "aligned-mtl": aligned,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", SOLVERS)
def test_closed_form_is_the_solvers_step(text, kind):
    gradients = pairs(kind)
    for pair, weight in zip(gradients, weights(text, gradients), strict=True):
        expected = SOLVERS[text](*pair)
        parts = weight[:, None] * pair
        assert np.linalg.norm(parts.sum(0) - expected) < 1e-9 * np.linalg.norm(parts, axis=1).max()


@pytest.mark.parametrize("kind", KINDS)
def test_nash_solves_its_equation_and_imtl_projects_equally(kind):
    gradients = pairs(kind)
    gram, norms = gram_of(gradients).numpy(), np.linalg.norm(gradients, axis=2)
    nash, imtl = weights("nash-mtl", gradients), weights("imtl-g", gradients)
    assert (nash > 0).all()  # where the solution is the only one
    np.testing.assert_allclose(nash * np.einsum("nij,nj->ni", gram, nash), 1, rtol=1e-9)
    projections = np.einsum("nij,nj->ni", gram, imtl) / norms
    scale = (imtl * norms).max(1)
    assert (abs(projections[:, 0] - projections[:, 1]) < 1e-9 * scale).all()
    np.testing.assert_allclose(imtl.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(nash[:, 0] / nash[:, 1], imtl[:, 0] / imtl[:, 1], rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gradvac_turns_each_gradient_to_the_running_cosine(kind):
    method, phi = make("gradvac:beta=0.3", 1), 0.0
    for pair in pairs(kind):
        f, r = pair
        m, n = np.linalg.norm(f), np.linalg.norm(r)
        cos, turned = f @ r / (m * n), [f, r]
        if cos < phi:
            for k, (one, other) in enumerate(((f, r), (r, f))):
                across = (
                    one - one @ other / (other @ other) * other
                )  # off the other, at right angles
                along = np.linalg.norm(across) * phi / np.sqrt(1 - phi**2)
                turned[k] = across + along * other / np.linalg.norm(other)
        weight = method.weights(None, gram_of(pair[None])).numpy()[0]
        scale = np.linalg.norm(weight[:, None] * pair, axis=1).max()
        assert np.linalg.norm(weight @ pair - sum(turned)) < 1e-9 * scale
        phi = 0.7 * phi + 0.3 * cos


def test_gradvac_turns_to_a_cosine_below_one():
    method = make("gradvac", 1)
    for gradients in [np.ones((1, 2, 2))] * 200 + [np.eye(2)[None]]:
        found = method.weights(None, gram_of(gradients))
    assert (found > 100).all() and (found < 1000).all()


# ---- gradients that decide nothing ---------------------------------------------------------


@pytest.mark.parametrize("text", GRADIENT_METHODS)
def test_zero_gradients_weigh_equally(text):
    """Also with nothing shared, whose Gram matrix is zero."""
    gradients = np.zeros((4, 2, 3))
    gradients[1, 0], gradients[2, 1], gradients[3] = 4.0, 4.0, 1e-30
    found = weights(text, gradients)
    expected = np.full((3, 2), EQUAL.get(text, 1.0))
    if text == "nash-mtl":
        expected[1:] = 1 / np.sqrt(48)
    np.testing.assert_allclose(found[:3], expected, rtol=1e-15)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("size", [1e-6, 0.3, 1.0, 1 + 1e-9, 1e6])
@pytest.mark.parametrize("text", [*GRADIENT_METHODS, "cagrad:kappa=0"])
def test_parallel_equal_and_opposed_gradients_step_a_bounded_way(text, size):
    """In float32's precision, as in training; twice, for methods with a state."""
    f = np.random.default_rng(0).normal(size=(20, 7))
    gradients = np.concatenate([np.stack([f, sign * size * f], 1) for sign in (1, -1)])
    method = make(text, 40)
    for gram in (gram_of(gradients), gram_of(gradients).float()):
        for _ in range(2):
            found, own = (x.numpy() for x in method(torch.ones(40, 2), gram))
            step = np.linalg.norm(np.einsum("rt,rtk->rk", found, gradients), axis=1)
            unit = 1 if text == "nash-mtl" else np.linalg.norm(gradients, axis=2).max(1)
            assert np.isfinite(found).all() and (own == 1).all() and (step <= 2.01 * unit).all()
    if size == 1:
        ratio = found[0, 0] / found[0, 1]
        assert ratio == pytest.approx(1, abs=1e-6)  # equal ones, equal weights


def test_mgda_has_no_cap_and_stops_between_opposed_gradients():
    f = np.array([1.0, 0, 0])
    cases = np.stack([np.stack([f, [x, y, 0]]) for x, y in ((2, 0), (-3, 0), (0, 1e6), (0.5, 0))])
    np.testing.assert_allclose(
        weights("mgda", cases), [[1, 0], [0.75, 0.25], [1, 1e-12], [0, 1]], rtol=1e-11
    )


@pytest.mark.parametrize("text, factor", [("pcgrad", 1), ("upgrad", 0.5), ("gradvac", 1)])
def test_without_conflict_projections_change_nothing(text, factor):
    gradients = pairs("random")
    agreeing = (gradients[:, 0] * gradients[:, 1]).sum(1) >= 0
    assert 0 < agreeing.sum() < len(agreeing)
    found = weights(text, gradients)
    assert (found[agreeing] == factor).all()
    assert (found[~agreeing] > factor).all()


# ---- by the losses -------------------------------------------------------------------------


def some_losses(steps: int, runs: int = 1) -> torch.Tensor:
    """(steps, runs, 2), falling ones."""
    stream = torch.Generator().manual_seed(5)
    noise = torch.rand(steps, runs, 2, generator=stream, dtype=torch.float64)
    return (0.5 + noise) * torch.tensor([0.4, 2.0]) * torch.linspace(1, 0.3, steps)[:, None, None]


def learned(objective, losses, start: float, **adam):
    """s before each step of torch.optim.Adam on objective(s, the step's losses), (steps, 2)."""
    s = torch.full((2,), start, dtype=torch.float64, requires_grad=True)
    optimizer, path = torch.optim.Adam([s], **adam), []
    for row in losses:
        path.append(s.detach().clone())
        optimizer.zero_grad()
        objective(s, row).backward()
        optimizer.step()
    return torch.stack(path)


def test_uw_and_imtl_descend_their_objectives_by_torchs_adam():
    losses = some_losses(50)
    cases = {
        "uw": (lambda s, x: (x * (-s).exp() / 2 + s / 2).sum(), -0.5, lambda s: (-s).exp() / 2),
        "imtl-l": (lambda s, x: (x * s.exp() - s).sum(), 0.0, torch.exp),
    }
    for text, (objective, start, weight) in cases.items():
        method = make(f"{text}:lr=0.02", 1)
        found = torch.cat([method.weights(x, None) for x in losses])
        expected = weight(learned(objective, losses[:, 0], start, lr=0.02))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("text, per_loss", [("uw", 0.5), ("imtl-l", 1.0)])
def test_uw_and_imtl_settle_at_the_inverse_losses(text, per_loss):
    method, losses = make(f"{text}:lr=0.01", 1), torch.tensor([[0.2, 3.0]], dtype=torch.float64)
    for _ in range(3000):
        found = method.weights(losses, None)
    torch.testing.assert_close(found, per_loss / losses, rtol=1e-6, atol=0)


def test_gls_is_the_slope_of_the_geometric_mean():
    losses = some_losses(1, runs=20)[0].requires_grad_()
    (expected,) = torch.autograd.grad(losses.prod(1).sqrt().sum(), losses)
    torch.testing.assert_close(make("gls", 20).weights(losses, None), expected)
    assert make("gls", 1).weights(torch.zeros(1, 2), None).isfinite().all()


def test_famo_descends_by_how_much_the_log_losses_fell():
    before, after = some_losses(40), some_losses(41)[1:] * 0.97
    runs, found = Weightings(["gls", "famo:decay=0.01"], [0, 0], "cpu"), []
    for x, y in zip(before, after, strict=True):
        found.append(weigh(runs, x.expand(2, 2))[0][1:])
        runs.after(y.expand(2, 2))
    fell = (before.log() - after.log())[:, 0]
    s = learned(lambda s, x: s.softmax(0) @ x, fell, 0.0, lr=0.025, weight_decay=0.01)
    expected = s.softmax(1) / before[:, 0]
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(torch.cat(found), expected.float(), rtol=1e-6, atol=0)


def test_gradnorm_descends_its_objective_from_the_second_epoch_on():
    losses, grams = some_losses(60), gram_of(pairs("random"))
    method, first = make("gradnorm:lr=0.02,alpha=0.7", 1), torch.tensor([[0.9, 1.7]]).double()

    def objective(s, row):
        norms = row[2:]
        weighted, relative = 2 * s.softmax(0) * norms, row[:2] / first[0]
        target = weighted.mean() * (relative / relative.mean()) ** 0.7
        return (weighted - target.detach()).abs().sum()

    for x, gram in zip(losses, grams, strict=True):
        assert (method.weights(x, gram[None]) == 1).all()
    method.epoch_end(0, first)
    found = [method.weights(x, gram[None]) for x, gram in zip(losses, grams, strict=True)]
    method.epoch_end(1, 5 * first)
    assert torch.equal(method.state["first"], first)
    norms = grams.diagonal(dim1=1, dim2=2).sqrt()
    s = learned(objective, torch.cat([losses[:, 0], norms], 1), 0.0, lr=0.02)
    torch.testing.assert_close(torch.cat(found), 2 * s.softmax(1), rtol=1e-10, atol=0)


def test_dwa_compares_the_last_two_epochs():
    method, means = make("dwa:temperature=3", 1), some_losses(5)
    for epoch, mean in enumerate(means):
        rates = means[epoch - 1] / means[epoch - 2] / 3
        expected = 2 * rates.softmax(1) if epoch > 1 else torch.ones(1, 2).double()
        torch.testing.assert_close(method.weights(mean, None), expected, rtol=1e-12, atol=0)
        method.epoch_end(epoch, mean)


def test_rlw_draws_each_step_from_the_runs_own_stream():
    runs = Weightings(["uw", "rlw", "rlw", "mgda"], [3, 7, 5, 7], "cpu")
    losses, gram = torch.ones(4, 2), torch.eye(2).expand(4, 2, 2)
    for epoch in (0, 4):
        runs.epoch_start(epoch, 6)
        found = torch.stack([weigh(runs, losses, gram)[0][1:3] for _ in range(6)], 1)
        for seed, own in zip((7, 5), found, strict=True):
            drawn = torch.randn(6, 2, generator=random_stream(seed, "weights", epoch))
            torch.testing.assert_close(own, drawn.softmax(1))


# ---- what a scale of the losses does -------------------------------------------------------

# The factor on ρ as ranking's loss is taken times 10, or rating's in half units, times 4.
SCALED = {
    **dict.fromkeys(["pcgrad", "upgrad", "gradvac"], (10, 1 / 4)),
    **dict.fromkeys(["nash-mtl", "imtl-g", "aligned-mtl", "gradnorm:lr=0.01"], (1, 1)),
    "mgda": (1 / 10, 4),
}


@pytest.mark.parametrize("which, scale", [(0, 10.0), (1, 4.0)])
@pytest.mark.parametrize("text", SCALED)
def test_scaled_losses_move_the_share_as_the_method_says(text, which, scale):
    f, r = np.random.default_rng(2).normal(size=(2, 7))
    r -= f @ r / (f @ f) * f  # cos = 0
    before = np.stack([f, r])[None]
    after = before.copy()
    after[:, which] *= scale
    steps, error = (1500, 0.03) if "gradnorm" in text else (1, 1e-9)
    factor = shares(text, after, steps) / shares(text, before, steps)
    assert factor == pytest.approx(SCALED[text][which], rel=error)


def test_nash_steps_alike_whatever_the_scale_and_imtl_the_same_way():
    gradients = pairs("conflicting")
    scaled = gradients * np.array([10, 4])[:, None]
    step = {
        (text, k): np.einsum("nt,ntk->nk", weights(text, x), x)
        for text in ("nash-mtl", "imtl-g")
        for k, x in enumerate((gradients, scaled))
    }
    np.testing.assert_allclose(step["nash-mtl", 0], step["nash-mtl", 1], rtol=1e-8, atol=1e-10)
    one, other = (
        x / np.linalg.norm(x, axis=1)[:, None] for x in (step["imtl-g", k] for k in (0, 1))
    )
    np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


def test_cagrads_share_is_kappa_for_a_short_gradient():
    f, r = np.array([1e-4, 0]), np.array([0, 1.0])
    for kappa in (0.2, 0.5, 0.9):
        for scale in (1, 10):
            share = shares(f"cagrad:kappa={kappa}", np.stack([scale * f, r])[None])
            assert share == pytest.approx(kappa, abs=2e-3)


@pytest.mark.parametrize("text, factor", [("gls", 1), ("famo", 1), ("dwa", 10), ("rlw", 10)])
def test_loss_methods_divide_by_the_loss_or_leave_it(text, factor):
    """w_F·L_F / w_R·L_R as ranking's loss is taken times 10: ρ moves by the same factor."""
    found = []
    for scale in (1.0, 10.0):
        method = make(text, 1)
        for epoch, losses in enumerate(some_losses(4) * torch.tensor([scale, 1])):
            method.epoch_start(epoch, 1)
            share = method.weights(losses, None) * losses
            method.after(losses * torch.tensor([0.9, 0.8]))
            method.epoch_end(epoch, losses)
        found.append(share[0, 0] / share[0, 1])
    assert found[1] / found[0] == pytest.approx(factor, rel=1e-9)


# ---- the runs of a stack -------------------------------------------------------------------

RUNS = [*METHODS, "cagrad:kappa=0.2", "uw", "mgda", "fixed", "uw:lr=0.1", "rlw", "gradnorm"]
RUN_METHODS = [METHODS[parse(text)[0]] for text in RUNS]
SEEDS = list(range(len(RUNS)))
LAMBDAS = torch.linspace(0.1, 2, 2 * len(RUNS)).view(-1, 2)


def make_runs(which=SEEDS, device="cpu") -> Weightings:
    return Weightings([RUNS[r] for r in which], which, device, LAMBDAS[which])


def epoch_of_weights(runs: Weightings, which, epoch: int) -> torch.Tensor:
    """Weights of some of all runs over an epoch of made-up steps, (steps, 2, R, 2)."""
    stream, found = torch.Generator().manual_seed(epoch), []
    runs.epoch_start(epoch, 5)
    for _ in range(5):
        losses, after = torch.rand(2, len(RUNS), 2, generator=stream) + 0.1
        gradients = torch.randn(len(RUNS), 2, 5, generator=stream)
        gram = torch.bmm(gradients, gradients.transpose(1, 2))
        gram[[not kind.needs_gram for kind in RUN_METHODS]] = torch.nan
        found.append(torch.stack(weigh(runs, losses[which], gram[which])))
        runs.after(after[which])
    runs.epoch_end(epoch, torch.rand(len(RUNS), 2, generator=stream)[which] + 0.1)
    return torch.stack(found)


def test_a_run_in_a_stack_is_the_run_alone():
    runs = make_runs()
    stacked = torch.cat([epoch_of_weights(runs, SEEDS, epoch) for epoch in range(4)])
    assert stacked.dtype == torch.float32 and stacked.isfinite().all()
    for r, text in enumerate(RUNS):
        alone = make_runs([r])
        found = torch.cat([epoch_of_weights(alone, [r], epoch) for epoch in range(4)])
        assert torch.equal(found[:, :, 0], stacked[:, :, r]), text
        moves = text not in ("fixed", "rating-probe", "ranking-probe", "adatask")
        assert (found.std(0).max() > 0) == moves, text


def test_a_state_goes_on_as_if_never_stopped():
    runs, resumed = make_runs(), make_runs()
    for epoch in range(2):
        epoch_of_weights(runs, SEEDS, epoch)
    resumed.load_state_dict({name: x.clone() for name, x in runs.state_dict().items()})
    states = resumed.state_dict().values()
    assert all(x.dtype == torch.float64 and x.dim() == 2 for x in states)
    for epoch in (2, 3):
        expected = epoch_of_weights(runs, SEEDS, epoch)
        assert torch.equal(epoch_of_weights(resumed, SEEDS, epoch), expected)


def test_who_gets_what():
    """Own parameters: weighted by loss methods and λ, their task's gradient with the others."""
    found = epoch_of_weights(make_runs(), SEEDS, 0)[0]
    for r, text in enumerate(RUNS):
        shared, own = found[:, r]
        if text.partition(":")[0] in [*LOSS_METHODS, "fixed"]:
            assert torch.equal(own, shared)
        else:
            assert own.tolist() == [1, 1]
        told = {"fixed": LAMBDAS[r].tolist(), "adatask": [1, 1]}
        told |= {"rating-probe": [1, 0], "ranking-probe": [0, 1]}
        assert shared.tolist() == told.get(text, shared.tolist())
    runs = make_runs()
    flagged = {
        flag: {text for text, own in zip(RUNS, RUN_METHODS, strict=True) if getattr(own, flag)}
        for flag in ("needs_gram", "needs_after", "per_task_moments")
    }
    assert flagged["needs_after"] == {"famo"} and flagged["per_task_moments"] == {"adatask"}
    assert flagged["needs_gram"] == {x for x in RUNS if x.partition(":")[0] in GRADIENT_METHODS}
    halves = runs.by_losses(torch.rand(len(RUNS), 2))[0]
    assert (halves[[kind.needs_gram for kind in RUN_METHODS]] == 1).all()
    assert runs.split and runs.apart and runs.moves


def test_a_stack_of_fixed_weights_computes_nothing():
    runs = Weightings(["fixed"] * 3, [0, 1, 2], "cpu", [[1, 0], [0.99, 0.01], [0.5, 0.5]])
    first, second = weigh(runs, None), weigh(runs, None)
    assert all(x is y for x, y in zip(first, second, strict=True))
    assert not (runs.apart or runs.needs_after or runs.groups or runs.state_dict() or runs.moves)
    assert torch.equal(first[0], torch.tensor([[1, 0], [0.99, 0.01], [0.5, 0.5]]))


def test_no_method_waits_for_the_device():
    """Tensors without data: whatever asks for a value, as a host sync does, raises."""
    runs, n = make_runs(device="meta"), len(RUNS)
    for epoch in range(2):
        runs.epoch_start(epoch, 3)
        losses = torch.rand(n, 2, device="meta")
        found = weigh(runs, losses, torch.rand(n, 2, 2, device="meta"))
        assert [tuple(x.shape) for x in found] == [(n, 2), (n, 2)]
        runs.after(losses)
        runs.epoch_end(epoch, losses)


# ---- names ---------------------------------------------------------------------------------


def test_names_and_parameters_are_read():
    assert parse("mgda") == ("mgda", {})
    assert parse("cagrad:kappa=0.2") == ("cagrad", {"kappa": 0.2})
    assert parse("famo:decay=0") == ("famo", {"lr": 0.025, "decay": 0.0})
    assert parse("gradnorm:alpha=1,lr=0.01") == ("gradnorm", {"lr": 0.01, "alpha": 1.0})
    assert make("cagrad:kappa=0.2", 1).kappa == 0.2
    assert all(parse(name)[0] == name for name in METHODS)


@pytest.mark.parametrize(
    "text, told",
    [
        ("nashmtl", "did you mean nash-mtl?"),
        ("MGDA", "did you mean mgda?"),
        ("xyz", "one of fixed, "),
        ("cagrad:kapa=0.5", "did you mean kappa?"),
        ("mgda:lr=1", "takes none"),
        ("cagrad:kappa=1", "at least 0 and below 1"),
        ("cagrad:kappa=-0.1", "at least 0"),
        ("uw:lr=nan", "a number"),
        ("uw:lr=inf", "a number"),
        ("uw:lr", "a number"),
        ("uw:", "no parameter ''"),
    ],
)
def test_what_is_no_method_is_refused_in_one_line(text, told):
    with pytest.raises(ValueError) as problem:
        parse(text)
    message = str(problem.value)
    assert told in message and repr(text) in message and "\n" not in message


def test_a_method_is_one_class():
    class Best(Weighting, name="best-first"):
        def weights(self, losses, gram):
            return (losses == losses.amin(1, keepdim=True)).double()

    try:
        runs = Weightings(["best-first", "gls"], [0, 1], "cpu")
        losses = torch.tensor([[0.1, 0.2], [1.0, 1.0]])
        assert weigh(runs, losses)[0].tolist() == [[1, 0], [0.5, 0.5]]
    finally:
        del METHODS["best-first"]


@pytest.mark.skipif(importlib.util.find_spec("torchjd") is None, reason="needs torchjd")
@pytest.mark.parametrize(
    "text, peer, named",
    [
        ("mgda", "MGDA", {}),
        ("upgrad", "UPGrad", {}),
        ("cagrad", "CAGrad", {"c": 0.5}),
        ("imtl-g", "IMTLG", {}),
        ("pcgrad", "PCGrad", {}),
        ("aligned-mtl", "AlignedMTL", {"pref_vector": torch.ones(2).double()}),
    ],
)
def test_torchjd_aggregates_to_the_same_step(text, peer, named):
    from torchjd import aggregation

    aggregator = getattr(aggregation, peer)(**named)
    gradients = pairs("random")
    ours = np.einsum("nt,ntk->nk", weights(text, gradients), gradients)
    theirs = np.stack([aggregator(torch.from_numpy(pair)).numpy() for pair in gradients])
    np.testing.assert_allclose(ours, theirs, atol=2e-3)  # UPGrad adds 1e-4 to what it solves


def test_a_methods_own_numbers_are_its_sources_unless_told():
    sources = {  # the defaults of LibMTL, whose methods they are compared with
        "dwa": {"temperature": 2.0},
        "famo": {"lr": 0.025, "decay": 0.001},
        "gradnorm": {"alpha": 1.5},
        "gradvac": {"beta": 0.5},
        "cagrad": {"kappa": 0.5},
    }
    for name, numbers in sources.items():
        assert {x: getattr(METHODS[name], x) for x in numbers} == numbers
