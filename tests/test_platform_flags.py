"""Compiler flags: set only on request, and where this JAX knows them."""

import os
import subprocess
import sys

import pytest

from wsa_jax import platform_flags

FLAG = "--xla_cpu_experimental_onednn_custom_call"


@pytest.fixture
def no_flags(monkeypatch):
    """An environment without flags, restored afterwards."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv(platform_flags.OPT_OUT, raising=False)
    return monkeypatch


def test_keeps_the_user_s_other_flags(no_flags):
    no_flags.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    assert platform_flags.set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == f"--xla_cpu_enable_fast_math=false {FLAG}=true"


def test_the_user_s_choice_and_the_opt_out_win(no_flags):
    no_flags.setenv("XLA_FLAGS", f"{FLAG}=false")
    assert not platform_flags.set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == f"{FLAG}=false"
    no_flags.delenv("XLA_FLAGS")
    no_flags.setenv(platform_flags.OPT_OUT, "1")
    assert not platform_flags.set_cpu_flags()
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.parametrize("version", ["0.9.2", "0.13.0"])
def test_unknown_releases_get_no_flag(no_flags, version):
    # XLA aborts the process on a flag that it does not know.
    no_flags.setattr(platform_flags.importlib.metadata, "version", lambda name: version)
    assert not platform_flags.set_cpu_flags()
    assert "XLA_FLAGS" not in os.environ


def test_only_the_call_sets_the_flag_and_xla_accepts_it(no_flags):
    program = (
        "import os, jax, wsa_jax; from wsa_jax.platform_flags import set_cpu_flags; "
        "print('XLA_FLAGS' in os.environ, set_cpu_flags(), jax.numpy.ones(2).sum())"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ.copy())
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["False", "True", "2.0"]
