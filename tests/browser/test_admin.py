"""Django's admin and the browsable API of Django REST framework, as a person uses them."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

By = pytest.importorskip("selenium.webdriver.common.by", reason="selenium is not installed").By
ui = pytest.importorskip("selenium.webdriver.support.ui")

pytestmark = pytest.mark.no_database


class Site:
    """What a person does on the site."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self, path: str) -> None:
        self.browser.get(self.address + path)

    def find(self, css: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def write(self, name: str, value: str) -> None:
        field = self.find(f"[name='{name}']")
        field.clear()
        field.send_keys(value)

    def choose(self, name: str, text: str) -> None:
        ui.Select(self.find(f"select[name='{name}']")).select_by_visible_text(text)

    def press(self, css: str) -> None:
        """Press what leads to another page, and wait until that is there."""
        before = self.find("html")
        self.find(css).click()
        ui.WebDriverWait(self.browser, 60).until(lambda _: self.find("html") != before)

    def text(self) -> str:
        text: str = self.find("body").text
        return text

    def rows(self) -> list[str]:
        return [row.text for row in self.browser.find_elements(By.CSS_SELECTOR, "#result_list tbody tr")]

    def threads(self) -> list[str]:
        with urllib.request.urlopen(f"{self.address}/state") as answer:
            started: list[str] = json.load(answer)["threads"]
            return started


def assert_only_by_in_thread(threads: list[str]) -> None:
    """What starts are threads of the event loop's executor, for the password and for static files."""
    assert all("asyncio/threads.py" in thread for thread in threads), threads


@pytest.fixture(scope="module")
def site(browser: Any, address: str) -> Site:
    site = Site(browser, address)
    site.open("/admin/")
    site.write("username", "ada")
    site.write("password", "secret")
    site.press("[type=submit]")
    assert "Site administration" in site.text()
    return site


def test_the_admin_is_used_and_no_thread_starts_but_for_hashing_and_files(site: Site) -> None:
    site.open("/admin/shop/owner/add/")
    site.write("name", "Bob")
    site.write("accounts-0-balance", "5")  # the inline
    site.press("[name=_save]")
    assert "was added successfully" in site.text()

    site.open("/admin/shop/account/add/")
    site.choose("owner", "Bob")  # the foreign key
    site.write("balance", "70")
    site.press("[name=_save]")
    site.open("/admin/shop/owner/add/")
    site.write("name", "Eve")
    site.write("accounts-0-balance", "900")
    site.press("[name=_save]")

    site.open("/admin/shop/account/")
    assert len(site.rows()) == 3
    site.write("q", "Bob")
    site.press("#changelist-search [type=submit]")
    assert [row.split()[-1] for row in site.rows()] == ["70", "5"]
    site.open("/admin/shop/account/")
    site.press("#changelist-filter a[href*='owner__id__exact=2']")
    assert [row.split()[-2:] for row in site.rows()] == [["Eve", "900"]]

    site.press("#result_list tbody th a")
    site.press("a.deletelink")
    assert "Are you sure" in site.text()
    site.press("#content form [type=submit]")
    assert "was deleted successfully" in site.text()
    site.open("/admin/shop/account/")
    assert len(site.rows()) == 2

    assert_only_by_in_thread(site.threads())


def test_a_transaction_of_the_admin_that_fails_leaves_nothing(site: Site) -> None:
    site.open("/admin/shop/owner/add/")
    site.write("name", "Fails")
    site.write("accounts-0-balance", "1")
    site.press("[name=_save]")
    assert "Server Error (500)" in site.text()
    site.open("/admin/shop/owner/?q=Fails")
    assert site.rows() == []


def test_the_browsable_api_is_used(site: Site) -> None:
    site.open("/api/owners/")
    assert "Owner Views List" in site.text()
    site.write("name", "Dan")
    site.press("form.form-horizontal button.btn-primary")
    assert "HTTP 201 Created" in site.text()
    site.open("/api/owners/?format=api")
    assert '"Dan"' in site.text()
    assert_only_by_in_thread(site.threads())
