"""A real server on a real run folder: what it serves and refuses, what it says of a run, alive or dead."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
import yaml
from browser import serious

from conftest import tiny_study
from prefixlab.errors import UserError
from prefixlab.records import ModelRef, Resolved
from prefixlab.report import live
from prefixlab.report.live import Builder, Server, Source, allowed, listen, with_bar
from prefixlab.report.status import Counts
from prefixlab.study.progress_file import Current, ProgressFile, StatusReader, cells_of, read_progress, seconds_left
from prefixlab.study.run import load_plan
from prefixlab.study.steps import Plan, Step
from prefixlab.study.store import Store, write_text

PAGE = (
    '<!doctype html><html><head><meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'\"><title>t</title></head>"
    "<body><p>hello</p></body></html>"
)


def step(slug, kind, seconds=1.0, after=(), **inputs):
    return Step(slug=slug, id=slug, kind=kind, config={}, inputs=inputs, after=after, predicted_seconds=seconds)


STEPS = (
    step("data", "data"),
    step("generate-base", "generate"),
    step("eval-base", "eval", log="generate-base"),
    step("train-a", "train", 10.0, data="data"),
    step("generate-a", "generate", 4.0, adapter="train-a"),
    step("eval-a", "eval", log="generate-a"),
    step("train-b", "train", 10.0, data="data"),
    step("tokens-b", "tokens", 2.0, adapter="train-b"),
)


@pytest.fixture
def run(tmp_path):
    """A run folder of eight steps and two cells of which nothing is done."""
    root = tmp_path / "run"
    hardware = Resolved(
        device="cpu", dtype="float32", attention="x", threads=1, merge_adapters=True, why="a test"
    )  # fmt: skip
    model = ModelRef(name="tiny-random", path="", revision=None, fingerprint="0" * 64, note="")
    plan = Plan(
        study="tiny", signature="s", hardware=hardware, hardware_asked={}, models=(model,), steps=STEPS, summary={}
    )  # fmt: skip
    (root / "steps").mkdir(parents=True)
    (root / "study.yaml").write_text(yaml.safe_dump(tiny_study()))
    write_text(root / "plan.json", plan.model_dump_json())
    return root


def finish(run, *slugs):
    for slug in slugs:
        with Store(run).writing(slug, slug) as folder:
            (folder / "f").write_text("x")


def source(run, build=lambda: None):
    reader = StatusReader(run, load_plan)
    return Source(reader.status, reader.finished, build)


@pytest.fixture
def serve(run):
    """A function that starts a server on the run's report; all end with the test."""
    started = []

    def start(build=lambda: None, pause=0.05):
        server = Server(run / "report", source(run, build), 0, pause=pause)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.close()


