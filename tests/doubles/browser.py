"""A headless Chromium, driven over WebDriver, with what tests ask of a page."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.wait import wait_until

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
DRIVER = os.environ.get("CHROMEDRIVER", shutil.which("chromedriver") or "/usr/bin/chromedriver")


class Page:
    """One browser window. Conditions are JavaScript expressions; scripts never change the page behind its back."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def get(self, expression: str) -> Any:
        """The value of an expression."""
        return self.driver.execute_script(f"return ({expression})")

    def until(self, expression: str, seconds: float = 60.0) -> Any:
        """Its value as soon as it is truthy; says what the page shows when it never is."""
        found: list[Any] = [None]

        def holds() -> bool:
            found[0] = self.get(expression)
            return bool(found[0])

        try:
            wait_until(holds, seconds, expression)
        except TimeoutError as error:
            text = self.get("document.body.innerText")
            raise AssertionError(f"{error}\nthe page shows:\n{text}\nits console: {self.console()}") from None
        return found[0]

    def click(self, selector: str) -> None:
        """Click as a user does."""
        self.driver.find_element("css selector", selector).click()

    def size(self, width: int, height: int, *, dark: bool) -> None:
        """Be a screen of so many pixels, whose user likes it light or dark."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})

    def shot(self, file: Path) -> Path:
        """Keep a picture of what is seen."""
        assert self.driver.save_screenshot(str(file))
        return file

    def console(self) -> list[str]:
        """What the page complained about since it was last asked: also what its policy has forbidden.

        Not a picture that was gone before it could be fetched: a preview ends with its job.
        """
        said = [each["message"] for each in self.driver.get_log("browser") if each["level"] == "SEVERE"]
        return [each for each in said if "/preview?" not in each]


def missing() -> str:
    """What this machine lacks for a browser; empty when it has it all."""
    lacking = [path for path in (CHROMIUM, DRIVER) if not Path(path).exists()]
    return f"needs Debian's chromium and chromium-driver; not there: {', '.join(lacking)}" if lacking else ""


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with an empty profile; skips where there is none."""
    if reason := missing():
        pytest.skip(reason)
    from selenium import webdriver  # noqa: PLC0415 (takes a while, and only the tests of pages need it)
    from selenium.webdriver.chrome.service import Service  # noqa: PLC0415

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run",
                     "--disable-background-networking", "--hide-scrollbars", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Page(driver)
    finally:
        driver.quit()
