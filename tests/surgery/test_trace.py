"""The contracts of model.trace: bitwise where nothing is edited, causal where something is, rows kept apart."""

from __future__ import annotations

import pytest
import torch

from torchmem.surgery.items import NotYet, TraceError
from torchmem.surgery.model import UnknownSite
from torchmem.surgery.request import WrongInput


def leaves(out):
    if isinstance(out, torch.Tensor):
        return [out]
    values = out.values() if isinstance(out, dict) else out
    return [leaf for value in values for leaf in leaves(value)]


def same(a, b) -> bool:
    pairs = list(zip(leaves(a), leaves(b), strict=True))
    return all(torch.equal(x, y) for x, y in pairs)


def noise_of(agent, seq, seed=0):
    rows, steps = seq["is_first"].shape
    return agent.sequence_noise(rows, steps, torch.Generator().manual_seed(seed))


def plain(agent, seq, seed=0):
    obs, actions = ({k: seq[k] for k in keys} for keys in (agent.spec.obs, agent.spec.action))
    with torch.no_grad():
        start, noise = agent.initial(len(seq["is_first"])), noise_of(agent, seq, seed)
        return agent.unroll(obs, actions, seq["is_first"], start, noise)


@pytest.mark.parametrize("raw", [True, False])
def test_an_empty_trace_is_the_untraced_pass(agent, model, seq, raw):
    with model.trace(seq, raw=raw) as tr:
        pass
    assert same(tr.out, plain(agent, seq))


def test_order_of_site_lines_does_not_matter(model, seq):
    with model.trace(seq):
        late = model.site("dynamics.deter").save()
        untouched = model.site("dynamics.deter").before.save()
        model.site("dynamics.deter")[:, 3, [0, 2]] = 0.5
        encoder = model.site("encoder").save()
    with model.trace(seq):
        encoder2 = model.site("encoder").save()
        model.site("dynamics.deter")[:, 3, [0, 2]] = 0.5
        early = model.site("dynamics.deter").save()
    assert torch.equal(late, early) and torch.equal(encoder, encoder2)
    assert (late[:, 3, [0, 2]] == 0.5).all() and (untouched[:, 3, [0, 2]] != 0.5).any()
    assert torch.equal(late[:, 3, 1], untouched[:, 3, 1])


def test_raw_nnsight_lines_work_beside_site_lines(agent, model, seq):
    steps = seq["is_first"].shape[1]
    with model.trace(seq) as tr:
        whole = model.site("dynamics.core").save()
        untouched = model.site("dynamics.core").before.save()
        model.site("dynamics.core")[:, 2] = 0.25
        raw = [].save()
        for _ in tr.iter[:steps]:
            raw.append(model.dynamics.core.output)
    assert torch.equal(torch.stack(list(raw), 1), untouched), "raw lines see the module's own output"
    assert (whole[:, 2] == 0.25).all() and not torch.equal(whole[:, 3:], plain(agent, seq).states.deter[:, 3:])
    with model.trace(seq):
        whole = model.site("dynamics.core").save()
        model.dynamics.core.output[:] = 0  # raw, in place, the first call
    assert (whole[:, 0] == 0).all() and (whole[:, 1] != 0).any(), "registered reads see what raw lines wrote"
    assert same(model.unroll(seq), plain(agent, seq)), "nothing is left behind"


def test_invokes_share_a_pass_and_see_only_their_rows(agent, model):
    from tests.surgery.conftest import sequence_for

    a, b = sequence_for(agent, 2, 5, seed=3), sequence_for(agent, 3, 7, seed=4)
    with model.trace(raw=False) as tr:
        with tr.invoke(a):
            ha = model.site("dynamics.deter").save()
        with tr.invoke(b):
            hb = model.site("dynamics.deter").save()
    reference = tr.outs
    assert ha.shape[:2] == (2, 5) and hb.shape[:2] == (3, 7)
    for name in model.sites:
        with model.trace() as tr:
            with tr.invoke(a):
                model.site(name)[:, 1] = lambda x: x * 0 + 0.3
                mine = model.site(name).save()
            with tr.invoke(b):
                pass
        assert same(tr.outs[1], reference[1]), name
        assert (mine[:, 1] == torch.tensor(0.3)).all(), name
        with model.trace() as tr:
            with tr.invoke(a):
                pass
            with tr.invoke(b):
                model.site(name)[:, 5:] = 0  # steps that a does not have
        assert same(tr.outs[0]._replace(carry=()), reference[0]._replace(carry=())), name


def test_a_raw_line_in_an_invoke_sees_its_rows_where_a_module_runs_on_rows_times_steps(agent, model):
    from tests.surgery.conftest import sequence_for

    a, b = sequence_for(agent, 2, 4, seed=3), sequence_for(agent, 2, 4, seed=4)
    with model.trace() as tr:
        with tr.invoke(a):
            ea = model.encoder.output.save()
        with tr.invoke(b):
            model.encoder.output = model.encoder.output * 0
    with model.trace() as both:
        with both.invoke(a):
            whole = model.site("encoder").save()
        with both.invoke(b):
            pass
    assert torch.equal(ea.unflatten(0, (2, 4)), whole)
    assert same(tr.outs[0], both.outs[0]) and not same(tr.outs[1], both.outs[1])


