"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from lorakit._execution import one_thread

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The first draw of a strategy imports torch, which can outlast a deadline on a busy machine. In CI the same examples
# are drawn in every run, so that a change is judged by what it changes; runs by hand go on looking for new ones.
settings.register_profile(
    "lorakit",
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("lorakit")

torch.set_num_threads(1)  # tests run side by side, one process a core

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def one_blas_thread() -> Iterator[None]:
    """One thread in NumPy's and SciPy's algebra too: of many, most would wait where the matrices are small."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def real_adapter_paths() -> dict[str, Path]:
    """The trained adapters that ship with the examples, by name."""
    return {path.parent.name: path.parent for path in sorted((ROOT / "examples" / "adapters").glob("*/*.safetensors"))}


@pytest.fixture(scope="session")
def browser_or_none() -> Iterator[Any]:
    """Chromium without a window; None where it is not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        yield None
        return
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="session")
def browser(browser_or_none: Any) -> Any:
    """The same; the test is skipped where it is not installed."""
    if browser_or_none is None:
        pytest.skip("Chromium and its driver are not installed: Debian's packages chromium and chromium-driver")
    return browser_or_none
