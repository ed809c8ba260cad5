"""What an agent in a POPGym task should remember or infer, read from the task's own state.

One reader per task. `target` is the action that earns the reward now, -1 where no action is asked for.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchmem.envs.protocol import Arrays

SUIT = "suit 0..3, -1 none"


class Reader(abc.ABC):
    """Reads one task. `begin` and `after` are called after each reset and step with the key-wise observation."""

    units: Mapping[str, str]

    def __init__(self, env: Any) -> None:
        self.env = env

    def begin(self, obs: Arrays) -> None:  # noqa: B027 (most tasks hold their own history)
        """An episode opened."""

    def after(self, obs: Arrays) -> None:  # noqa: B027
        """A step was taken."""

    @abc.abstractmethod
    def read(self) -> Arrays:
        """The keys of `units`; shapes depend on the difficulty only."""


class RepeatPrevious(Reader):
    """`recent`: the last k suits, oldest first, with -1 before the episode; the target is recent[0]."""

    units = {"target": SUIT, "recent": SUIT}

    def read(self) -> Arrays:
        deck, k = self.env.deck, self.env.k
        suits = deck.suits_idx[deck["player"][-k:]]
        recent = np.full(k, -1, np.int64)
        recent[k - len(suits):] = suits
        return {"target": recent[0].copy(), "recent": recent}


class RepeatFirst(Reader):
    units = {"target": "suit 0..3"}

    def read(self) -> Arrays:
        return {"target": np.array(self.env.card, np.int64)}


class Autoencode(Reader):
    """`stack`: the suits still to be recited in the order they were shown; the last one is asked for first."""

    units = {"target": SUIT, "stack": SUIT}

    def read(self) -> Arrays:
        deck = self.env.deck
        suits = deck.suits_idx[deck["system"]]
        stack = np.full(deck.num_cards, -1, np.int64)
        stack[:len(suits)] = suits
        reciting = self.env.mode.name == "PLAY" and len(suits) > 0
        return {"target": np.array(suits[-1] if reciting else -1, np.int64), "stack": stack}


class Concentration(Reader):
    """`seen`: the cards that were face up at any time of this episode, so what a perfect memory holds."""

    units = {"value": "colour or rank of each card", "matched": "1 = pair found", "seen": "1 = was shown",
             "open": "index of the single open card, -1 none"}

    def begin(self, obs: Arrays) -> None:
        self._seen = np.zeros(self.env.deck.num_cards, bool)
        self.after(obs)

    def after(self, obs: Arrays) -> None:
        self._seen |= obs["table"] != self.env.facedown_card

    def read(self) -> Arrays:
        env = self.env
        matched = np.zeros(env.deck.num_cards, bool)
        matched[env.deck["face_up_idx"]] = True
        in_play = env.deck["in_play_idx"]
        return {
            "value": env.state.copy(), "matched": matched, "seen": self._seen.copy(),
            "open": np.array(in_play[0] if in_play else -1, np.int64),
        }


class CountRecall(Reader):
    """`counts`: how often each kind was dealt so far; the target is the count of the kind that is asked for."""

    units = {"target": "cards", "counts": "cards"}

    def read(self) -> Arrays:
        counts = self.env.counts.astype(np.int64)
        return {"target": counts[self.env.query].copy(), "counts": counts}


class HigherLower(Reader):
    """The target is decided by the next card of the deck, which nobody has seen; `counts` is what can be known."""

    units = {"target": "0 higher, 1 lower, -1 equal or over", "next_rank": "rank 0..12, -1 over", "counts": "cards"}

    def read(self) -> Arrays:
        deck = self.env.deck
        target = next_rank = -1
        if len(deck):
            now, next_rank = deck.ranks_idx[deck["player"][-1]], deck.ranks_idx[deck.idx[len(deck) - 1]]
            target = -1 if next_rank == now else int(next_rank < now)
        return {
            "target": np.array(target, np.int64), "next_rank": np.array(next_rank, np.int64),
            "counts": self.env.state.astype(np.int64),
        }


class Battleship(Reader):
    units = {"ships": "1 = ship [first coordinate, second]", "guessed": "1 = shot at [first coordinate, second]"}

    def read(self) -> Arrays:
        return {"ships": self.env.board.astype(bool), "guessed": self.env.guesses.astype(bool)}


class MineSweeper(Reader):
    units = {"mines": "1 = mine [first coordinate, second]", "viewed": "1 = opened [first coordinate, second]"}

    def read(self) -> Arrays:
        grid = self.env.hidden_grid
        return {"mines": grid == 1, "viewed": grid == 2}


class MultiarmedBandit(Reader):
    units = {"payout": "probability of a payout per arm", "target": "arm that pays most"}

    def read(self) -> Arrays:
        chances = self.env.bandits
        return {"payout": chances.copy(), "target": np.array(chances.argmax(), np.int64)}


class CartPole(Reader):
    units = {"state": "cart m, cart m/s, pole rad, pole rad/s"}

    def read(self) -> Arrays:
        return {"state": np.array(self.env.state, np.float32)}


class Pendulum(Reader):
    """The angle is 0 where the pendulum stands upright and is not wrapped."""

    units = {"angle": "rad", "velocity": "rad/s"}

    def read(self) -> Arrays:
        angle, velocity = self.env.state
        return {"angle": np.array(angle, np.float32), "velocity": np.array(velocity, np.float32)}


READERS: dict[str, type[Reader]] = {
    "repeat_previous": RepeatPrevious, "repeat_first": RepeatFirst, "autoencode": Autoencode,
    "concentration": Concentration, "count_recall": CountRecall, "higher_lower": HigherLower,
    "battleship": Battleship, "mine_sweeper": MineSweeper, "multiarmed_bandit": MultiarmedBandit,
    "position_only_cart_pole": CartPole, "velocity_only_cart_pole": CartPole, "noisy_position_only_cart_pole": CartPole,
    "position_only_pendulum": Pendulum, "noisy_position_only_pendulum": Pendulum,
}
