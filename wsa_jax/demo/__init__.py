"""Demo on embedded real data: why averages fail, what mends them, and what WSA does there."""

from wsa_jax.demo.experiments import DemoSettings, check_settings, demo_steps, run_demo
from wsa_jax.demo.report import save_demo, tell_demo

__all__ = ["DemoSettings", "check_settings", "demo_steps", "run_demo", "save_demo", "tell_demo"]
