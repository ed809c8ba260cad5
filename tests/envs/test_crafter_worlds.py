"""Crafter's worlds, views and creatures as the config changes them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import crafter
import numpy as np
import pytest

from torchmem.cli import main
from torchmem.envs import env_spec, make_env
from torchmem.envs.crafter import DOWN, LEFT, MEANINGS, RIGHT, UP, VITALS, world_action
from torchmem.envs.crafter_config import CrafterConfig
from torchmem.envs.crafter_game import Game
from torchmem.envs.crafter_map import read_map

NUMBER = {name: i for i, name in enumerate(MEANINGS)}
FROM_CONTENT = [NUMBER[name] for name in ("tree", "coal", "iron", "diamond")]
ROOM = """
#########~~~
#..T.....~~~
#.P......~~~
#....C...:::
#.......Z%%%
#___S___ttff
#ccc.iii.ddd
#...........
############
"""


def first(seed: int = 0, **kwargs):
    world = make_env("crafter", **kwargs)
    seen, info = world.reset(seed=seed)
    return world, seen["image"], info["truth"]


def creatures(world) -> list[str]:
    return [type(one).__name__ for one in world._game._world.objects]


def test_the_area_is_the_size_of_the_world():
    for area, size in ((20, (20, 20)), ([12, 30], (30, 12))):
        _, _, truth = first(area=area)
        assert truth["materials"].shape == size
        assert truth["pos"].tolist() == [size[1] // 2, size[0] // 2]
    assert not env_spec("crafter", area=20).levels and env_spec("crafter", night_noise="own").levels


def test_materials_are_the_world_that_is_seen():
    """The view is a piece of the map, but for creatures; and the map follows what the player takes."""
    world, _, truth = first(seed=1, map=ROOM)
    x, y = truth["pos"]
    whole = np.pad(truth["materials"], ((3, 3), (4, 4)))[y : y + 7, x : x + 9]
    bare = truth["semantic"] < NUMBER["player"]
    np.testing.assert_array_equal(truth["semantic"][bare], whole[bare])
    assert MEANINGS[truth["materials"][1, 3]] == "tree"
    for action in (UP, RIGHT):  # to (2, 1), then towards the tree at (3, 1)
        truth = world.step(action)[-1]["truth"]
    assert truth["pos"].tolist() == [2, 1] and truth["facing"].tolist() == [1, 0] and truth["heading"] == 0
    wood = world.step(5)[-1]["truth"]
    assert wood["inventory"][5] == 1 and MEANINGS[wood["materials"][1, 3]] == "grass"
    assert [int(wood[name]) for name in VITALS] == wood["inventory"][:4].tolist()


def test_a_fixed_seed_is_one_game_for_every_seed_and_split():
    """Also the second time, when the world is put back and not generated."""
    kwargs = {"area": 24, "fixed_seed": 5, "disable_mobs": True}
    world, *_ = first(seed=1, **kwargs)
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 6, 120)
    rolls = []
    for seed in (1, 2, 2**62):
        rolls.append([world.reset(seed=seed)[0]["image"], *(world.step(int(a))[0]["image"] for a in actions)])
    np.testing.assert_array_equal(rolls[0], rolls[1])
    np.testing.assert_array_equal(rolls[0], rolls[2])
    assert not np.array_equal(rolls[0][0], first(seed=1, area=24, fixed_seed=6)[1])


def test_a_fixed_layout_keeps_the_terrain_and_draws_what_grows_on_it():
    one, two = (first(seed=seed, fixed_layout=7)[2] for seed in (1, 2))
    same = one["materials"] == two["materials"]
    grows = np.isin(one["materials"], FROM_CONTENT) | np.isin(two["materials"], FROM_CONTENT)
    assert (same | grows).all() and 20 < (~same).sum()
    assert one["world"] == two["world"] == 7
    stock = first(seed=0, fixed_seed=7)[2]["materials"]  # the terrain of crafter.Env(seed=7)
    grows |= np.isin(stock, FROM_CONTENT)
    assert ((stock == one["materials"]) | grows).all() and (stock != first(seed=3)[2]["materials"]).mean() > 0.2
    both = [first(seed=seed, fixed_layout=7, fixed_seed=3)[2]["materials"] for seed in (1, 2)]
    np.testing.assert_array_equal(*both)


def test_random_spawn_is_uniform_over_free_tiles_and_leaves_the_world_alone():
    kwargs = {"area": 20, "fixed_seed": 11}
    _, _, centre = first(**kwargs)
    world = make_env("crafter", random_spawn=True, **kwargs)
    places = []
    for seed in range(300):
        truth = world.reset(seed=seed)[1]["truth"]
        np.testing.assert_array_equal(truth["materials"], centre["materials"])
        places.append(truth["pos"])
    x, y = np.array(places).T
    free = np.isin(centre["materials"], [NUMBER[name] for name in ("grass", "sand", "path")])
    assert free[y, x].all()
    expected, counts = 300 / free.sum(), np.bincount(y * 20 + x, minlength=400)
    assert ((counts - expected) ** 2 / expected)[free.ravel()].sum() < free.sum() + 5 * np.sqrt(2 * free.sum())
    np.testing.assert_array_equal(world.reset(seed=4)[1]["truth"]["pos"], places[4])


def test_mobs_are_gone_and_cows_stay():
    kwargs = {"fixed_seed": 3}
    world, *_ = first(**kwargs)
    assert {"Zombie", "Cow"} <= set(creatures(world))
    calm, *_ = first(**kwargs, disable_mobs=True)
    assert creatures(calm).count("Cow") == creatures(world).count("Cow")
    for step in range(200):
        assert not {"Zombie", "Skeleton", "Arrow"} & set(creatures(calm)), f"step {step}"
        if any(calm.step(0)[2:4]):
            break


def test_knobs_of_cows():
    def cows(steps: int = 0, **kwargs) -> float:
        count = 0
        for seed in range(4):
            world, *_ = first(seed=seed, area=32, disable_mobs=True, **kwargs)
            for _ in range(steps):
                world.step(0)
            count += creatures(world).count("Cow")
        return count / 4

    usual = cows()
    assert cows(cow_worldgen_scale=0) == 0
    assert 0.2 * usual < cows(cow_worldgen_scale=0.5) < 0.8 * usual and cows(cow_worldgen_scale=3) > 1.5 * usual
    assert cows(100, cow_worldgen_scale=0, cow_spawn_prob=0) == 0
    come = {"cow_worldgen_scale": 0, "cow_spawn_prob": 1}
    assert cows(100, **come) > 3 and cows(100, cow_span_dist=99, **come) == 0
    assert cows(100, cow_target_scale=3, **come) > 1.5 * cows(100, **come)


def test_an_island_is_one_piece_of_land_with_water_around():
    from scipy import ndimage

    kwargs = {"island": True, "area": 40, "island_border": 5}
    for seed in range(3):
        _, _, truth = first(seed=seed, **kwargs)
        water = truth["materials"] == NUMBER["water"]
        edge = np.ones((40, 40), bool)
        edge[5:35, 5:35] = False
        assert water[edge].all()
        assert 0.3 * 900 < (~water).sum() <= 0.72 * 900 + 1
        dry = np.zeros((40, 40), bool)
        dry[5:35, 5:35] = ~water[5:35, 5:35]
        assert MEANINGS[truth["materials"][20, 20]] == "grass" and ndimage.label(dry)[0][20, 20] > 0
    small = (first(**kwargs, island_fill=0.3)[2]["materials"] != NUMBER["water"]).sum()
    assert small <= 0.3 * 900 + 1
    smooth = {"island_roughness": 0.0, "island_fill": 0.5}
    shores = [first(seed=seed, **kwargs, **smooth)[2]["materials"] for seed in (1, 2)]
    y, x = np.indices((40, 40))
    assert all((shore[np.hypot(x - 19.5, y - 19.5) > 13] == NUMBER["water"]).all() for shore in shores)
    assert first(island=True, island_seed=4)[2]["world"] != 4


def test_a_drawn_world(tmp_path):
    file = tmp_path / "room.txt"
    file.write_text(ROOM)
    world, image, truth = first(map=str(file))
    assert truth["materials"].shape == (9, 12) and truth["pos"].tolist() == [2, 2]
    assert sorted(creatures(world)) == ["Cow", "Player", "Skeleton", "Zombie"]
    names = [MEANINGS[i] for i in truth["materials"][5]]
    assert names == ["stone", *["path"] * 7, "table", "table", "furnace", "furnace"]
    file.unlink()  # the spec holds the text, so that an agent can be played elsewhere
    spec = env_spec("crafter", **json.loads(json.dumps(world.env_spec.to_json()))["kwargs"])
    _, image_again, truth_again = first(**spec.kwargs)
    np.testing.assert_array_equal(image, image_again)
    assert truth_again["world"] == truth["world"] == read_map(ROOM).id
    assert creatures(first(map=ROOM, disable_mobs=True)[0]).count("Cow") == 1
    moved = {tuple(first(seed=seed, map=ROOM, random_spawn=True)[2]["pos"]) for seed in range(6)}
    assert len(moved) > 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"map": "nowhere.txt"}, "neither a file nor a map"), ({"map": "...\n..\n"}, "row 2 has 2 letters"),
        ({"map": "..x\n...\n"}, "'x' in row 1, column 3"), ({"map": "P.P\n...\n"}, "second P in row 1, column 3"),
        ({"map": "~~~\n~~~\n~~~"}, "cannot stand in the middle"), ({"map": ROOM, "area": 20}, r"area must be left out"),
        ({"map": ROOM, "island": True}, "map must be null beside"), ({"area": 5}, "between 9 and 512"),
        ({"area": [9, 9, 9]}, r"a number or \[width, height\]"), ({"egocentric_view": 4}, "odd and at least 3"),
        ({"egocentric_view": 17}, "at most a quarter of image"), ({"fixed_seed": -1}, "fixed_seed must be null or"),
        ({"island": True, "island_border": 30}, "leave 9 tiles"), ({"cow_spawn_prob": 2.0}, r"in \[0, 1\]"),
        ({"night_noise": "none"}, "one of package, own"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        CrafterConfig(**given)


def test_the_view_turns_with_the_player_and_so_do_its_moves():
    """Tile by tile: what is n ahead and m to the right is drawn n above and m right of the player."""
    kwargs = {"fixed_seed": 8, "area": 24, "disable_mobs": True, "cow_worldgen_scale": 0, "cow_spawn_prob": 0}
    ego, *_ = first(egocentric_view=9, image=72, **kwargs)
    plain, *_ = first(image=72, **kwargs)
    view = ego._game._ego
    assert (view.columns, view.rows, view.unit) == (9, 7, 8)
    rng = np.random.default_rng(1)
    tiles = 0
    for _ in range(40):
        action = int(rng.integers(1, 5))
        facing = tuple(plain._game.player.facing)
        seen, *_, info = ego.step(action)
        theirs, *_, told = plain.step(world_action(action, facing))
        np.testing.assert_array_equal(info["truth"]["pos"], told["truth"]["pos"])
        fx, fy = info["truth"]["facing"]
        for ahead in range(4):  # rows that the package's view shows too, in every direction
            for aside in (-3, -2, -1, 1, 2, 3):
                dx, dy = ahead * fx - aside * fy, ahead * fy + aside * fx
                mine = seen["image"][(6 - ahead) * 8 : (7 - ahead) * 8, (4 + aside) * 8 : (5 + aside) * 8]
                np.testing.assert_array_equal(
                    mine, theirs["image"][(3 + dy) * 8 : (4 + dy) * 8, (4 + dx) * 8 : (5 + dx) * 8])
                tiles += 1
        np.testing.assert_array_equal(seen["image"][56:], theirs["image"][56:])  # the inventory
    assert tiles == 960


def test_moves_of_the_turned_view():
    assert [world_action(a, (0, -1)) for a in (LEFT, RIGHT, UP, DOWN)] == [LEFT, RIGHT, UP, DOWN]
    assert [world_action(a, (1, 0)) for a in (LEFT, RIGHT, UP, DOWN)] == [UP, DOWN, RIGHT, LEFT]
    assert world_action(5, (1, 0)) == 5


def test_turned_pictures_do_not_tell_the_direction():
    """A meadow looks the same in all directions, unless its texture is turned too: a compass, told by the grass."""
    grass = "\n".join(["." * 31] * 31)
    for upright, kinds in ((True, 1), (False, 4)):
        seen = set()
        for action in (LEFT, RIGHT, UP, DOWN):
            world, *_ = first(map=grass, egocentric_view=7, upright_sprites=upright, cow_spawn_prob=0)
            seen.add(world.step(action)[0]["image"].tobytes())
        assert len(seen) == kinds


def test_the_night_has_a_stream_of_its_own():
    """Then the image's size does not change the game; and the noise of a step is the same however often it is drawn."""
    kwargs = {"fixed_seed": 3, "area": 24, "night_noise": "own", "disable_mobs": True}
    small, *_ = first(**kwargs)
    large, *_ = first(**kwargs, image=90, egocentric_view=5)
    stock, *_ = first(**{**kwargs, "night_noise": "package"})
    states = []
    for world in (small, large, stock):
        for _ in range(200):
            world._advance(0)
        states.append(world._game._world.random.get_state()[1])
    assert small._truth()["daylight"] < 0.5
    np.testing.assert_array_equal(states[0], states[1])
    assert not np.array_equal(states[0], states[2]), "the package draws its noise from the game"
    one = small._observe()["image"]
    np.testing.assert_array_equal(one, small._observe()["image"])
    again, *_ = first(**kwargs)
    for _ in range(200):
        seen, *_ = again.step(0)
    np.testing.assert_array_equal(one, seen["image"])


