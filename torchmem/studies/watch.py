"""Watch a trained agent play: what it sees, does, expects and gets, in a window or as a film."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmem.envs.collector import Collector, leaking
from torchmem.envs.vector import VectorEnv
from torchmem.files import atomic_write
from torchmem.models.checkpoint import load
from torchmem.studies.looks import action_names, pictures, strip
from torchmem.video import FORMATS, ffmpeg, film_bytes

SIDE, TEXT = 384, 34  # pixels of the picture, and of the two lines below it
SLOWEST = 4.0  # frames per second: worlds whose step is a second would make a dull film
HOLD_S = 0.7  # the last frame of an episode
Show = Callable[[np.ndarray, float], bool]  # (picture, seconds) -> go on


@dataclasses.dataclass(frozen=True)
class Moment:
    """One step: picture (H, W, 3) uint8 of what the agent saw, with what it did written below."""

    picture: np.ndarray
    episode: int
    step: int
    last: bool


def watch(
    run: str | Path,
    out: str | Path | None = None,
    *,
    episodes: int = 4,
    steps: int = 500,
    greedy: bool = False,
    fps: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    show: Show | None = None,
) -> Path | None:
    """Let the agent of a run play fresh episodes; the film's path, or None where they were shown in a window.

    out: a .gif or .mp4 (needs ffmpeg); None: a window (space pauses, q closes). episodes: whole ones, of which `steps`
    steps at most are shown. greedy: the likeliest actions (latents are sampled). fps: default, the world's own pace, at
    least 4. show: a function in place of the window.

    Raises ValueError where there is no display and no `out`, for another ending, and for counts below 1.
    """
    if episodes < 1 or steps < 1 or (fps is not None and fps <= 0):
        raise ValueError(f"episodes and steps must be at least 1 and fps above 0, got {episodes}, {steps} and {fps}")
    if out is not None and Path(out).suffix.lower() not in FORMATS:
        raise ValueError(f"--out {out}: a film is a {' or '.join(FORMATS)} file")
    if out is not None and Path(out).suffix.lower() == ".mp4":
        ffmpeg()  # before anything is played: it may be missing
    if out is None and show is None:
        show = Window(f"torchmem watch {run}").show  # before anything is loaded: there may be no display
    agent = load(run, device)
    pace = fps or max(agent.spec.control_hz, SLOWEST)
    moments = play(agent, episodes, steps, greedy, seed)
    if out is None:
        assert show is not None
        for one in moments:
            if not show(one.picture, 1 / pace + (HOLD_S if one.last else 0)):
                break
        return None
    frames = [one.picture for one in moments for _ in range(1 + (round(HOLD_S * pace) if one.last else 0))]
    return atomic_write(Path(out), film_bytes(np.stack(frames), pace, Path(out).suffix))


def play(agent: Any, episodes: int, steps: int, greedy: bool, seed: int) -> Iterator[Moment]:
    """Episodes one after the other, in one world; seeds are those of recordings, which never meet training's."""
    spec, names = agent.spec, action_names(agent.spec)
    generator = torch.Generator(agent.device).manual_seed(seed)
    told: dict[str, float] = {}

    def policy(obs: Mapping[str, Any], carry: Any) -> Any:
        noise = agent.acting_noise(1, generator)
        if greedy:
            noise = dataclasses.replace(noise, action=None)
        action, after, extras = agent.policy(obs, carry, noise)
        told["value"] = float(agent.read_out(after)["value"][0])
        return action, after, extras

    needed = (*spec.obs, *spec.action, "reward", "is_first", "is_last")
    with VectorEnv(spec.name, spec.kwargs, 1, split="record", seed=seed, on_error="raise") as worlds:
        collector = Collector(leaking(worlds, spec), agent.initial(1), agent.device)
        episode, step, total = 0, 0, 0.0
        while episode < episodes:
            whole = collector.step(policy)
            data = {key: np.asarray(whole[key])[0] for key in needed}
            if data["is_first"]:
                step, total = 0, 0.0
            total += float(data["reward"])
            last = bool(data["is_last"])
            if step < steps:
                did = "the end" if last else _did(data, spec, names)
                lines = (f"episode {episode + 1}, step {step}: {did}", f"value {told['value']:.3g}, return {total:.3g}")
                yield Moment(framed(_seen(spec, data), lines), episode, step, last or step == steps - 1)
            step += 1
            episode += last or step == steps
            if step >= steps and not last and episode < episodes:  # too long to be shown whole: on to the next one
                while not np.asarray(collector.step(policy)["is_last"])[0]:
                    pass


