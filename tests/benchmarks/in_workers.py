"""What tests have workers do, apart from the tests: a worker imports the module of its work."""

import json
import os
import time

from benchmarks.record.workers import held_alone, usable_cores


def describe_and_fail_once(folder):
    """Write what this worker is into the folder; the first one that is done fails."""
    import jax

    text = json.dumps({"cores": usable_cores(), "cache": jax.config.jax_compilation_cache_dir})
    (folder / f"{os.getpid()}.json").write_text(text)
    try:
        (folder / "failed").touch(exist_ok=False)
    except FileExistsError:
        return
    raise ZeroDivisionError("the first one")


def hold_and_wait(folder):
    """Hold the lock of a cell in the folder for longer than any test."""
    with held_alone("cell", folder):
        (folder / "holds").touch()
        time.sleep(600)
