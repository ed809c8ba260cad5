"""Arguments of Crafter, cheap to import."""

from __future__ import annotations

import dataclasses

from torchmem.envs.configs import check
from torchmem.options import option


@dataclasses.dataclass
class CrafterConfig:
    """Crafter: survive, gather and build in a world that is new in every episode; 22 achievements pay 1 each."""

    length: int = option(10000, "Agent steps before truncation.")
    image: int = option(64, "Side of the image in pixels; at night it also decides what is drawn at random.")

    def __post_init__(self) -> None:
        check(self.length >= 1, self, "length", "at least 1")
        check(self.image >= 36, self, "image", "at least 36 (nine cells of four pixels)")
