"""The report and the user study in a headless browser: no requests, no console errors, no horizontal overflow."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import call
from PIL import Image

from latentdiff.config import UserError
from latentdiff.evaluation import user_study

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
WIDTHS = (1280, 390)  # pixels, of a desktop and a phone
# scripts that are added to a copy of a page; they print to the console
LAYOUT_SCRIPT = """<script>addEventListener('load', () => setTimeout(() => {
  const page = document.documentElement, overflow = page.scrollWidth - page.clientWidth;
  const broken = [...document.images].filter(img => !img.complete || !img.naturalWidth).length;
  const count = document.images.length;
  console.info('LAYOUT width=' + page.clientWidth + ' overflow=' + overflow + ' broken=' + broken + ' images=' + count);
}, 100));</script>"""
ANSWER_SCRIPT = """<script>addEventListener('load', async () => {
  const sleep = ms => new Promise(done => setTimeout(done, ms));
  byId('go').click();
  for (let i = 0; i < study.pairs.length; i++) {
    while (byId('left').disabled) await sleep(5);
    if (i === 0) { await sleep(study.seconds * 1000 + 100); console.info('HIDDEN ' + byId('pair').className); }
    document.dispatchEvent(new KeyboardEvent('keydown', { key: study.pairs[i].flip ? 'ArrowRight' : 'ArrowLeft' }));
    await sleep(10);
  }
  console.info('RESULT ' + JSON.stringify(result()));
  console.info('SUMMARY ' + byId('done').innerText.replace(/\\s+/g, ' '));
  byId('save').click();
});</script>"""

pytestmark = pytest.mark.slow


def console_messages(path, width: int) -> list[str]:
    """The console messages of a page, opened at a width in pixels."""
    if BROWSER is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    framed = path.with_name(f"framed-{width}-{path.name}")  # a window has a minimum width, a frame does not
    framed.write_text(
        f'<body style="margin:0"><iframe src="{path.name}" width="{width}" height="900" style="border:0">'
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
               "--v=0", f"--window-size={max(width, 600)},900", f"--user-data-dir={path.parent}/profile-{width}",
               "--disable-background-networking", f"--screenshot={path.with_suffix(f'.{width}.png')}",
               "--virtual-time-budget=20000", framed.as_uri()]  # fmt: skip
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert path.with_suffix(f".{width}.png").exists(), process.stderr[-2000:]
    return re.findall(r':CONSOLE[^"]*"(.*)", source:', process.stderr)


def measure_layout(path, width: int) -> dict[str, int]:
    """The layout of a page at a width, by LAYOUT_SCRIPT; any other console message fails."""
    copy = path.with_name(f"layout-{width}-{path.name}")
    copy.write_text(path.read_text().replace("</body>", LAYOUT_SCRIPT + "</body>"))
    messages = console_messages(copy, width)
    assert len(messages) == 1 and messages[0].startswith("LAYOUT"), messages
    return {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", messages[0])}


def assert_self_contained(path) -> None:
    """The page refers to no resource outside the file."""
    content = path.read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)|url\((?!data:)|@import", content)


@pytest.fixture
def folders(tmp_path):
    for name, shade in (("a", 60), ("b", 180)):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(np.full((32, 32, 3), shade + i, np.uint8)).save(tmp_path / name / f"{i}.png")
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.parametrize("stage", ["stage_one_run", "stage_two_run"])
def test_the_report_is_one_file_that_opens_at_any_width(stage, request, copy_run):
    run = copy_run(request.getfixturevalue(stage))
    call("evaluate", run, "--count", 8, "--prompts", 4, "--features", "autoencoder")
    page = run / "report.html"
    assert_self_contained(page)
    titles = re.findall(r"<h2>(.*?)</h2>", page.read_text())
    sections = {"Training", "Reconstructions", "Metrics", "Protocol", "Recipe"}
    if stage == "stage_two_run":
        sections |= {"During training", "Samples", "Nearest neighbors", "Guidance and steps"}
    assert set(titles) == sections
    for width in WIDTHS:
        layout = measure_layout(page, width)
        assert layout["width"] == width and layout["overflow"] <= 0 and layout["broken"] == 0 and layout["images"] > 20


def test_the_study_hides_images_after_its_seconds_and_saves_the_answers(folders, tmp_path):
    path = tmp_path / "study.html"
    user_study.main([*map(str, folders), "--output", str(path), "--seconds", "0.2"])
    assert_self_contained(path)
    for width in WIDTHS:
        layout = measure_layout(path, width)
        assert layout["width"] == width and layout["overflow"] <= 0 and layout["broken"] == 0
    answered = path.with_name("answered.html")
    answered.write_text(path.read_text().replace("</body>", ANSWER_SCRIPT + "</body>"))
    messages = console_messages(answered, 390)
    assert messages[0] == "HIDDEN hidden" and len(messages) == 3
    result = json.loads(messages[1].removeprefix("RESULT ").replace('\\"', '"'))
    assert result["chosen_a"] == result["pairs"] == 5 and {a["name"] for a in result["answers"]} == set("01234")
    assert len({a["side"] for a in result["answers"]}) == 2  # A is not always on the same side
    assert "100 %" in messages[2] and "5 of 5, 95 % interval 57 % to 100 %" in messages[2]
    (tmp_path / "answers.json").write_text(json.dumps(result))
    total = user_study.read_answers([str(tmp_path / "answers.json")] * 2)
    assert total["participants"] == 2 and total["answers"] == 10 and total["low"] == pytest.approx(0.7225, abs=1e-3)
    assert result["low"] == pytest.approx(user_study.wilson(5, 5)[0])


def test_pairs_have_the_same_file_name_and_the_seed_decides_the_sides(folders):
    a, b = folders
    (b / "3.png").unlink()
    pairs = user_study.pair_files(a, b, 10)
    assert [tuple(path[-5:] for path in pair) for pair in pairs] == [(f"{i}.png",) * 2 for i in (0, 1, 2, 4)]
    assert len(user_study.pair_files(a, b, 2)) == 2
    pages = [user_study.build_page(pairs, ("a", "b"), "Which?", 3, seed) for seed in (0, 0, 1)]
    assert pages[0] == pages[1] != pages[2]


def test_folders_without_images_and_files_without_answers_are_rejected(tmp_path, folders):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images"):
        user_study.main([str(tmp_path / "empty"), str(folders[0])])
    with pytest.raises(UserError, match="two folders"):
        user_study.main([str(folders[0])])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="not answers"):
        user_study.read_answers([str(tmp_path / "x.json")])