def framed(picture: np.ndarray, lines: tuple[str, ...]) -> np.ndarray:
    """A picture enlarged to whole multiples of its pixels, with lines of text below; even sides, as films need."""
    from PIL import Image, ImageDraw

    zoom = max(1, SIDE // max(picture.shape[:2]))
    large = picture.repeat(zoom, 0).repeat(zoom, 1)
    height, width = large.shape[0] + TEXT + large.shape[0] % 2, max(large.shape[1] + large.shape[1] % 2, SIDE)
    whole = Image.new("RGB", (width, height), "white")
    whole.paste(Image.fromarray(large), ((width - large.shape[1]) // 2, 0))
    ImageDraw.Draw(whole).multiline_text((6, large.shape[0] + 3), "\n".join(lines), fill="black", spacing=3)
    return np.asarray(whole)


def _seen(spec: Any, data: Mapping[str, np.ndarray]) -> np.ndarray:
    obs = {key: np.asarray(data[key])[None] for key in spec.obs}
    shown = pictures(spec, obs)
    if shown is not None:
        return shown[0]
    return strip(np.concatenate([value.reshape(-1) for value in obs.values()]))


def _did(data: Mapping[str, np.ndarray], spec: Any, names: tuple[str, ...]) -> str:
    if names:
        (key,) = spec.action
        # the small font has no arrows
        arrows = str.maketrans({"←": "left", "→": "right", "↑": "up", "↓": "down", "↖": "up left", "↗": "up right",
                                "↙": "down left", "↘": "down right"})  # fmt: skip
        return names[int(data[key])].translate(arrows)
    return ", ".join(f"{key} {np.round(np.asarray(data[key], float), 2).tolist()}" for key in spec.action)


class Window:
    """A window of the machine's display. Raises ValueError where there is none."""

    def __init__(self, title: str) -> None:
        way = "write a film: --out film.gif, or .mp4"
        try:
            import tkinter
        except ImportError as error:
            raise ValueError(f"this Python has no tkinter, so it opens no window ({error}); {way}") from error
        try:
            self.root = tkinter.Tk()
        except tkinter.TclError as error:
            raise ValueError(f"there is no display to open a window on ({error}); {way}") from error
        self.image = tkinter.PhotoImage
        self.root.title(title)
        self.label = tkinter.Label(self.root)
        self.label.pack()
        self.open, self.paused, self.shown = True, False, None
        self.root.protocol("WM_DELETE_WINDOW", self.close)
        self.root.bind("q", lambda _: self.close())
        self.root.bind("<Escape>", lambda _: self.close())
        self.root.bind("<space>", lambda _: self.pause())

    def close(self) -> None:
        self.open = False

    def pause(self) -> None:
        self.paused = not self.paused

    def show(self, picture: np.ndarray, seconds: float) -> bool:
        """Show a picture that long, and while it is paused; False once the window was closed."""
        height, width = picture.shape[:2]
        shown = self.image(data=b"P6 %d %d 255\n" % (width, height) + picture.tobytes(), format="ppm")
        self.label.configure(image=shown)
        self.shown = shown  # Tk holds no reference of its own: the picture would vanish
        end = time.monotonic() + seconds
        while self.open and (self.paused or time.monotonic() < end):
            self.root.update()
            time.sleep(0.01)
        if not self.open:
            self.root.destroy()
        return self.open
