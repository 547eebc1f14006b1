"""The pages: whole, linked, escaped; and in a browser: filters, sorting, nothing wider than a phone."""

import html
import json
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from synthetic import PAPER, drawn

from repro.cli import main
from repro.results.docs import renew
from repro.results.files import dump_rows, read_summaries
from repro.results.site import bar, write_site

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FAMILIES = {"x": "self-training", "y": "self-correction", "z": "credit assignment"}
MEANS = {"x": 0.6, "y": 0.3, "z": 0.9}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Three papers: x holds with 5 seeds, y fails, z has one seed; with one figure, findings and rollouts."""
    folder = tmp_path_factory.mktemp("kit") / "results"
    cards = {}
    for slug, family in FAMILIES.items():
        cards[slug] = replace(PAPER, slug=slug, title=f"{slug.upper()}: a <paper>", family=family).card()
        seeds = 1 if slug == "z" else 5
        rows = drawn("base", seeds, 0.4, slug) + drawn("new", seeds, MEANS[slug], slug)
        (folder / slug).mkdir(parents=True)
        (folder / slug / "tiny.jsonl").write_text(dump_rows(rows))
    renew(folder, cards, draw=False)
    png = bytes.fromhex("89504e470d0a1a0a0000000d494844520000000100000001080000000" + "03a7e9b55")
    (folder / "x" / "tiny.png").write_bytes(png)
    long = "a_word_that_is_longer_than_a_phone_is_wide_" * 5
    (folder / "x" / "findings.md").write_text(f"# Findings\n\nIt *works*, {long}.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    return folder


@pytest.fixture(scope="module")
def site(results) -> Path:
    runs, out = results.parent / "runs", results.parent / "site"
    place = runs / "x" / "tiny-00000000" / "new-seed1"
    place.mkdir(parents=True)
    row = {"prompt": "2<3?", "tokens": ["a", "<b>"], "logprobs": [0, 0], "reference": "5"}
    rows = [row | {"step": step, "reward": reward} for step, reward in ((1, 1.0), (2, 0.0), (3, 0.0))]
    (place / "rollouts.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 4, ')
    write_site(read_summaries(results), out, results, runs)
    return out


class Reader(HTMLParser):
    def __init__(self, file: Path):
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(file.read_text())
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id", ""))
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag not in ("meta", "img", "br", "link", "input", "line", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_page_is_whole_and_every_link_leads_somewhere(site):
    pages = {file.resolve(): Reader(file) for file in site.rglob("*.html")}
    names = sorted(str(p.relative_to(site.resolve())) for p in pages)
    assert names == ["index.html", "leaderboard.html", "papers/x.html", "papers/y.html", "papers/z.html"]
    outside = set()
    for file, page in pages.items():
        assert page.open == [], file
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                outside.add(link)
                continue
            name, _, part = link.partition("#")
            target = (file.parent / unquote(name)).resolve() if name else file
            assert target.is_file(), (file, link)
            assert not part or part in pages[target].ids, (file, link)
    assert outside == {"data:,", "https://arxiv.org/abs/0000.00000"}  # nothing is loaded from elsewhere


def test_what_a_paper_page_shows(site):
    text = (site / "papers" / "x.html").read_text()
    assert "X: a &lt;paper&gt;" in text and "<paper>" not in text
    assert "<em>works</em>" in text and "<td>2</td>" in text  # findings
    assert "new ends above base" in text and '<span class="pill holds">' in text
    assert "metric &#39;auroc&#39; was not measured in arm new" in text
    assert "new, step 1, right (the answer is 5)" in text and "new, step 3, wrong" in text and "step 2" not in text
    assert "2&lt;3?" in text and "a&lt;b&gt;" in text
    assert "eval_problems" in text and "../figures/x-tiny.png" in text
    other = (site / "papers" / "y.html").read_text()
    assert "Findings" not in other and "Transcripts" not in other and "figures/" not in other


def test_the_script_is_shown(site, results, tmp_path, monkeypatch):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "x.py").write_text('"""A <script>."""\n')
    monkeypatch.setattr("repro.results.site.ROOT", tmp_path)
    write_site(read_summaries(results, ["x"]), tmp_path / "out", results)
    text = (tmp_path / "out" / "papers" / "x.html").read_text()
    assert "papers/x.py, 1 lines" in text and "A &lt;script&gt;." in text


def test_the_leaderboard_lists_arms_by_accuracy(site):
    text = (site / "leaderboard.html").read_text()
    order = re.findall(r'<th scope="row">(\w+)</th>\s*<td><a href="papers/(\w)', text)
    assert [name for name in order if name[0] == "new"] == [("new", "z"), ("new", "x"), ("new", "y")]


def test_a_bar_stands_where_its_value_is():
    drawn_ = bar({"value": 0.5, "low": 0.25, "high": 2.0}, 0.0, 1.0, 0.0)
    assert 'cx="60.0"' in drawn_ and 'x1="31.0" x2="118.0"' in drawn_ and 'x1="2.0"' in drawn_  # cut off at the edge
    assert bar(None, 0, 1) == "" and "range" not in bar({"value": 0.5}, 0, 1)


def test_the_command_writes_the_site_of_results_and_of_runs(results, tmp_path, monkeypatch, capsys):
    assert main(["site", "--results", str(results), "--out", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a" / "index.html").is_file() and "index.html" in capsys.readouterr().out
    for made in drawn("base", 2, 0.4) + drawn("new", 2, 0.6):
        place = tmp_path / "runs" / "x" / "tiny-00000000" / f"{made['arm']}-seed{made['seed']}"
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(made))
    monkeypatch.setattr("repro.scripts.find_script", lambda name: name)
    monkeypatch.setattr("repro.scripts.load_script", lambda name: PAPER)
    assert main(["site", "--results", str(tmp_path / "runs"), "--out", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "figures" / "x-tiny.png").is_file()
    assert "no verdict from two seeds" in (tmp_path / "b" / "papers" / "x.html").read_text()


CHECKS = """
<!doctype html><body><iframe id="frame" width="400" height="800"></iframe><pre id="found"></pre><script>
const frame = document.getElementById('frame'), found = {wide: {}, errors: []};
const watch = () => { frame.contentWindow.onerror = text => found.errors.push(text); };
const load = url => new Promise(done => {
  frame.onload = () => { watch(); done(frame.contentDocument); };
  frame.src = url;
});
const visible = page => [...page.querySelectorAll('.entry')].filter(e => e.offsetHeight > 0);
const shown = page => visible(page).map(e => e.querySelector('a').textContent);
const ask = (page, name, value) => {
  page.querySelector(`[name=${name}]`).value = value;
  page.getElementById('filters').dispatchEvent(new Event('input'));
  return shown(page);
};
const column = (page, number) =>
  [...page.querySelectorAll('tbody tr')].map(row => row.cells[number].textContent.trim());
