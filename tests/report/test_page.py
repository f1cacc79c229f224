"""The page of a report: in a real browser without a console error, and every number as its run has it."""

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lit_merge import LowRank, MergeError, TaskBank, report_page, write_report
from lit_merge.checkpoints.manifest import write_manifest
from lit_merge.cli.main import main
from lit_merge.report.analysis.of_bank import analyze_bank
from lit_merge.report.page.write import LARGEST
from lit_merge.report.report import Report
from lit_merge.report.run_folder import RunFolder
from lit_merge.report.scores import TaskScore

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>document.title='owned'</script>"
TASKS = (HOSTILE, "<img src=x onerror=\"document.title='owned'\">", "Ünï & co")
LAYERS = ("blocks.0.attn.w", "blocks.1.attn.w", "stem")
WHY = "the merge agreed with the experts on 80.0 % after step 10, 70.0 % at the end"
# Sorts by the column `adapted`, twice; opens every table of data; moves the slider to the start.
DRIVER = """
(async () => {
  const found = { title: document.title, sorted: [], data: {}, pictures: {} };
  const table = document.querySelector(".sortable");
  const button = [...table.querySelectorAll("th button")].find((one) => one.textContent === "adapted");
  for (let i = 0; i < 2; i++) {
    button.click();
    const names = [...table.tBodies[0].rows].map((row) => row.cells[1].textContent);
    found.sorted.push([button.parentElement.getAttribute("aria-sort"), names]);
  }
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const name = `${figure.dataset.chart}/${figure.dataset.run}`, details = figure.querySelector("details.data");
    details.open = true;
    found.pictures[name] = figure.querySelectorAll(".chart svg :is(path, rect, circle, line, text)").length;
    await new Promise((done) => setTimeout(done));
    found.data[name] = [...details.querySelectorAll("tr")].map((row) => [...row.cells].map((one) => one.textContent));
  }
  const slider = document.querySelector(".slider input");
  found.step = [slider.parentElement.querySelector("output").textContent];
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  found.step.push(slider.parentElement.querySelector("output").textContent);
  found.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  found.title_after = document.title;
  const answer = document.createElement("pre");
  answer.id = "answer";
  answer.textContent = JSON.stringify(found);
  document.body.append(answer);
})();
"""


