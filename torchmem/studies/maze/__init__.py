"""The Memory Maze probing benchmark (Pasukonis et al. 2022): what a recurrent state holds of walls and of balls.

collect.py makes sets in the published offline format, trajectories.py reads them (the published ones too), features.py
runs an agent along them, heads.py are the probes, sight.py says when a ball was last in view, study.py is all of it.
"""
