"""Act path = train path = trace path, in float32 and float64, with resets first, middle and last."""

from __future__ import annotations

import pytest
import torch

from tests.surgery.conftest import dreamer, sequence_for
from tests.surgery.test_model_edits import steps_of
from tests.surgery.test_trace import plain, same
from torchmem.surgery.model import Model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_one_episode_three_ways(dtype, tolerance):
    agent = dreamer().to(dtype)
    agent.dtype = dtype
    model, seq = Model(agent), sequence_for(agent, 3, 9)
    noise = agent.sequence_noise(3, 9, torch.Generator().manual_seed(0))
    with model.trace(seq, raw=False) as tr:
        deter = model.site("memory").save()
    assert same(tr.out, plain(agent, seq)), "trace against the untraced pass is bitwise"
    acted, logits, stoch = steps_of(model, seq, noise)
    scores = torch.log_softmax(tr.out.posterior_logit, -1) + noise.posterior  # what the categories are drawn by
    top = scores.topk(2, -1).values
    flips = stoch.argmax(-1) != tr.out.states.stoch.argmax(-1)
    assert not (flips & ((top[..., 0] - top[..., 1]) > 1e-5)).any()
    assert int(flips.sum()) == 0, "none of these sequences stands on an edge"
    torch.testing.assert_close(acted, deter, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(logits, tr.out.policy["action"][0], rtol=tolerance, atol=tolerance)


def test_cache_and_hooks(model, seq):
    out, cache = model.run_with_cache(seq, ["dynamics.*", "memory"])
    assert "memory" in cache and "encoder" not in cache
    assert torch.equal(cache["memory", 3], cache["dynamics.deter"][:, 3])
    assert torch.equal(cache["memory"], out.states.deter)
    seen = []

    def hook(value, info):
        seen.append(value.clone())
        return None if len(seen) != 3 else value * 0

    hooked = model.run_with_hooks(seq, [("memory", hook)])
    assert len(seen) == seq["is_first"].shape[1] and torch.equal(seen[0][:, 0], cache["memory", 0])
    assert (hooked.states.deter[:, 2] == 0).all()
    with pytest.raises(KeyError, match="not in this cache"):
        cache["encoder"]
    with pytest.raises(ValueError, match="no site matches"):
        model.run_with_cache(seq, "dynamcs.*")


def test_load_opens_a_checkpoint_in_three_lines(tmp_path, agent, seq):
    import torchmem
    from torchmem.models.checkpoint import save_agent

    save_agent(agent, tmp_path / "a")
    model = torchmem.load(tmp_path / "a")
    assert same(model.unroll(seq), plain(agent, seq))
    text = repr(model)
    assert "memory = dynamics.deter  [B, T, 64] per step" in text and text.count("\n") > 40
    obs = {key: seq[key][:, 0] for key in (*model.spec.obs, "is_first")}
    actions, carry = model.act(obs, model.initial(3))
    assert actions["action"].shape == (3,) and model.imagine(carry, 2).feat.shape[:2] == (3, 3)


def test_video_and_its_refusals(model, tmp_path):
    from torchmem.surgery.edits import Ablate
    from torchmem.surgery.items import TraceError

    assert model.video(tmp_path / "a.gif", steps=8, rows=2).read_bytes()[:6] == b"GIF89a"
    with pytest.raises(TraceError, match="does not follow edits"), model.edited(Ablate("memory")):
        model.video(tmp_path / "b.gif", steps=8, rows=2)


def test_inputs_come_in_many_forms(model, seq):
    """A TensorDict, numpy, one row without B, and a single array give what the dict gives."""
    from tensordict import TensorDict

    from tests.surgery.planted import planted, trials
    from torchmem.surgery.model import Model

    expected = model.unroll(seq).value
    assert torch.equal(model.unroll(TensorDict(seq, batch_size=[3, 7])).value, expected)
    assert torch.equal(model.unroll({k: v.numpy() for k, v in seq.items()}).value, expected)
    one = {k: v[0] for k, v in seq.items()}
    torch.testing.assert_close(model.unroll(one, noise="mode").value, model.unroll(seq, noise="mode").value[:1])
    data, opened = trials(4), Model(planted())
    whole = opened.unroll(data.obs["signal"], data.actions["action"])  # is_first: step 0 opens each row
    assert torch.equal(whole.value, opened.unroll(data.batch).value)
    observed = model.observe(seq)
    assert torch.equal(observed.states.deter, model.unroll(seq).states.deter)
    with pytest.raises(ValueError, match="pass a dict"):
        model.unroll(seq["vector"])