def test_gradients_flow_through_a_trace(agent, model, seq):
    with model.trace(seq, raw=False, grad=True, noise="mode") as tr:
        h = model.site("memory").save()
        eps = model.site("memory").nudge()
    tr.out.value[0, 3].backward()
    assert h.requires_grad and eps.grad is not None
    size = eps.grad.abs().sum(-1)
    assert (size[0, :4] > 0).all() and (size[0, 4:] == 0).all() and (size[1:] == 0).all()
    # the gradient is that of a finite difference (float64)
    double = agent.double()
    double.dtype = torch.float64
    from torchmem.surgery.model import Model

    model = Model(double)
    seq = {k: v.double() if v.is_floating_point() else v for k, v in seq.items()}

    def value(shift):
        with model.trace(seq, raw=False, noise="mode") as tr:  # stoch: the way from deter to it has a jump
            model.site("dynamics.stoch")[0, 2, 1, 2] = lambda x: x + shift
        return tr.out.value[0, 2].item()

    with model.trace(seq, raw=False, grad=True, noise="mode") as tr:
        eps = model.site("dynamics.stoch").nudge()
    tr.out.value[0, 2].backward()
    assert eps.grad[0, 2, 1, 2].item() == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-4)


def test_imagination_is_traced_by_step(agent, model, seq):
    carry = model.unroll(seq).carry
    with model.trace.imagine(carry, 5, seed=3) as tr:
        deter = model.site("dynamics.deter").save()
        logits = model.site("dynamics.prior").save()
        model.site("dynamics.deter")[:, 2] = 0
    expected = model.imagine(carry, 5, seed=3)
    assert deter.shape[:2] == (3, 5) and logits.shape[:2] == (3, 5)
    assert torch.equal(tr.out.feat[:, :3], expected.feat[:, :3])
    assert not torch.equal(tr.out.feat[:, 3:], expected.feat[:, 3:])
    assert (deter[:, 2] == 0).all() and torch.equal(tr.out.feat[:, 1:, : deter.shape[-1]], deter)


def test_a_live_play_is_traced_and_repeats(model):
    with model.trace.play(6, envs=2, seed=5) as tr:
        h = model.site("memory").save()
    with model.trace.play(6, envs=2, seed=5, raw=False) as again:
        h2 = model.site("memory").save()
        model.site("memory")[:, 4] = 0
    assert h.shape[:2] == (2, 6) and torch.equal(h[:, :4], h2[:, :4]) and (h2[:, 4] == 0).all()
    assert torch.equal(tr.out.carry.deter, h[:, -1]) and same(tr.out.obs, {k: tr.out.obs[k] for k in tr.out.obs})
    assert torch.equal(again.out.action["action"][:, :4], tr.out.action["action"][:, :4])


def test_conditions_choose_rows_and_steps(model, seq):
    with model.trace(seq, raw=False):
        plain_h = model.site("memory").save()
    with model.trace(seq, raw=False):
        model.site("memory").write(0.0, when=lambda info: info.is_first)
        h = model.site("memory").save()
    first = seq["is_first"]
    assert (h[first] == 0).all() and torch.equal(h[0, 1:] == 0, plain_h[0, 1:] == 0)


WRONG = {
    "unknown site": (UnknownSite, "dynamics.deter"),
    "step out of range": (TraceError, "step"),
    "unit out of range": (TraceError, "unit"),
    "wrong shape": (TraceError, "selects"),
    "outside a trace": (TraceError, "inside"),
    "too early": (NotYet, "after the block"),
    "no actions": (WrongInput, "action"),
    "wrong observation": (WrongInput, "needs"),
    "does not run": (TraceError, "never happened"),
    "below a raw line": (TraceError, "above the first raw line"),
    "no input": (ValueError, "needs an input"),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_wrong_use_gives_one_clear_error(model, seq, case):
    kind, words = WRONG[case]
    with pytest.raises(kind, match=words):
        if case == "unknown site":
            model.site("dynamics.detr")
        elif case == "step out of range":
            with model.trace(seq, raw=False):
                model.site("memory")[:, 99] = 0
        elif case == "unit out of range":
            with model.trace(seq):
                model.site("memory")[:, 1, 6400] = 0
        elif case == "wrong shape":
            with model.trace(seq):
                model.site("memory")[:, 1] = torch.zeros(5)
        elif case == "outside a trace":
            model.site("memory").save()
        elif case == "too early":
            with model.trace(seq):
                h = model.site("memory").save()
                h.mean()
        elif case == "no actions":
            with model.trace({k: v for k, v in seq.items() if k != "action"}):
                pass
        elif case == "wrong observation":
            key = next(iter(model.spec.obs))
            with model.trace({**seq, key: seq[key][..., None]}):
                pass
        elif case == "does not run":
            with model.trace.play(2, envs=1, raw=False):
                model.site("reward").save()
        elif case == "below a raw line":
            with model.trace(seq):
                x = model.dynamics.core.output.save()
                model.site("memory").save()
        elif case == "no input":
            with model.trace():
                x = 1  # noqa: F841
    # and the bench is bare again
    assert model._bench.registry is None and not model._bench.writes and model._bench.running is None
