"""Placeholder until the measured version lands."""


def set_cpu_flags() -> None:
    """Do nothing yet."""