(async () => {
  for (const url of PAGES) {
    const page = await load(url);
    for (const part of page.querySelectorAll('details')) part.open = true;
    found.wide[url] = page.documentElement.scrollWidth;
  }
  let page = await load('index.html');
  found.all = shown(page);
  found.family = ask(page, 'family', 'self-correction');
  ask(page, 'family', '');
  found.verdict = ask(page, 'verdict', 'holds');
  found.count = page.getElementById('count').textContent;
  found.both = ask(page, 'text', 'nothing like it');
  ask(page, 'verdict', '');
  found.text = ask(page, 'text', 'z: PAPER');
  ask(page, 'text', '');
  found.scale = ask(page, 'scale', 'toy');
  page = await load('leaderboard.html');
  const heads = [...page.querySelectorAll('thead th')];
  heads[2].querySelector('button').click();
  found.down = column(page, 2);
  heads[2].querySelector('button').click();
  found.up = column(page, 2);
  found.sorted = heads[2].getAttribute('aria-sort');
  heads[3].querySelector('button').click();
  found.missing = column(page, 3);
  page = await load('papers/x.html');
  found.clicked = await new Promise(done => {
    frame.onload = () => done(frame.contentWindow.location.pathname);
    page.querySelector('.brand').click();
  });
  document.getElementById('found').textContent = JSON.stringify(found);
})();
</script></body>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_in_a_browser(site, tmp_path):
    place = tmp_path / "site"
    shutil.copytree(site, place)
    pages = sorted(str(file.relative_to(place)) for file in place.rglob("*.html"))
    (place / "checks.html").write_text(CHECKS.replace("PAGES", json.dumps(pages)))
    handler = partial(SimpleHTTPRequestHandler, directory=str(place))
    handler.log_message = lambda *words: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000"]
    try:
        done = subprocess.run(
            [*words, f"http://127.0.0.1:{server.server_port}/checks.html"], capture_output=True, text=True, timeout=120
        )
    finally:
        server.shutdown()
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)[1]))
    assert found["errors"] == [] and "CONSOLE" not in done.stderr, done.stderr
    assert set(found["wide"]) == set(pages) and max(found["wide"].values()) <= 400, found["wide"]
    x, y, z = (f"{name}: a <paper>" for name in "XYZ")
    assert found["all"] == found["scale"] == [x, y, z]
    assert found["family"] == [y] and found["verdict"] == [x] and found["count"] == "1 of 3"
    assert found["both"] == [] and found["text"] == [z]
    up, down = ([float(text.split()[0]) for text in found[name]] for name in ("up", "down"))
    assert down == sorted(down, reverse=True) and up == sorted(up) and len(set(up)) > 2
    assert found["sorted"] == "ascending" and found["missing"][-1] == "-"
    assert found["clicked"].endswith("/index.html")