def ask(server, path, method="GET", host="127.0.0.1", **more):
    """Status, headers and body, of a path sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for value in [host] if isinstance(host, str) else host:
        connection.putheader("Host", value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


def wait(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def report(run):
    folder = run / "report"
    (folder / "figures").mkdir(parents=True)
    (folder / "index.html").write_text(PAGE)
    (folder / "figures" / "a b.svg").write_text("<svg/>")
    (folder / "data.js").write_text("x = 1")
    (folder / "t.csv").write_text("a\n")
    (folder / ".lock").write_text("secret")
    (folder / "out").symlink_to(run / "study.yaml")
    (folder / "compare-b").mkdir()
    (folder / "compare-b" / "index.html").write_text(PAGE)
    return folder


def test_the_page_is_served_with_the_bar_and_stays_as_it_is(serve, report):
    server = serve()
    with urllib.request.urlopen(server.url, timeout=10) as answer:
        text, headers = answer.read().decode(), answer.headers
    assert headers["Content-Type"] == "text/html; charset=utf-8" and headers["Cache-Control"] == "no-store"
    assert re.search(
        r'<script id="prefixlab-live" data-version="\d+-\d+" src="/live.js" defer></script>\n</body>', text
    )
    assert ask(server, "/live.js")[2].startswith(b'"use strict"')
    policy = re.search(r'Policy" content="([^"]*)"', text)[1]
    assert "connect-src 'self'" in policy and "default-src 'none'" in policy  # what the page itself forbids stays so
    assert (report / "index.html").read_text() == PAGE
    assert b"prefixlab-live" not in ask(server, "/compare-b/")[2]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/figures/a%20b.svg", "image/svg+xml"),
        ("/data.js?x=1", "text/javascript; charset=utf-8"),
        ("/t.csv", "text/csv; charset=utf-8"),
        ("/status.json", "application/json"),
        ("/compare-b/", "text/html; charset=utf-8"),
    ],
)
def test_files_have_their_types(serve, report, path, kind):
    code, headers, body = ask(serve(), path)
    assert (code, headers["Content-Type"], headers["X-Content-Type-Options"]) == (200, kind, "nosniff")
    assert int(headers["Content-Length"]) == len(body) > 0 and headers["Access-Control-Allow-Origin"] is None
    assert ask(serve(), path, "HEAD")[0::2] == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        *("/../study.yaml", "/%2e%2e/study.yaml", "/..%2fstudy.yaml", "/figures/../../study.yaml", "/..\\study.yaml"),
        *("/figures", "/figures/", "/.lock", "/%2elock", "/out", "/a%00b", "/gone.html", "/data.js/", "//etc/passwd"),
        *("/" + "x" * 5000, "/%ff%fe", "/status.json/..", "/./data.js", "http://127.0.0.1/data.js", "/data.js%0a"),
    ],
)
def test_hostile_paths(serve, report, path):
    code, _, body = ask(serve(), path)
    assert code == 404 and body == b"there is no such file in the report\n"


@pytest.mark.parametrize(
    "host", ["evil.com", "127.0.0.1.evil.com", "localhost.", "", "a@127.0.0.1", "[::1", [], ["localhost"] * 2]
)
def test_other_hosts_are_refused(serve, report, host):
    for path in ("/", "/status.json", "/data.js"):
        code, _, body = ask(serve(), path, host=host)
        assert code == 403 and b"hello" not in body and b"steps" not in body


@pytest.mark.parametrize("host", ["localhost", "LocalHost:9999", "127.0.0.1:80", "[::1]:8765"])
def test_loopback_names_are_served(serve, report, host):
    assert ask(serve(), "/", host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_get_and_head(serve, report, method):
    code, headers, _ = ask(serve(), "/", method)
    assert (code, headers["Allow"]) == (405, "GET, HEAD")


def test_only_loopback_listens(serve, report):
    assert serve().server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} is taken; name another one"):
            listen(run / "report", source(run), port)
    first = listen(run / "report", source(run), None)
    second = listen(run / "report", source(run), None)
    ports = [s.server_address[1] for s in (first, second)]
    first.close()
    second.close()
    assert live.PORT <= ports[0] < ports[1] < live.PORT + live.TRIES


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("default-src 'none'", "default-src 'none'; connect-src 'self'; script-src 'self'"),
        (
            "script-src 'self' 'unsafe-inline'; connect-src 'none'",
            "script-src 'self' 'unsafe-inline'; connect-src 'self'",
        ),
    ],
)
def test_the_policy_of_the_served_page(policy, wanted):
    assert allowed(policy) == wanted


def test_a_page_without_a_body_gets_the_bar_too():
    assert with_bar("x", "1").startswith('x<script id="prefixlab-live"')
    assert with_bar("a</body>b</body>c", "1").index("<script") > with_bar("a</body>b</body>c", "1").index("b")


def test_a_page_is_built_where_there_is_none_and_again_after_each_step(serve, run):
    built = []

    def build():
        built.append(sorted(StatusReader(run, load_plan).finished()))
        (run / "report").mkdir(exist_ok=True)
        write_text(run / "report" / "index.html", PAGE.replace("hello", f"build {len(built)}"))

    server = serve(build)
    wait(lambda: b"build 1" in ask(server, "/")[2])
    version = json.loads(ask(server, "/status.json")[2])["page"]["version"]
    time.sleep(0.5)
    assert built == [[]]  # nothing new: nothing built
    finish(run, "data")
    wait(lambda: b"build 2" in ask(server, "/")[2])
    assert built[1:] == [["data"]] and json.loads(ask(server, "/status.json")[2])["page"]["version"] != version


def test_before_there_is_a_page_a_waiting_one_is_served(serve, run):
    go = threading.Event()
    server = serve(lambda: go.wait(20))
    code, _, body = ask(server, "/")
    assert code == 200 and b"There is no report of this run yet" in body and b"connect-src 'self'" in body
    wait(lambda: json.loads(ask(server, "/status.json")[2])["page"]["building"])
    go.set()


def test_a_build_that_fails_is_said_and_the_old_page_stays(serve, run, report, capfd):
    def build():
        raise ValueError("a <bad>\nstep")

    server = serve(build)
    finish(run, "data")
    wait(lambda: json.loads(ask(server, "/status.json")[2])["page"]["error"])
    assert json.loads(ask(server, "/status.json")[2])["page"]["error"] == "ValueError: a <bad> step"
    assert b"hello" in ask(server, "/")[2] and "Traceback" not in "".join(capfd.readouterr())


def test_builds_wait_for_the_pause_and_for_the_runner(run, report):
    built = []
    finish(run, "data")
    builder = Builder(report / "index.html", source(run, lambda: built.append(1)), pause=0.2)
    (report / "index.html").write_text(PAGE + " ")
    os.utime(report / "index.html", (1, 1))  # older than the step
    assert builder.look() and built == [1]
    finish(run, "generate-base")
    assert not builder.look()
    time.sleep(0.25)
    with Store(run).locked():  # a runner between two steps, who may be writing the page
        assert not builder.look()
    assert builder.look() and len(built) == 2
    finish(run, "eval-base")
    time.sleep(0.25)
    (report / "index.html").write_text(PAGE + "  ")  # the runner has built it
    assert not builder.look() and len(built) == 2


def test_what_is_said_of_a_running_study(run, monkeypatch):
    monkeypatch.setattr("prefixlab.study.progress_file.SLOW", 60.0)  # every word at once, however slow the disk
    finish(run, "data", "generate-base", "eval-base", "train-a")
    reader, store = StatusReader(run, load_plan), Store(run)
    with store.locked():
        told = ProgressFile(run, STEPS[3:])  # train-a was damaged: it is done again
        with told.running():
            assert reader.status().steps == Counts(total=8, done=3, running=0, failed=0, pending=5)
            told.begin(STEPS[3])
            told.end(STEPS[3])
            told.begin(STEPS[4])
            told.fail(STEPS[4], "no memory")
            told.fail(STEPS[5], "needs generate-a, which failed")
            told.begin(STEPS[6])
            found = reader.status()
            assert (found.state, found.now.step, found.now.predicted_seconds) == ("running", "train-b", 10.0)
            assert found.steps == Counts(total=8, done=4, running=1, failed=2, pending=1)
            assert found.cells == Counts(total=2, done=0, running=1, failed=1, pending=0)
            assert next((f.step, f.reason) for f in found.failures) == ("generate-a", "no memory")
            assert 11 < found.predicted_seconds_left <= 12
            finish(run, "train-b")
            told.end(STEPS[6])
            finish(run, "tokens-b")
            told.end(STEPS[7])
        assert reader.status().state == "running"  # it still has the folder: tables and report are written
    found = reader.status()
    assert (found.state, found.now, found.seconds_left) == ("failed", None, None)
    assert "Ended with 2 failed steps" in found.sentence and found.cells.done == 1


def test_cells_and_time_left(run):
    plan = load_plan(Store(run))
    assert cells_of(plan) == {"train-a": {"train-a", "generate-a", "eval-a"}, "train-b": {"train-b", "tokens-b"}}
    told = ProgressFile(run, STEPS)
    with told.running():
        state = read_progress(run)
    now = state.started + 100
    begun = state.model_copy(update={"done": {"data": 3.0, "generate-base": 3.0}})
    assert seconds_left(plan, begun, now) == (28.0, 84.0)  # thrice as slow as predicted
    first = state.model_copy(update={"done": {"data": 3.0}})
    assert seconds_left(plan, first, now) == (29.0, 29.0)  # 1 of 30 predicted seconds is too little to judge by
    current = Current(slug="train-a", started=now - 6, predicted_seconds=10.0, share=0.25)
    begun = begun.model_copy(update={"running": (current,), "failed": {"train-b": "x"}})
    # 1 + 4 + 1 s wait, tokens-b never will; 4 s of the step's 10 are left, or 18 at its own pace.
    assert seconds_left(plan, begun, now) == (10.0, 18.0 + 18.0)


def test_a_word_that_waits_is_written_without_another(run, monkeypatch):
    """Where writing is slow words are skipped; the last of them may not be lost until the next step ends."""
    monkeypatch.setattr("prefixlab.study.progress_file.SLOW", 0.0)
    monkeypatch.setattr("prefixlab.study.progress_file.HUSH", 200.0)
    told = ProgressFile(run, STEPS)
    with told.running():
        told.begin(STEPS[0])
        told.fail(STEPS[0], "why")
        until = time.monotonic() + 20
        while not read_progress(run).failed and time.monotonic() < until:
            time.sleep(0.02)
        assert read_progress(run).failed == {STEPS[0].slug: "why"} and read_progress(run).finished is None
    time.sleep(0.5)
    assert read_progress(run).finished is not None, "no late word over the last one"


def test_a_dead_runner_is_stopped_not_running(run):
    code = (
        "import sys, time; from pathlib import Path; from prefixlab.study.store import Store\n"
        "from prefixlab.study.progress_file import ProgressFile; from prefixlab.study.run import load_plan\n"
        "store = Store(Path(sys.argv[1])); steps = load_plan(store).steps\n"
        "with store.locked():\n  told = ProgressFile(store.root, steps)\n  with told.running():\n"
        "    told.begin(steps[0]); time.sleep(60)\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", code, str(run)])
    reader = StatusReader(run, load_plan)
    try:
        wait(lambda: reader.status().now is not None, 60)
        assert reader.status().state == "running" and read_progress(run).pid == runner.pid
    finally:
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    found = reader.status()
    assert (found.state, found.now, found.steps.running, found.steps.pending) == ("stopped", None, 0, 8)
    assert (
        f"process {runner.pid} on {socket.gethostname()}" in found.sentence and "gone without a word" in found.sentence
    )


def test_other_ends_of_a_run(run):
    reader = StatusReader(run, load_plan)
    assert reader.status().sentence.startswith("Stopped: 8 steps are not done")
    with pytest.raises(UserError), ProgressFile(run, STEPS).running():
        raise UserError("no space left\non the disk")
    assert reader.status().sentence.startswith("Stopped: no space left on the disk.")
    finish(run, *(s.slug for s in STEPS))
    assert reader.status().sentence == "Finished."
    (run / "progress.json").write_text("{")
    assert reader.status().state == "finished"
    (run / "plan.json").unlink()
    assert StatusReader(run, load_plan).status().sentence.startswith("Stopped before there was a plan")


def test_looking_at_the_lock_does_not_keep_a_runner_out(run):
    store, stop = Store(run), threading.Event()

    def look():
        while not stop.is_set():
            store.in_use()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(200):
            with store.locked():
                assert store.in_use()
    finally:
        stop.set()
        looking.join()
    assert not store.in_use()
    with store.locked(), pytest.raises(UserError, match="in use by another run"), Store(run).locked():
        pass


def test_view_needs_a_run(call, tmp_path):
    done = call("view", tmp_path, "--no-browser")
    assert done.returncode == 2 and "is no run folder" in done.stderr


@pytest.mark.slow
def test_a_live_study_and_the_viewer(tmp_path):
    """The commands themselves: the viewer starts before there is a page, follows the run to its end, ends at Ctrl-C."""
    study = tiny_study(
        arms=[{"prefixes": "reasoning", "position": "opening", "ratios": [1], "controls": []}], analysis={}
    )
    del study["capabilities"]["safety"]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "prefixlab"]
    running = subprocess.Popen([*command, "run", "s.yaml", "--out", "run", "--quiet"], cwd=tmp_path)
    viewer = None
    try:
        wait((tmp_path / "run" / "study.yaml").exists, 120)
        viewer = subprocess.Popen(
            [*command, "view", "run", "--no-browser"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        url = viewer.stdout.readline().split()[0]
        seen = []

        def over():
            time.sleep(0.2)
            with urllib.request.urlopen(url + "status.json", timeout=10) as answer:
                seen.append(json.loads(answer.read()))
            return running.poll() is not None and seen[-1]["state"] != "running"

        wait(over, 300)
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert "prefixlab: tiny" in answer.read().decode()
    finally:
        running.kill()
        if viewer is not None:
            viewer.send_signal(signal.SIGINT)
            said = viewer.communicate(timeout=60)
    assert running.returncode == 0 and viewer.returncode == 0 and said[1] == "", said
    assert seen[-1]["state"] == "finished"
    assert seen[-1]["cells"] == {
        "total": 2,
        "done": 2,
        "running": 0,
        "failed": 0,
        "pending": 0,
    }
    during = [s for s in seen if s["now"]]
    assert during and all(s["state"] == "running" and s["seconds_left"] >= 0 for s in during)
    assert {s["page"]["error"] for s in seen} == {""}
    told = read_progress(tmp_path / "run")
    assert told.finished and not told.failed and set(told.done) == set(told.pending)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium: install Debian's chromium")
def test_the_bar_in_a_browser(serve, run, report):
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    store, told, hostile = Store(run), ProgressFile(run, STEPS), "<img src=x onerror=document.title=1>"
    server, said = serve(lambda: (report / "index.html").write_text(PAGE.replace("hello", "news"))), []
    with store.locked(), told.running(), api.sync_playwright() as play:
        told.begin(STEPS[0])
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 700})
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.goto(server.url)
        bar = page.locator("#live-bar")
        api.expect(bar).to_contain_text("Running. 0 of 8 steps; 0 of 2 cells.")
        api.expect(bar).to_contain_text("Now data, since")
        assert bar.locator("[aria-live=polite]").count() == 3 and page.locator("progress").get_attribute("max") == "8"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        finish(run, "data")
        told.end(STEPS[0])
        told.begin(STEPS[1])
        told.fail(STEPS[1], hostile)
        told.begin(STEPS[3])
        button = page.get_by_role("button", name="New results: reload")
        api.expect(button).to_be_visible(timeout=15000)
        api.expect(bar).to_contain_text("1 of 8 steps, 1 failed", timeout=15000)
        bar.locator("summary").click()
        assert [f for f in serious(page) if f[0] != "html-has-lang"] == []  # which the page under the bar has not
        api.expect(bar.locator("li")).to_have_text(f"generate-base: {hostile}")
        assert page.locator("p").inner_text() == "hello" and page.title() == "t"
        button.click()
        api.expect(page.locator("p")).to_have_text("news")
        api.expect(button).to_have_count(0)
        browser.close()
    assert said == []
