"""Room 1, worlds. Importing it registers the gymnasium ids; no simulator is loaded until a world is made."""

from torchmem.envs.make import CONFIGS, env_spec, make_env, register

__all__ = ["CONFIGS", "env_spec", "make_env", "register"]

register()
