"""list, table, claims, docs and publish, as a user calls them."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace

import pytest
from conftest import ROOT
from synthetic import PAPER, drawn, row

from repro import RunConfig
from repro.cli import main
from repro.config import ConfigError
from repro.results import verbs
from repro.results.docs import BEGIN, END, dead_links, renew, stale
from repro.results.files import dump_rows, load_rows, read_summaries
from repro.results.publishing import publish_paper
from repro.scripts import paper_scripts

RESULTS = ROOT / "results"


def put(folder, rows) -> None:
    """Rows as finished runs."""
    for made in rows:
        place = folder / made["paper"] / f"{made['preset']}-{made['digest']}" / f"{made['arm']}-seed{made['seed']}"
        place.mkdir(parents=True, exist_ok=True)
        (place / "result.json").write_text(json.dumps(made))


DEFAULT = RunConfig.for_preset("tiny").digest()


@pytest.mark.parametrize("verb", [["list"], ["claims", "--json"], ["table"], ["table", "--format", "csv"]])
def test_reading_needs_no_torch_and_no_script(verb):
    code = (
        "import sys; from repro.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'scipy', 'matplotlib', 'papers.nft'} & set(sys.modules); "
        "sys.exit(code or f'{heavy} were imported' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *verb], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_list_shows_every_script(capsys, tmp_path, monkeypatch):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"| {name} " in shown for name in paper_scripts())
    (tmp_path / "papers").mkdir()
    later = '"""LATER. Somebody."""\nraise 1\nPAPER = Paper(slug="later", title="This v.s. That: A Title")\n'
    (tmp_path / "papers" / "later.py").write_text(later)  # read, not run
    monkeypatch.setattr(verbs, "ROOT", tmp_path)
    assert main(["list"]) == 0
    assert "| This v.s. That: A Title |" in capsys.readouterr().out


def test_claims_as_json(capsys):
    assert main(["claims", "nft", "--json"]) == 0
    claims = json.loads(capsys.readouterr().out)
    fields = {"paper", "preset", "claim", "text", "published", "left", "right", "threshold", "verdict", "seeds"}
    fields |= {"difference", "interval", "primary", "scale", "look", "level", "reason", "fdr", "holm", "survives_fdr"}
    assert claims and all(c["paper"] == "nft" and fields <= c.keys() for c in claims)
    assert {c["verdict"] for c in claims} <= {"holds", "fails", "equivalent", "undecided", None}


def test_tables_in_every_format(capsys):
    assert main(["table", "nft", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {s["paper"] for s in shown} == {"nft"} and shown[0]["table"][0]["arm"] == "base"
    assert main(["table", "nft", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {"rft", "grpo", "nft"} <= {row["arm"] for row in rows}
    assert main(["table", "nft"]) == 0
    shown = capsys.readouterr().out
    assert "**Leaderboard**" in shown and "| claim " in shown


def test_what_a_user_gets_wrong(capsys, tmp_path):
    for words, told in (
        (["table", "--results", "nowhere"], "no such folder"),
        (["claims", "nfft"], "unknown paper 'nfft'"),
        (["publish", "nfft"], "unknown paper 'nfft'"),
        (["publish", "standard"], "with the papers that refer to them"),
    ):
        assert main(words) == 2
        shown = capsys.readouterr()
        assert told in shown.err and len(shown.err.splitlines()) == 1 and not shown.out
    assert main(["table", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no results yet\n"


def test_a_folder_of_runs_is_read_like_results(tmp_path, monkeypatch, capsys):
    put(tmp_path, drawn("base", 3, 0.4) + drawn("new", 3, 0.6))
    monkeypatch.setattr("repro.scripts.find_script", lambda name: name)
    monkeypatch.setattr("repro.scripts.load_script", lambda name: {"x": PAPER}[name])
    assert main(["claims", "--results", str(tmp_path), "--json"]) == 0
    claims = json.loads(capsys.readouterr().out)
    assert claims[0]["verdict"] == "holds" and claims[0]["look"] is None and claims[0]["seeds"] == 3
    assert main(["table", "--results", str(tmp_path)]) == 0
    assert "A <paper>" in capsys.readouterr().out


def test_publish_takes_default_settings_only_and_replaces(tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    rows = [r for arm, mean in (("base", 0.4), ("new", 0.6)) for r in drawn(arm, 2, mean, digest=DEFAULT)]
    put(runs, [*rows, row("new", 7, [1.0], digest="other"), row("new", 8, [1.0], digest=DEFAULT, status="failed")])
    (summary,) = publish_paper(PAPER, runs, results)
    assert summary["seeds"] == 2 and summary["table"][1]["seeds"] == 2
    put(runs, [row("new", 1, [1.0] * 40, digest=DEFAULT)])
    publish_paper(PAPER, runs, results)
    found = {(r["arm"], r["seed"]): r for r in load_rows(results / "x" / "tiny.jsonl")}
    assert len(found) == 4 and found["new", 1]["per_problem"]["accuracy"] == [1.0] * 40
    assert {f.name for f in (results / "x").iterdir()} == {"tiny.jsonl", "tiny.json", "tiny.png", "README.md"}
    assert (results / "README.md").exists() and stale(results) == []


def test_rows_of_changed_settings_leave_with_the_new_ones(tmp_path):
    @dataclass(frozen=True)
    class Changed(RunConfig):
        extra: int = 1

    runs, results = tmp_path / "runs", tmp_path / "results"
    put(
        runs, [row("base", s, [0.5] * 4, digest=DEFAULT) for s in range(2)] + [row("new", 0, [1.0] * 4, digest=DEFAULT)]
    )
    publish_paper(PAPER, runs, results)
    now = Changed.for_preset("tiny").digest()
    put(runs, [row("new", 3, [0.0] * 4, digest=now)])
    publish_paper(replace(PAPER, config=Changed), runs, results)
    found = [(r["arm"], r["seed"], r["digest"]) for r in load_rows(results / "x" / "tiny.jsonl")]
    assert found == [("new", 3, now)]  # one table, one set of settings


def test_rows_of_other_settings_keep_the_declaration_that_they_were_made_with(tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    put(runs, [r for arm, mean in (("base", 0.4), ("new", 0.6)) for r in drawn(arm, 2, mean, digest=DEFAULT)])
    publish_paper(PAPER, runs, results)
    later = PAPER.card() | {"title": "Another title"}
    (summary,) = renew(results, {"x": later | {"digests": {"tiny": "11111111"}}}, draw=False)
    assert summary["card"]["title"] == PAPER.title
    (summary,) = renew(results, {"x": later}, draw=False)
    assert summary["card"]["title"] == "Another title"


def test_publish_takes_the_kits_rows_that_the_paper_refers_to(tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    named = {"base": "bbbb"}
    put(runs, [row("new", 0, [1.0] * 4, digest=DEFAULT, standard=named)])
    put(runs, [row("base", 0, [0.5] * 4, paper="standard", digest=d) for d in ("bbbb", "cccc")])
    (summary,) = publish_paper(PAPER, runs, results)
    assert [r["digest"] for r in load_rows(results / "standard" / "tiny.jsonl")] == ["bbbb"]
    assert [e["arm"] for e in summary["table"]] == ["base", "new"]
    put(runs, [row("new", 0, [1.0] * 4, digest=DEFAULT, standard={"base": "cccc"})])
    publish_paper(PAPER, runs, results)
    assert [r["digest"] for r in load_rows(results / "standard" / "tiny.jsonl")] == ["cccc"]


def test_another_model_may_stand_in_for_one_of_the_hub_and_nothing_else_may_differ(tmp_path):
    runs, results = tmp_path / "runs", tmp_path / "results"
    given = {"model": "tiny-but-real", "data": "gsm8k"}
    made = asdict(RunConfig.for_preset("small")) | given
    more = {"preset": "small", "digest": "12345678"}
    put(runs, [row("base", 0, [0.5] * 4, settings=made, **more)])
    put(runs, [row("new", 0, [1.0] * 4, settings=made | {"temperature": 0.9}, **more)])
    tiny = asdict(RunConfig.for_preset("tiny")) | given
    put(runs, [row("new", 0, [1.0] * 4, settings=tiny, digest="87654321")])
    (summary,) = publish_paper(PAPER, runs, results)
    assert (summary["preset"], [e["arm"] for e in summary["table"]]) == ("small", ["base"])
    assert "from the model tiny-but-real" in (results / "x" / "README.md").read_text()
    renamed = replace(PAPER, title="Another title")
    assert publish_paper(renamed, runs, results)[0]["card"]["title"] == "Another title"
    put(runs, [row("new", 0, [1.0] * 4, settings=made | {"model": "another"}, **more | {"digest": "00112233"})])
    with pytest.raises(ConfigError, match="small runs of x with several models"):
        publish_paper(PAPER, runs, results)


def test_publish_refuses_uncommitted_code_and_nothing(tmp_path):
    with pytest.raises(ConfigError, match="no finished runs of x with default settings"):
        publish_paper(PAPER, tmp_path / "runs", tmp_path / "results")
    machine = {"device": "cpu", "threads": 1, "versions": {}, "commit": "abc", "changed_files": 2}
    put(tmp_path / "runs", [row("new", 0, [1.0], digest=DEFAULT, machine=machine)])
    with pytest.raises(ConfigError, match="1 tiny runs were made with uncommitted code"):
        publish_paper(PAPER, tmp_path / "runs", tmp_path / "results")
    assert not (tmp_path / "results" / "x").exists()


def test_the_committed_pages_are_what_the_results_say():
    assert stale(RESULTS) == []


def test_the_committed_summaries_are_of_the_committed_rows():
    from repro.results.summary import fingerprint, merged

    summaries = read_summaries(RESULTS)
    assert {f"{s['paper']}/{s['preset']}.jsonl" for s in summaries} == {
        str(file.relative_to(RESULTS)) for file in RESULTS.glob("*/*.jsonl") if file.parent.name != "standard"
    }
    for s in summaries:
        kit = RESULTS / "standard" / f"{s['preset']}.jsonl"
        rows = load_rows(RESULTS / s["paper"] / f"{s['preset']}.jsonl") + (load_rows(kit) if kit.exists() else [])
        assert s["digest"] == fingerprint(s["card"], merged(s["card"], rows)), s["paper"]


@pytest.mark.parametrize("page", sorted([ROOT / "README.md", *ROOT.glob("papers/*.md"), *RESULTS.rglob("*.md")]))
def test_relative_links_lead_somewhere(page):
    assert dead_links(page) == []


def test_a_stale_page_and_a_dead_link_are_found(tmp_path):
    results = tmp_path / "results"
    (results / "x").mkdir(parents=True)
    (results / "x" / "tiny.jsonl").write_text(dump_rows(drawn("base", 1, 0.4) + drawn("new", 1, 0.6)))
    (tmp_path / "README.md").write_text(f"a\n{BEGIN}\nold\n{END}\nb\n")
    renew(results, {"x": PAPER.card()}, draw=False)
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith(f"a\n{BEGIN}\n| paper") and readme.endswith(f"|\n{END}\nb\n")
    assert stale(results) == []
    assert dead_links(results / "README.md") == [] and "tiny.png" in dead_links(results / "x" / "README.md")
    (results / "README.md").write_text("changed")
    assert stale(results) == [results / "README.md"]


def test_findings_are_linked_where_there_are_some(tmp_path):
    results = tmp_path / "results"
    (results / "x").mkdir(parents=True)
    (results / "x" / "tiny.jsonl").write_text(dump_rows(drawn("base", 1, 0.4) + drawn("new", 1, 0.6)))
    renew(results, {"x": PAPER.card()}, draw=False)
    assert "findings.md)" not in (results / "x" / "README.md").read_text()
    (results / "x" / "findings.md").write_text("# Found\n")
    assert results / "x" / "README.md" in stale(results)
    renew(results, draw=False)
    assert "[findings](findings.md)" in (results / "x" / "README.md").read_text()