def test_every_field_is_explained_and_in_the_config_group(capsys):
    assert main(["envs", "crafter"]) == 0
    told = capsys.readouterr().out
    assert all(f"env.{field.name}=" in told for field in dataclasses.fields(CrafterConfig))


@pytest.mark.parametrize("area", [(64, 64), (40, 24)])
def test_worlds_are_the_packages_tile_by_tile(area):
    """Terrain, creatures, and the random numbers that are left: our generator draws maps, the package tile by tile."""
    game = Game(CrafterConfig(area=area))
    for seed in range(8):
        stock = crafter.Env(area=area, seed=seed)
        stock.reset()
        game.open(seed)
        ours, theirs = game._world, stock._world
        np.testing.assert_array_equal(ours._mat_map, theirs._mat_map)
        placed = [sorted((type(c).__name__, *map(int, c.pos)) for c in w.objects) for w in (ours, theirs)]
        assert placed[0] == placed[1] and len(placed[0]) > 1
        assert ours.random.uniform() == theirs.random.uniform()


def test_a_new_world_wakes_no_threads():
    """numba's own would change the number that torch uses: updates in the same process took five times as long."""
    code = """if True:
        import numpy, os
        from torchmem.envs import make_env
        def threads():
            return len(os.listdir("/proc/self/task"))
        world = make_env("crafter", area=32)
        before = threads()
        world.reset(seed=1)
        print(before, threads())
    """
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, told.stdout.split())
    assert before == after
