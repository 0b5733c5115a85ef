"""The report as a browser shows it: nothing fetched, nothing complained about, hostile text as text, by keyboard."""

import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.record import append
from tests.bench_records import all_cases, cell, fit_record, step_record

pytestmark = pytest.mark.xdist_group("chromium")  # one browser, not one for each worker
WAIT_S = 40.0
PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
HOSTILE = (
    "<script>window.pwned=1</script>",
    '<img src="http://ringmark.invalid/x.png" onerror="window.pwned=1">',
    "]]></style></svg><script>window.pwned=1</script>",
    "</td></table><iframe src='http://ringmark.invalid'></iframe>",
    "{{ 7 * 7 }} &lt;b&gt; $x^2$",
    "\u202egnp.exe\u2066",
)
"""Names of models."""
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-breakpad"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"),
)


class Browser:
    """A headless Chromium that is spoken to over a pipe (the DevTools protocol), with a profile of its own."""

    def __init__(self, program: str, profile: Path) -> None:
        (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
        # Above 9, so that moving one to 3 does not close the other.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (their_in, their_out)]
        log = os.open(profile.with_suffix(".log"), os.O_WRONLY | os.O_CREAT, 0o600)
        moves = [(os.POSIX_SPAWN_DUP2, end, to) for end, to in ((log, 1), (log, 2), (theirs[0], 3), (theirs[1], 4))]
        words = [program, *FLAGS, f"--user-data-dir={profile}"]
        home = {"HOME": str(profile.parent), "XDG_CONFIG_HOME": str(profile.parent)}
        self.pid = os.posix_spawn(program, words, os.environ | home, file_actions=moves, setsid=True)
        for end in (their_in, their_out, log, *theirs):
            os.close(end)
        self._out, self._in, self._buffer = our_out, our_in, b""
        self._numbers, self.events = count(1), list[dict[str, Any]]()
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.page(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def _message(self) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command -> its result; what happened meanwhile is kept in `events`."""
        number = next(self._numbers)
        order = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(order).encode() + b"\0")
        while (answer := self._message()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    def page(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to the page."""
        return self.call(method, self.session, **parameters)

    def open(self, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
        """Show a file in a window of that width, in light or dark, and wait until it is there."""
        self.events.clear()
        self.page(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.page("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())
        self.ask(PAINTED)  # keys that come earlier are lost

    def ask(self, expression: str) -> Any:
        """What a JavaScript expression is in the page; of a promise, what it comes to."""
        answer = self.page("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def named(self, *methods: str) -> list[dict[str, Any]]:
        """Events since the page was opened."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def open_requests(self) -> set[str]:
        """Requests of which the end is not told yet."""
        begun = {each["requestId"] for each in self.named("Network.requestWillBeSent")}
        return begun - {each["requestId"] for each in self.named("Network.loadingFailed", "Network.loadingFinished")}

    def close(self) -> None:
        """End this browser and its children, and no other."""
        os.close(self._out)
        os.close(self._in)
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("expected a chromium in CI, got none; apt-get install chromium")
        pytest.skip("no chromium here")
    found = Browser(program, tmp_path_factory.mktemp("chromium") / "profile")
    yield found
    found.close()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a folder with every case, some of whose names are hostile."""
    folder = tmp_path_factory.mktemp("full")
    hostile = [fit_record(cell=fit_record().cell | {"model": name}) for name in HOSTILE]
    hostile += [step_record(cell(n, 10, strategy, HOSTILE[2]), 0.1) for n, strategy in ((1, "single"), (2, "ddp"))]
    hostile.append(replace(fit_record(cell={"model": "x"}), status="failed", error=HOSTILE[0], raw={}))
    for record in [*all_cases(), *hostile]:
        append(folder, record)
    report.write_report(folder)
    return folder / report.HTML


def test_nothing_is_fetched_and_nothing_complained_about(browser: Browser, full: Path) -> None:
    browser.open(full)
    requests = [each["request"]["url"] for each in browser.named("Network.requestWillBeSent")]
    assert requests == [full.as_uri()]
    complaints = browser.named("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert complaints == []
    assert browser.ask("performance.getEntriesByType('resource').length") == 0


def test_the_policy_forbids_scripts_and_the_network_even_to_what_gets_into_the_page(
    browser: Browser, full: Path
) -> None:
    browser.open(full)
    browser.ask("document.body.insertAdjacentHTML('beforeend', '<img src=\"https://ringmark.invalid/x.png\">')")
    browser.ask("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.in = 1'}))")
    deadline = time.monotonic() + WAIT_S
    while len(browser.named("Log.entryAdded")) < 2 or browser.open_requests():
        assert time.monotonic() < deadline, browser.events
        browser.ask("new Promise(done => setTimeout(done, 50))")
    assert browser.ask("window.in === undefined")
    refused = [each["entry"]["text"] for each in browser.named("Log.entryAdded")]
    refused += [str(each) for each in browser.named("Runtime.consoleAPICalled")]
    sent = [each["request"]["url"] for each in browser.named("Network.requestWillBeSent")]
    gone = {each["requestId"]: each.get("blockedReason") for each in browser.named("Network.loadingFailed")}
    assert any("Content Security Policy" in text for text in refused), refused
    assert len([url for url in sent if url.startswith("http")]) == sum(reason == "csp" for reason in gone.values())


def test_plots_are_drawn_and_named_and_tables_are_whole(browser: Browser, full: Path) -> None:
    browser.open(full)
    sizes = browser.ask("[...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)")
    assert len(sizes) == len(browser.ask("[...document.querySelectorAll('figure')].map(f => f.textContent)")) > 12
    assert min(sizes) > 100
    names = browser.ask("[...document.querySelectorAll('figure svg')].map(s => s.getAttribute('aria-label'))")
    assert all(len(name) > 30 for name in names)
    torn = "[...document.querySelectorAll('tr')].filter(r => r.cells.length != r.closest('table').rows[0].cells.length)"
    assert browser.ask(f"{torn}.length") == 0


def test_hostile_names_are_text(browser: Browser, full: Path) -> None:
    browser.open(full)
    assert browser.ask("window.pwned === undefined")
    assert browser.ask("document.querySelectorAll('script, img, iframe, object, embed, form, b').length") == 0
    text = browser.ask("document.body.textContent")
    for name in HOSTILE[:-1]:
        assert name in text
    assert "\\u202egnp.exe\\u2066" in text
    assert browser.ask("document.body.textContent.search(/[\\u202a-\\u202e\\u2066-\\u2069]/)") == -1
    assert browser.ask("document.querySelectorAll('svg *, style').length") > 1000
    assert browser.ask("[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
                       ".filter(n => n.startsWith('on')).length") == 0  # fmt: skip


@pytest.mark.parametrize("width", [1280, 400])
def test_every_table_that_scrolls_is_reached_and_scrolled_by_keyboard(browser: Browser, full: Path, width: int) -> None:
    browser.open(full, width=width)
    wanted = browser.ask("document.querySelectorAll('.scroll').length")
    reached = set()
    for _ in range(wanted):
        for kind in ("keyDown", "keyUp"):
            browser.page("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.add(browser.ask("document.activeElement.getAttribute('aria-labelledby')"))
    assert len(reached - {None}) == wanted > 10
    hidden = "[...document.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 1 && "
    hidden += "['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX) && e.tabIndex < 0)"
    assert browser.ask(f"{hidden}.map(e => e.outerHTML.slice(0, 80))") == []


@pytest.mark.parametrize("width", [1280, 400])
def test_no_page_is_wider_than_its_window(browser: Browser, full: Path, width: int) -> None:
    browser.open(full, width=width)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    clipped = "[...document.querySelectorAll('figure svg')].flatMap(s => [...s.querySelectorAll('text')]"
    clipped += ".filter(t => { const a = t.getBoundingClientRect(), b = s.closest('figure').getBoundingClientRect();"
    clipped += " return a.left < b.left - 1 || a.right > b.right + 1; }).map(t => t.textContent))"
    assert browser.ask(clipped) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_light_and_dark(browser: Browser, full: Path, scheme: str) -> None:
    browser.open(full, scheme=scheme)
    seen = browser.ask(
        "['.fact .value', '.details', 'td', 'th', '.note', '.warning li', 'figcaption', 'svg text', 'tr.bad td']"
        ".map(s => document.querySelector(s)).map(e => { let g = e; const c = getComputedStyle(e);"
        " while (getComputedStyle(g).backgroundColor == 'rgba(0, 0, 0, 0)') g = g.parentElement;"
        " return [e.tagName == 'text' ? c.fill : c.color, getComputedStyle(g).backgroundColor]; })"
    )
    ratios = [contrast(*pair) for pair in seen]
    assert min(ratios) >= 4.5, list(zip(seen, ratios, strict=True))
    dark = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (luminance(dark) < 0.1) == (scheme == "dark")


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`. Source: WCAG 2.2."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Contrast of two colours, 1 to 21. Source: WCAG 2.2."""
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
