"""viewer.py: what its page holds, and what the page does in a browser."""
import html
import json
import math
import re
import shutil
import subprocess

import pytest

import viewer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; on Debian: apt install chromium")
ATTACK = "</script><img onerror=document.title='broken' src=x>"
PROBE = """<script>
const seen = {}, cells = () => [...document.querySelectorAll(".token")];
const says = () => cells().map(c => c.querySelector(".says").textContent).join(" ");
const move = l => { const s = document.getElementById("loop"); s.value = l; s.dispatchEvent(new Event("input")); };
const press = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
try {
  seen.list = [...document.querySelectorAll("#list button")].map(b => b.textContent);
  for (const l of [1, 2, 3]) { move(l); seen["loop " + l] = says(); }
  move(1);
  seen.entropy = cells().map(c => c.querySelector(".entropy").textContent).join(" ");
  seen.thinking = cells().map(c => Number(c.classList.contains("thinking"))).join("");
  seen.shades = cells().map(c => c.style.getPropertyValue("--share")).join(" ");
  seen.loops = cells().map(c => c.querySelector(".loops").textContent).join(" ");
  cells()[1].click();
  seen.clicked = document.getElementById("detail").textContent;
  seen.charts = [...document.querySelectorAll("#detail svg")].map(s => s.getAttribute("aria-label"));
  const drawn = [...document.querySelectorAll("#detail svg")];
  seen.axes = drawn.map(s => s.textContent);
  seen.heights = drawn.map(s => [...s.querySelectorAll(".point")].map(p => Number(p.getAttribute("cy"))));
  press("ArrowRight"); press("ArrowUp");
  seen.focus = cells().indexOf(document.activeElement);
  seen.label = document.activeElement.getAttribute("aria-label");
  seen.outline = getComputedStyle(document.activeElement).outlineStyle;
  seen.active = document.hasFocus();
  seen.tabbable = cells().filter(c => c.tabIndex === 0).length;
  press("ArrowDown"); press("ArrowDown"); press("Home"); press("ArrowLeft");
  seen.first = document.getElementById("now").textContent + cells().indexOf(document.activeElement);
  document.querySelectorAll("#list button")[1].click();
  seen.attack = cells()[0].querySelector(".reads").textContent;
  seen.lines = [...document.querySelectorAll("#lines button")].map(b => b.textContent);
  seen.differs = [...document.querySelectorAll("#lines .differs")].map(b => b.textContent).join("");
  seen.images = document.querySelectorAll("img").length;
  seen.wide = document.documentElement.scrollWidth > innerWidth;
} catch (e) { seen.error = String(e); }
const found = Object.assign(document.createElement("pre"), {id: "seen", textContent: JSON.stringify(seen)});
document.body.replaceChildren(found);
</script></body>"""


def row(reads, writes, guesses, L=3, rule=lambda e: e):
    """A row of the trace of a token that takes as many loops as it has guesses, of L, and is surer after each."""
    n = len(guesses)
    entropy = [1.5 / (l + 1) for l in range(n)] + [None] * (L - n)
    return dict(reads=reads, writes=writes, loops=n, prediction=[*guesses, *[guesses[-1]] * (L - n)], entropy=entropy,
                confidence=[e and 1 - e / 2 for e in entropy], delta=entropy, score=[e and rule(e) for e in entropy])


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_holds_what_came_before_halting():
    rows = [row("한", None, ["글", "말"]), row("말", "a", ["b", "c", "a"])]
    found, = data_of(viewer.page([viewer.sequence(rows, [-math.inf, 0.5])], "entropy", "x"))["sequences"]
    first, second = found["tokens"]
    assert found["title"] == "한말"
    assert (first["threshold"], first["entropy"], first["prediction"]) == (None, [1.5, 0.75], ["글", "말"])
    assert (second["threshold"], second["loops"], second["score"]) == (0.5, 3, [1.5, 0.75, 0.5])


def test_a_page_of_200_tokens_is_small_and_asks_nothing_of_a_network():
    rows = [row("a", "b", ["c", "b"] * 32, 64, lambda e: e / 3) for _ in range(200)]
    page = viewer.page([viewer.sequence(rows, [0.1] * 200)], "entropy", "x")
    assert len(page.encode()) < 1e6
    asks = r"""(src|href)=(?!"data:,")|@import|url\(|fetch\(|https?://(?!www.w3.org/2000/svg")"""
    assert re.search(asks, page) is None
    assert "default-src 'none'" in page


def test_text_of_the_model_is_no_markup():
    page = viewer.page([viewer.sequence([row(ATTACK, None, [ATTACK])], [1.0], ATTACK)], "entropy", "<b>" + ATTACK)
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert data_of(page)["sequences"][0]["tokens"][0]["reads"] == ATTACK


