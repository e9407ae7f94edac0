from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

TILES = "#matrix a.tile"


def shown(page) -> int:
    return page.locator(f"{TILES}:visible").count()


def focused(page) -> str:
    return page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.id")


def test_it_opens_from_the_disk_and_says_the_verdict(open_page):
    page = open_page()
    verdict = (
        "Works on 4 of 8 points. Fails on kernel 6.1 with virtio-iommu: 1 scenario (dma/scenario_1). "
        "Not judged on QEMU 11.1, kernel 6.12, intel-iommu: 1 error of class boot (usdm/late). "
        "Known to fail: dma/scenario_2 on QEMU 7.2, kernel 6.1, intel-iommu."
    )
    assert page.locator("h1").inner_text().endswith(verdict)
    assert verdict in page.title()
    assert shown(page) == 65
    assert page.locator("#shown").inner_text() == "65 cells"


def test_filters_by_text_axis_and_outcome_and_the_address_keeps_them(open_page):
    page = open_page()
    page.fill("#q", "dma/")
    assert shown(page) == 40
    page.select_option("[data-axis=qemu]", "7.2")
    assert shown(page) == 20
    page.uncheck("[data-outcome=pass]")
    assert shown(page) == 2
    assert page.locator("#shown").inner_text() == "2 of 65 cells"
    kept = page.evaluate("location.hash")
    again = open_page(kept)
    assert shown(again) == 2
    assert again.input_value("#q") == "dma/"
    again.click("#reset")
    assert shown(again) == 65


def test_headings_of_what_is_hidden_are_hidden_too(open_page):
    page = open_page("#viommu=virtio")
    heads = page.locator("#matrix thead tr").nth(2).locator("th[data-from]:visible")
    assert heads.all_inner_texts() == ["virtio"] * 4
    spans = page.locator("#matrix thead tr").nth(0).locator("th[data-from]:visible")
    assert [one.get_attribute("colspan") for one in spans.all()] == ["2", "2"]


def test_the_keyboard_is_enough(open_page):
    page = open_page()
    page.keyboard.press("/")
    assert focused(page) == "q"
    page.keyboard.type("scenario_1")
    page.locator(f"{TILES}:visible").first.focus()
    page.keyboard.press("End")
    assert focused(page) == "dma/scenario_1, QEMU 7.2, kernel 6.1, virtio-iommu: failed"
    page.keyboard.press("ArrowLeft")
    assert focused(page) == "dma/scenario_1, QEMU 7.2, kernel 6.1, intel-iommu: passed"
    page.fill("#q", "")
    page.locator(f"{TILES}[data-n='9']").focus()
    page.keyboard.press("ArrowDown")
    assert focused(page).startswith("dma/scenario_2, QEMU 11.1, kernel 6.12, virtio-iommu")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_selector("#panel[open] #panel-body[data-cell='9']")
    assert page.locator("#panel-body h3").inner_text().startswith("✓ dma/scenario_1")
    page.keyboard.press("Escape")
    page.wait_for_selector("#panel:not([open])", state="hidden")
    assert focused(page).startswith("dma/scenario_1, QEMU 11.1, kernel 6.12, virtio-iommu")
    page.keyboard.press("Tab")
    assert page.locator(f"{TILES}[tabindex='0']").count() == 1


def test_a_packed_cell_and_a_failing_one_are_opened_with_all_they_have(open_page):
    page = open_page()
    page.click(f"{TILES}[data-p] >> nth=0")
    body = page.locator("#panel-body[data-cell]")
    body.wait_for()
    for part in ("Steps", "IOVA space", "Faults", "Time", "Environment"):
        assert body.get_by_role("heading", name=part, exact=True).count() == 1, part
    assert body.locator("svg.picture").count() == 2
    assert "harness run" in body.locator(".command code").inner_text()
    page.click("#next")
    page.wait_for_selector("#panel-body[data-cell='1']")
    page.click("#close")
    page.locator(f"{TILES}.fail").first.click()
    page.wait_for_selector("#panel-body .why")
    assert "expected one fault, observed two" in body.inner_text()
    assert body.locator("tr.bad").count() > 0


def test_a_link_to_a_cell_opens_it(open_page):
    page = open_page("#cell=20")
    page.wait_for_selector("#panel[open] #panel-body[data-cell='20']")


def test_the_command_is_copied(open_page):
    page = open_page("#cell=20", permissions=["clipboard-read", "clipboard-write"])
    page.wait_for_selector("#panel-body[data-cell='20']")
    # The word stays for 1.5 s, so it is watched for; wait_for_function polls by eval, which the page's policy refuses.
    page.evaluate("""() => {
        const button = document.querySelector("#panel-body [data-copy]");
        window.said = new Promise((done) => {
            new MutationObserver(() => done(button.textContent)).observe(button, {childList: true});
        });
    }""")
    page.click("#panel-body [data-copy]")
    assert page.evaluate("window.said") == "copied"
    assert page.evaluate("navigator.clipboard.readText()") == "harness run dma/scenario_2"


def test_without_a_script_the_failures_are_there(open_page):
    page = open_page(java_script_enabled=False)
    page.locator("#failures summary").first.click()
    text = page.locator("#failures").inner_text()
    assert "dma/scenario_1" in text
    assert page.locator("#packed").is_visible()
    assert not page.locator("#filters").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page, scheme):
    page = open_page(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for _ in range(2):
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        assert [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found] == []
        # Once more with a packed cell open.
        page.locator(f"{TILES}[data-p]").first.evaluate("(link) => link.click()")
        page.wait_for_selector("#panel-body[data-cell]")
        page.evaluate("document.getAnimations().forEach((one) => one.finish())")


def test_the_theme_follows_the_system_until_it_is_chosen(open_page):
    page = open_page(color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.click("#theme")
    light = page.evaluate(paper)
    assert page.locator("#theme").inner_text() == "theme: light"
    assert light != dark
    page.reload()
    assert page.evaluate(paper) == light


@pytest.mark.parametrize(
    ("name", "scheme", "width", "cell"),
    [
        ("light", "light", 1280, ""),
        ("dark", "dark", 1280, "#cell=9"),
        ("narrow", "light", 400, ""),
        ("narrow-cell", "dark", 400, "#cell=9"),
    ],
)
def test_pictures_and_nothing_runs_over_the_edge(open_page, screenshots: Path, name, scheme, width, cell):
    page = open_page(cell, color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce")
    if cell:
        page.wait_for_selector("#panel-body[data-cell]")
    # Not the full page: that makes a surface as tall as the page, which Chromium refuses now and then on a busy host.
    page.screenshot(path=screenshots / f"{name}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate("document.getElementById('panel').scrollWidth - document.getElementById('panel').clientWidth")
    assert wide <= 0


def test_it_prints_with_the_failures_unfolded(open_page):
    page = open_page()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#failures details:not([open])").count() == 0
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible()
