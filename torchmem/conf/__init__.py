"""Hydra groups as YAML: differences from the dataclasses only.

Order of strength: size < agent < env < trainer < preset < command line.
"""