def in_browser(page, folder):
    """What PROBE sees of a page in Chromium."""
    (folder / "page.html").write_text(page.replace("</body>", PROBE), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               "--window-size=1200,900",
               f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom"]
    run = subprocess.run([*command, (folder / "page.html").as_uri()], capture_output=True, encoding="utf-8",
                         timeout=300, check=True)
    assert "CONSOLE" not in run.stderr
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', run.stdout, re.S)[1]))
    assert "error" not in seen, seen["error"]
    return seen


@needs_chromium
@pytest.mark.parametrize("falls", [[4.0, 0.002, 0.03], [4.0, -0.5, 0.02], [4.0, 0.0, 0.02]], ids=str)
def test_a_curve_shows_rises_of_energy(tmp_path, falls):
    """As far below 0 as they are; and a log scale where none is there. The labels tell a fall from an energy."""
    tokens = [row("a", "b", ["c"] * 3), row("b", "c", ["d"] * 3)]
    tokens[1]["score"] = falls
    shown = viewer.sequence(tokens, [0.01, 0.01], "x")
    seen = in_browser(viewer.page([shown, shown], "energy", "x"), tmp_path)
    assert seen["charts"][3].startswith("Score (fall of energy)")
    *heights, end = seen["heights"][3]
    logarithmic = min(falls) > 0
    assert ("log scale" in seen["axes"][3]) == logarithmic
    apart = [math.log(x) if logarithmic else x for x in falls]
    share = (apart[0] - apart[2]) / (apart[0] - apart[1])
    assert (heights[0] - end) / (heights[0] - heights[1]) == pytest.approx(share, rel=1e-3)


@needs_chromium
def test_why_a_token_took_all_loops(tmp_path):
    """A score that passes before min_loops halts nothing, and is not passed over."""
    tokens = [row("a", "b", ["c"] * 3), row("b", "c", ["d"] * 3)]
    for score, min_loops, said in (
            ([0.095, 4.0, 3.0], 2, "fall of energy never was ≤ 1 from loop 2 on, the first that may halt it."),
            ([5.0, 4.0, 0.5], 4, "fall of energy never was ≤ 1 from loop 4 on, the first that may halt it."),
            ([0.095, 4.0, 0.5], 2, "It halted in loop 3: fall of energy 0.50 ≤ 1."),
            ([5.0, 4.0, 3.0], 1, "fall of energy never was ≤ 1.")):
        tokens[1]["score"] = score
        shown = viewer.sequence(tokens, [1.0, 1.0], "x")
        assert said in in_browser(viewer.page([shown, shown], "energy", "x", min_loops), tmp_path)["clicked"]


@needs_chromium
def test_the_page_in_a_browser(tmp_path):
    """The slider changes what tokens say; clicks, keys and labels work; nothing is said on the console."""
    first = viewer.sequence([row("1", None, ["9", "2"]), row("+", "2", ["2"]), row("한", "3", ["1", "2", "3"])],
                            [-math.inf, 1.5, 0.6], "1+2=3", [("1+2=21", False), ("1+2=22", False), ("1+2=3", True)])
    second = viewer.sequence([row(ATTACK, "b", ["a", "b"]), row("<i>", "d", ["d"])], [1.0, 2.0])
    page = viewer.page([first, second], "entropy", "x")
    for _ in range(5):  # until the window has the focus, without which nothing on a page is shown as focused
        seen = in_browser(page, tmp_path)
        if seen["active"]:
            break
    assert seen["list"] == ["1+2=3", (ATTACK + "<i>")[:viewer.TITLE] + "…"]
    assert [seen[f"loop {l}"] for l in (1, 2, 3)] == ["9 2 1", "2 2 2", "2 2 3"]
    assert seen["entropy"] == "1.50 1.50 1.50"
    assert (seen["thinking"], seen["loops"]) == ("101", "2 1 3")
    assert [float(x) for x in seen["shades"].split()] == pytest.approx([2 / 3, 1 / 3, 1])
    assert "Token 2 reads + and writes 2" in seen["clicked"]
    assert "halted in loop 1: entropy 1.50 ≤ 1.5" in seen["clicked"]
    assert ["Entropy", "Confidence", "Delta", "Score"] == [label.split()[0].strip(",") for label in seen["charts"]]
    assert seen["charts"][3].endswith("threshold 1.5")
    assert (seen["focus"], seen["tabbable"]) == (2, 1)
    assert (seen["active"], seen["outline"]) == (True, "solid")
    assert seen["label"] == ("token 3 of 3: reads 한, says 2 after loop 2, will change, entropy 0.75 nats, "
                             "still thinking, takes 3 loops")
    assert seen["first"] == "After loop 1 of 30"
    assert (seen["attack"], seen["images"]) == (ATTACK, 0)
    assert seen["lines"] == ["loop 1ad", "loop 2bd"]
    assert seen["differs"] == "a"
    assert not seen["wide"]