def make_bank() -> TaskBank:
    generator = torch.Generator().manual_seed(0)
    deltas = {name: torch.randn(3, 6, 4, generator=generator) for name in LAYERS[:2]}
    origin = {name: torch.zeros(6, 4) for name in LAYERS}
    low = {name: LowRank.from_dense(delta, rank=2) for name, delta in deltas.items()}
    dtypes = dict.fromkeys(LAYERS, torch.float32)
    return TaskBank(TASKS, origin, low, torch.ones(3, 2), dtypes, {"class_path": "CART"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `fit` leaves it, with names that try to get out."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    for name in ("log", "coefficients"):
        (folder / name).mkdir(parents=True)
    make_bank().save(folder / "bank")
    scores = {
        state: {task: TaskScore(0.1 * i + 0.2 * t + 0.01, 1.0, 100) for t, task in enumerate(TASKS)}
        for i, state in enumerate(("pretrained", "static", "adapted", "expert"))
    }
    kept = {"step": 10, "at": 20, "why": WHY}
    report = Report(f"CART of 3 {HOSTILE}", "inductive", scores, {"experts": 3000, "bank": 1000}, kept=kept)
    (folder / "metrics.json").write_text(report.to_json())
    quoted = ['"' + task.replace('"', '""') + '"' for task in TASKS]
    header = ",".join(["step", "loss", *(f'"loss/{task[1:-1]}"' for task in quoted)])
    (folder / "log" / "metrics.csv").write_text(f"{header}\n9,0.5,0.4,0.5,0.6\n19,0.3,0.2,0.3,0.4\n")
    looks = [f"{s},{task},{1 + s},{t},0.25" for s in (0, 10, 15, 20) for t, task in enumerate(quoted)]
    text = "\n".join(["step,task,blocks.1.attn.w,blocks.0.attn.w,stem", *looks])
    (folder / "coefficients" / "coefficients_log.csv").write_text(text + "\n")
    rows = [f"{s},{task},1.5,.9,.{s + 60},0" for s in (0, 10, 20) for task in quoted]
    (folder / "guard.csv").write_text("\n".join(["step,task,entropy,balance,agreement,churn", *rows]) + "\n")
    file = io.BytesIO()
    Image.new("L", (2, 2)).save(file, "PNG")
    dot = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    samples: list[dict[str, Any]] = [
        {"task": TASKS[0], "index": 3, "file": None, "picture": dot, "label": HOSTILE},
        {"task": TASKS[2], "index": 0, "file": "a.csv:0", "text": f"a text {HOSTILE}", "label": "good"},
    ]
    said = {"static": [["bad", 0.6], ["good", 0.4]], "adapted": [["good", 0.9], [HOSTILE, 0.1]]}
    (folder / "samples.jsonl").write_text("\n".join(json.dumps(one | {"predictions": said}) for one in samples) + "\n")
    (folder / "config.yaml").write_text(f"model: '{HOSTILE}'\n")
    (folder / "versions.json").write_text('{"torch": "2.14.1"}')
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the least of runs has."""
    folder = tmp_path_factory.mktemp("runs") / "bare"
    folder.mkdir()
    (folder / "metrics.json").write_text(Report("TIES of 2", "adapted on folders").to_json())
    return folder


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("metrics.json", lambda text: text.replace("0.", "1.", 1)),
        ("metrics.json", lambda text: '{"tasks": {"a": {"static_accuracy": "x", "images": 3}}}'),
        ("metrics.json", lambda text: '{"tasks": {"a": {"static_accuracy": [], "images": 3}}}'),
        ("guard.csv", lambda text: text.replace("step", "stop", 1)),
        ("guard.csv", lambda text: text.replace("\n0,", "\n0.5,", 1)),
        ("coefficients/coefficients_log.csv", lambda text: "\n".join(text.splitlines()[:-1]) + "\n"),
        ("guard.csv", lambda text: text.replace("\n0,", "\n0,0,", 1)),
        ("guard.csv", lambda text: ""),
        ("coefficients/coefficients_log.csv", lambda text: "x\n"),
        ("log/metrics.csv", lambda text: text.replace("step", "x", 1)),
        ("samples.jsonl", lambda text: text.replace('"predictions"', '"said"')),
        ("samples.jsonl", lambda text: text.replace("data:image", "http://image")),
        ("samples.jsonl", lambda text: "3\n"),
        ("samples.jsonl", lambda text: text.replace("0.6", '"x"')),
    ],
)
def test_files_that_were_changed(run: Path, tmp_path: Path, name: str, change: Any) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    old = (copy / name).read_text()
    (copy / name).write_text(change(old))
    assert (copy / name).read_text() != old
    with pytest.raises(MergeError, match=f"^{copy}"):
        report_page(copy)


@pytest.mark.parametrize("name", ["guard.csv", "samples.jsonl", "config.yaml"])
def test_digests_of_a_run(run: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    write_manifest(copy, [path for path in copy.rglob("*") if path.suffix in (".json", ".csv", ".jsonl", ".yaml")])
    found = json.loads((copy / "digests.json").read_text())
    assert found[name] == hashlib.blake2b((copy / name).read_bytes(), digest_size=16).hexdigest()
    assert "<main" in report_page(copy)
    (copy / name).write_text((copy / name).read_text() + "\n")
    with pytest.raises(MergeError, match=rf"{name} is not as it was written: its digest in digests\.json"):
        report_page(copy)
    (copy / "digests.json").write_text("{}")
    with pytest.raises(MergeError, match=r"digests\.json is damaged"):
        report_page(copy)


def browse(page: str, folder: Path) -> tuple[dict[str, Any], str]:
    """What the driver finds in a page that a browser has opened from the disk, and what stands on its console."""
    digest = base64.b64encode(hashlib.sha256(DRIVER.encode()).digest()).decode()
    # The page's own policy lets no other script run.
    driven = page.replace("script-src", f"script-src 'sha256-{digest}'", 1).replace(
        "</body>", f"<script>{DRIVER}</script></body>"
    )
    (folder / "driven.html").write_text(driven, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
    options += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command = [str(BROWSER), *options, "--dump-dom", (folder / "driven.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    said = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    assert answer is not None, said
    return json.loads(html.unescape(answer[1])), said


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
def test_in_a_browser(run: Path, bare: Path, tmp_path: Path) -> None:
    found, console = browse(report_page(run, bare), tmp_path)
    assert console == ""
    assert found["title"] == found["title_after"] == "Report: whole, bare"
    assert not found["wide"]
    assert found["sorted"] == [["ascending", list(TASKS)], ["descending", list(TASKS[::-1])]]
    assert found["step"] == ["20, end: those of step 10, which were kept", "0, start"]
    # Every figure is drawn, and has its data.
    charts = {"accuracy", "coefficients", "sizes", "interference", "energy", "spectra", "cosines"}
    charts |= {f"curve-{i}" for i in range(4)}
    assert set(found["data"]) == {f"{chart}/0" for chart in charts}
    assert all(count > 5 for count in found["pictures"].values()), found["pictures"]
    data = {name: rows[1:] for name, rows in found["data"].items()}
    assert data["accuracy/0"][:2] == [[HOSTILE, "pretrained", "1"], [HOSTILE, "static", "11"]]
    assert len(data["accuracy/0"]) == 4 * 4
    # Blocks in their order, what is outside of them first.
    assert data["coefficients/0"][:3] == [
        [HOSTILE, "stem", "0.25"],
        [HOSTILE, LAYERS[0], "0"],
        [HOSTILE, LAYERS[1], "21"],
    ]
    assert ["mean", "9", "0.5"] in data["curve-0/0"]
    assert [TASKS[1], "10", "70"] in data["curve-2/0"]
    assert data["sizes/0"][-1] == ["task bank", "0.001"]
    dense = {name: delta.to_dense().double().numpy() for name, delta in make_bank().deltas.items()}
    whole = np.concatenate([delta.reshape(3, -1) for delta in dense.values()], 1)
    cosine = whole[0] @ whole[2] / np.linalg.norm(whole[0]) / np.linalg.norm(whole[2])
    (shown,) = (float(row[2]) for row in data["cosines/0"] if row[:2] == [TASKS[0], TASKS[2]])
    assert shown == pytest.approx(cosine, rel=1e-3)


def test_a_bank_is_analysed_without_its_experts() -> None:
    bank = make_bank()
    found = analyze_bank(bank)
    for name, delta in bank.deltas.items():
        _, sigma, right = np.linalg.svd(delta.to_dense().double().numpy(), full_matrices=False)
        assert found.curves["bank"][name].S.numpy() == pytest.approx(sigma, abs=1e-5)
        rows = [np.diag(s / s.sum()) @ v for s, v in zip(sigma, right, strict=True)]
        crossed = sum(np.linalg.norm(rows[i] @ rows[j].T) for i in range(3) for j in range(3) if i != j)
        assert found.curves["bank"][name].interference[[1, 3]].tolist() == pytest.approx([crossed] * 2, rel=1e-4)
        kept = np.cumsum(np.square(sigma).sum(0)) / np.square(sigma).sum()
        assert found.curves["bank"][name].kept.numpy() == pytest.approx(kept, abs=1e-5)
        assert len(found.curves["bank"][name].interference) == 4
    dense = replace(bank, deltas={name: delta.to_dense() for name, delta in bank.deltas.items()})
    assert not analyze_bank(dense).shapes
    assert not analyze_bank(replace(bank, coefficients=torch.ones(1, 2))).shapes


def test_the_page_needs_nothing_else(run: Path, bare: Path) -> None:
    page = report_page(run)
    assert len(page.encode()) < LARGEST
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    # Nothing is fetched, and of what names say nothing has become markup.
    addresses = re.findall(r"(?:src|href)=\"?([^\"> ]*)", markup.partition("<!--")[0])
    assert all(one.startswith(("data:", "#", "x")) for one in addresses)
    assert "default-src 'none'" in page
    assert "owned" in markup
    assert not re.search(r"<script|<img src=x", markup)
    for text in ("Copyright 2010-2026 Mike Bostock", "lit-merge fit --config", "2.14.1", html.escape(WHY)):
        assert text in page
    reply = report_page(bare)
    for text in (
        "This run has no accuracies",
        "kept no coefficients over time",
        "has no training log",
        "has no task bank",
        "kept no samples",
        "kept no configuration",
        "No versions were kept",
    ):
        assert text in reply
        assert text not in page


def test_the_verb(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run)]) == 0
    assert re.fullmatch(r"Written to report.html: \d+\.\d kB\n", capsys.readouterr().out)
    assert (tmp_path / "report.html").read_text() == report_page(run)
    assert main(["report", str(run)]) == 2
    assert "report.html exists: pass --overwrite" in capsys.readouterr().err
    assert main(["report", str(run), str(run), "--overwrite"]) == 0
    (tmp_path / "mine.html").write_text("mine")
    assert main(["report", str(run), "--output", "mine.html", "--overwrite"]) == 2
    assert "was not written by `lit-merge report`" in capsys.readouterr().err
    for wrong, message in ((["nowhere"], "nowhere is no run"), ([], "the following arguments are required: RUN")):
        assert main(["report", *wrong, "--output", "other.html"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()


def test_damage_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="name the folder of a run"):
        report_page()
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "samples.jsonl").write_text("{")
    with pytest.raises(MergeError, match=r"samples.jsonl is damaged"):
        write_report(tmp_path / "page.html", tmp_path / "run")
    assert not (tmp_path / "page.html").exists()
    (tmp_path / "run" / "samples.jsonl").unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "other" / "run")
    # Folders that are called alike are distinguished.
    assert f"<title>Report: {tmp_path.name}/run, other/run</title>" in report_page(
        RunFolder(tmp_path / "run"), tmp_path / "other" / "run"
    )
