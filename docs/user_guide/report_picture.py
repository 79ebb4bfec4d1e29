"""Make report_example.html and report.png, from the adapters of the examples: python docs/user_guide/report_picture.py

The picture needs Chromium with its driver, and selenium.
"""

import base64
from pathlib import Path

import lorakit
from lorakit import LegoMerger, load_adapters

HERE = Path(__file__).parent
ADAPTERS = HERE.parents[1] / "examples" / "adapters"
WIDTH, HEIGHT = 1200, 980


def make():
    adapters = load_adapters([ADAPTERS / name for name in ("icd10", "langid_r16", "wn_noun_r4")])
    merger = LegoMerger(k=16, scale="match", random_state=0).fit(adapters)
    return lorakit.report(adapters, merger)


def picture(page):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False},
        )
        browser.get(page.as_uri())
        return base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {})["data"])
    finally:
        browser.quit()


if __name__ == "__main__":
    path = make().save(HERE / "report_example.html", overwrite=True)
    (HERE / "report.png").write_bytes(picture(path))
