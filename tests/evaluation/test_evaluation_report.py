"""The report and the user study, opened in a browser: nothing is fetched, nothing complains, nothing runs over."""

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
WIDTHS = (1280, 390)  # a desk and a phone
# what is run inside a copy of a page, once it is there; what it finds goes to the console
LOOK = """<script>addEventListener('load', () => setTimeout(() => {
  const page = document.documentElement, wide = page.scrollWidth - page.clientWidth;
  const dead = [...document.images].filter(img => !img.complete || !img.naturalWidth).length;
  const count = document.images.length;
  console.info('SEEN width=' + page.clientWidth + ' over=' + wide + ' dead=' + dead + ' images=' + count);
}, 100));</script>"""
PLAY = """<script>addEventListener('load', async () => {
  const rest = ms => new Promise(done => setTimeout(done, ms)), find = id => document.getElementById(id);
  find('go').click();
  for (let i = 0; i < study.pairs.length; i++) {
    while (find('left').disabled) await rest(5);
    if (i === 0) { await rest(study.seconds * 1000 + 100); console.info('HIDDEN ' + find('pair').className); }
    document.dispatchEvent(new KeyboardEvent('keydown', { key: study.pairs[i].flip ? 'ArrowRight' : 'ArrowLeft' }));
    await rest(10);
  }
  console.info('RESULT ' + JSON.stringify(result()));
  console.info('TOLD ' + find('done').innerText.replace(/\\s+/g, ' '));
  find('save').click();
});</script>"""

pytestmark = pytest.mark.slow


def opened(path, width: int) -> list[str]:
    """What the console of a browser says of a page at a width."""
    if BROWSER is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    framed = path.with_name(f"framed-{width}-{path.name}")  # a window may not be as narrow as a phone, a frame may
    framed.write_text(
        f'<body style="margin:0"><iframe src="{path.name}" width="{width}" height="900" style="border:0">'
    )
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
               "--v=0", f"--window-size={max(width, 600)},900", f"--user-data-dir={path.parent}/profile-{width}",
               "--disable-background-networking", f"--screenshot={path.with_suffix(f'.{width}.png')}",
               "--virtual-time-budget=20000", framed.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert path.with_suffix(f".{width}.png").exists(), done.stderr[-2000:]
    return re.findall(r':CONSOLE[^"]*"(.*)", source:', done.stderr)


def looked_at(path, width: int) -> dict[str, int]:
    """What a page says that was given LOOK; any other word of the console fails."""
    copy = path.with_name(f"look-{width}-{path.name}")
    copy.write_text(path.read_text().replace("</body>", LOOK + "</body>"))
    said = opened(copy, width)
    assert len(said) == 1 and said[0].startswith("SEEN"), said
    return {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", said[0])}


def assert_alone(path) -> None:
    """Nothing outside the file is named where a browser would fetch it."""
    content = path.read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)|url\((?!data:)|@import", content)


@pytest.fixture
def folders(tmp_path):
    for name, shade in (("ours", 60), ("theirs", 180)):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(np.full((32, 32, 3), shade + i, np.uint8)).save(tmp_path / name / f"{i}.png")
    return tmp_path / "ours", tmp_path / "theirs"


@pytest.mark.parametrize("stage", ["stage_one_run", "stage_two_run"])
def test_the_report_is_one_file_that_opens_at_any_width(stage, request, copy_run):
    run = copy_run(request.getfixturevalue(stage))
    call("evaluate", run, "--count", 8, "--prompts", 4, "--features", "autoencoder")
    page = run / "report.html"
    assert_alone(page)
    titles = re.findall(r"<h2>(.*?)</h2>", page.read_text())
    wanted = {"Training", "Reconstructions", "Metrics", "Protocol", "Recipe"}
    if stage == "stage_two_run":
        wanted |= {"During training", "Samples", "Nearest neighbours", "Guidance and steps"}
    assert set(titles) == wanted
    for width in WIDTHS:
        seen = looked_at(page, width)
        assert seen["width"] == width and seen["over"] <= 0 and seen["dead"] == 0 and seen["images"] > 20


def test_the_study_shows_for_its_seconds_and_saves_what_was_answered(folders, tmp_path):
    path = tmp_path / "study.html"
    user_study.main([*map(str, folders), "--output", str(path), "--seconds", "0.2"])
    assert_alone(path)
    for width in WIDTHS:
        seen = looked_at(path, width)
        assert seen["width"] == width and seen["over"] <= 0 and seen["dead"] == 0
    play = path.with_name("play.html")
    play.write_text(path.read_text().replace("</body>", PLAY + "</body>"))
    said = opened(play, 390)
    assert said[0] == "HIDDEN hidden" and len(said) == 3
    result = json.loads(said[1].removeprefix("RESULT ").replace('\\"', '"'))
    assert result["chosen_a"] == result["pairs"] == 5 and {a["name"] for a in result["answers"]} == set("01234")
    assert len({a["side"] for a in result["answers"]}) == 2  # A is not always on the same side
    assert "100 %" in said[2] and "5 of 5, 95 % interval 57 % to 100 %" in said[2]
    (tmp_path / "answers.json").write_text(json.dumps(result))
    together = user_study.read_answers([str(tmp_path / "answers.json")] * 2)
    assert together["people"] == 2 and together["answers"] == 10 and together["low"] == pytest.approx(0.7225, abs=1e-3)
    assert result["low"] == pytest.approx(user_study.wilson(5, 5)[0])


def test_pairs_are_of_one_name_and_a_seed_decides_the_sides(folders):
    a, b = folders
    (b / "3.png").unlink()
    rows = user_study.pair_files(a, b, 10)
    assert [tuple(path[-5:] for path in row) for row in rows] == [(f"{i}.png",) * 2 for i in (0, 1, 2, 4)]
    assert len(user_study.pair_files(a, b, 2)) == 2
    page = [user_study.build_page(rows, ("a", "b"), "Which?", 3, seed) for seed in (0, 0, 1)]
    assert page[0] == page[1] != page[2]


def test_folders_without_pictures_and_files_without_answers_are_refused(tmp_path, folders):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        user_study.main([str(tmp_path / "empty"), str(folders[0])])
    with pytest.raises(UserError, match="two folders"):
        user_study.main([str(folders[0])])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match="not answers"):
        user_study.read_answers([str(tmp_path / "x.json")])
