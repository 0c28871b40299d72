"""Makes ``tests.support`` importable however pytest is started, and tests alike each time, on any number of cores."""

import gc
import os
import re
import secrets
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

# Read when torch is imported, here and in every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that spin for work hold up others' where a machine is shared
# torch's compiler tries out what vectors a CPU has, in a dozen processes of its own; what is compiled here is small.
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "0"
# Containers set it: then every process that a test starts compiles all that it imports, where that was never kept.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.path.insert(0, str(Path(__file__).parents[1]))

from hypothesis import settings

from tests.support import properties  # registers the profiles

settings.load_profile(properties.FIXED)

_WISHES = (
    r"NO_COLOR|(CLI|FORCE)_?COLOR(_FORCE)?|COLUMNS|LINES|TERM|TTY_\w+|CI|PYTHONWARNINGS|\w+_PROXY|HF_(TOKEN|ENDPOINT)"
    r"|\w+_OFFLINE|(WANDB|SLURM|AWS)_\w+|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE|MASTER_(ADDR|PORT)"
)
"""Variables by which a shell says what its user or its job wants: no test is of that."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this project's tests."""
    parser.addoption(
        "--real-launcher", action="store_true", help="start every training run by DeepSpeed's launcher; 20 s more each"
    )


@pytest.hookimpl(tryfirst=True)  # before hypothesis reads its options
def pytest_configure(config: pytest.Config) -> None:
    """Tests meet the same surroundings everywhere.

    A thorough run of the property tests draws anew, from a seed that it prints and that repeats it.
    """
    sys.dont_write_bytecode = False
    os.umask(0o022)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what it starts behind it
    for name in [name for name in os.environ if re.fullmatch(_WISHES, name, re.IGNORECASE)]:
        del os.environ[name]
    if config.option.hypothesis_profile == properties.THOROUGH and config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(secrets.randbits(32))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first: the worker that got it last would work on alone."""
    items.sort(key=lambda item: item.path.name != "test_stopping.py")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: no collection of garbage goes through it, neither meanwhile nor later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        # What tests import later is not frozen: each full collection walks it, for 0.2 s, and few are needed.
        gc.set_threshold(*gc.get_threshold()[:2], 100)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """The seed of the property tests, where it is not the fixed one."""
    seed = config.option.hypothesis_seed
    return [] if seed is None else [f"property tests: to draw the same again, --hypothesis-seed={seed}"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The header again, which ``-q`` leaves out."""
    for line in pytest_report_header(config):
        terminalreporter.write_line(line)
