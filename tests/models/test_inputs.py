"""Keys: their order, their encoding, missing values, and the ones no network here reads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from torchmem.models.decoder import Decoder
from torchmem.models.dists import symlog
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.encoder import Encoder
from torchmem.models.inputs import concat_keys
from torchmem.types import EnvSpec, Space

CONFIG = DreamerConfig(deter=32, hidden=16, classes=6, stoch=4, depth=2, units=16)


def test_keys_are_sorted_integers_one_hot_and_floats_squashed():
    spaces = {"z": Space((2,), "float32"), "a": Space((2,), "int32", 3), "m": Space((), "bool")}
    values = {"z": torch.tensor([[1.0, -5.0]]), "a": torch.tensor([[2, 0]]), "m": torch.tensor([True])}
    out = concat_keys(values, spaces, squash=True)
    expected = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 1, *symlog(torch.tensor([1.0, -5.0])).tolist()]])
    assert torch.equal(out, expected)
    assert concat_keys(values, spaces, squash=False)[0, -1] == -5.0
    assert out.shape[-1] == sum(space.one_hot_size for space in spaces.values())


def test_missing_values_are_zero_features():
    spaces = {"x": Space((2,), "float32"), "n": Space((2,), "int32", 3)}
    present = {"x": torch.tensor([[1.0, 2.0]]), "n": torch.tensor([[1, 2]])}
    for key, value in (("x", [[1.0, -torch.inf]]), ("n", [[1, -1]])):
        values = {**present, key: torch.tensor(value)}
        out, width = concat_keys(values, spaces, squash=True), spaces[key].one_hot_size
        whole = concat_keys(present, spaces, squash=True)
        mine = slice(0, width) if key == "n" else slice(-width, None)
        assert not out[:, mine].any()  # the whole key, not only the entry
        out[:, mine] = whole[:, mine]
        assert torch.equal(out, whole)


def test_a_missing_value_lets_gradients_live():
    encoder = Encoder({"x": Space((2,), "float32")}, CONFIG)
    encoder({"x": torch.tensor([[1.0, -torch.inf]])}, torch.float32).sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_image_keys_enter_sorted_and_leave_in_the_worlds_order():
    spaces = {"wide": Space((48, 48, 1), "uint8"), "ahead": Space((48, 48, 3), "uint8")}
    obs = {key: torch.randint(0, 256, (2, *space.shape), dtype=torch.uint8) for key, space in spaces.items()}
    encoder = Encoder(spaces, CONFIG)
    seen = []
    encoder.cnn.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    tokens = encoder(obs, torch.float32)
    assert torch.equal(seen[0], torch.cat([obs["ahead"], obs["wide"]], -1) / 255 - 0.5)
    swapped = Encoder(dict(reversed(spaces.items())), CONFIG)
    swapped.load_state_dict(encoder.state_dict())
    assert torch.equal(swapped(obs, torch.float32), tokens)  # the world's order does not matter here
    decoder = Decoder(spaces, 32, 24, CONFIG)
    deter, stoch = torch.randn(2, 32), torch.randn(2, 4, 6)
    whole = decoder.cnn(deter, stoch.flatten(-2))
    out = decoder(deter, stoch)
    assert torch.equal(out["wide"], whole[..., :1]) and torch.equal(out["ahead"], whole[..., 1:])


def test_vectors_come_before_images_in_the_tokens():
    spaces = {"image": Space((48, 48, 3), "uint8"), "zvector": Space((4,), "float32")}
    encoder = Encoder(spaces, CONFIG)
    obs = {"image": torch.zeros(2, 48, 48, 3, dtype=torch.uint8), "zvector": torch.randn(2, 4)}
    tokens = encoder(obs, torch.float32)
    assert tokens.shape == (2, encoder.size) == (2, 16 + 3 * 3 * 8)
    other = encoder({**obs, "zvector": torch.randn(2, 4)}, torch.float32)
    assert torch.equal(tokens[:, 16:], other[:, 16:]) and not torch.equal(tokens[:, :16], other[:, :16])


def test_decoder_losses_by_hand():
    spaces = {"image": Space((48, 48, 3), "uint8"), "x": Space((2,), "float32"), "n": Space((3,), "int32", 4)}
    decoder = Decoder(spaces, 32, 24, CONFIG)
    guess = {"image": torch.full((1, 48, 48, 3), 0.5), "x": torch.zeros(1, 2), "n": torch.zeros(1, 3, 4)}
    truth = {
        "image": torch.full((1, 48, 48, 3), 255, dtype=torch.uint8),
        "x": torch.tensor([[torch.e - 1, 0.0]]),
        "n": torch.tensor([[0, 1, 3]]),
    }
    loss = decoder.loss(guess, truth)
    assert float(loss["image"]) == pytest.approx(48 * 48 * 3 * 0.25)
    assert float(loss["x"]) == pytest.approx(1.0)  # symlog(e - 1) = 1; a plain square, without 1/2
    assert float(loss["n"]) == pytest.approx(3 * torch.log(torch.tensor(4.0)).item())


def spec(obs: dict, action: dict | None = None) -> EnvSpec:
    return EnvSpec("toy", obs, action or {"action": Space((), "int32", 3)}, control_hz=1.0)


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        ({"map": Space((8, 8), "uint8")}, "'map' is uint8 "),
        ({"cube": Space((4, 4, 4), "float32")}, "'cube' .* flatten it"),
        ({"image": Space((50, 50, 3), "uint8")}, "images of .*50.* pixels"),
        ({"image": Space((16, 16, 3), "uint8")}, "3 to 16"),
        ({"a": Space((64, 64, 3), "uint8"), "b": Space((96, 96, 3), "uint8")}, r"\['a', 'b'\] differ in size"),
        ({}, "no observation"),
    ],
)
def test_observations_that_no_network_reads_are_refused_by_name(obs: dict, words: str):
    with pytest.raises(ValueError, match=words):
        DreamerAgent(spec(obs), CONFIG)


def test_a_continuous_action_needs_a_shape():
    with pytest.raises(ValueError, match=r"continuous action 'push' needs a shape"):
        DreamerAgent(spec({"x": Space((2,), "float32")}, {"push": Space((), "float32")}), CONFIG)


def test_absolute_posterior_reads_tokens_alone():
    agent = DreamerAgent(spec({"x": Space((2,), "float32")}), dataclasses.replace(CONFIG, absolute=True))
    embedded = agent.dynamics.posterior.embed(torch.randn(2, agent.encoder.size))
    logits = [agent.dynamics.posterior(torch.randn(2, 32), embedded) for _ in range(2)]
    assert torch.equal(*logits)
