"""The links of the documents lead somewhere, and what docs/findings.md claims says how sure it is."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("pretrained/*.md"), *ROOT.glob("data/*/*.md")])
STATUS = r"(holds, (?:[3-9]|\d\d) |one |two |superseded$|negative, )"


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def links(text):
    """Where the links and pictures of a page lead, but for those to other sites."""
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    found += re.findall(r"^\[[^\]]+\]: (\S+)", text, re.M)
    return [x for x in found if not re.match(r"[a-z]+:", x)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    """Each to a file that is there, and to a heading that it has."""
    for link in links(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_links_by_name_are_defined():
    """Each [name] of the open questions has a line of its own that says where it leads, and each such line is used."""
    text = (ROOT / "docs/open.md").read_text(encoding="utf-8")
    defined = re.findall(r"^\[([^\]]+)\]: \S+$", text, re.M)
    body = re.sub(r"^\[[^\]]+\]:.*$", "", text, flags=re.M)
    used = {" ".join(name.split()) for name in re.findall(r"\[([^\]]+)\](?!\()", body)}
    assert used == set(defined)
    assert len(defined) == len(set(defined))


def test_links_are_found_and_headings_are_told_apart():
    assert links('a [b](c.md#d-e), [f](https://g.h) ![i](j.png) <img src="k.png"> [l\nm](n)\n[o]: p.md') == [
        "c.md#d-e", "j.png", "n", "k.png", "p.md"]
    log = anchors(ROOT / "root.md")
    assert len(log) == len(set(log))
    assert "cuda-graphs-40-ms-a-step-instead-of-146" in log


def test_the_log_has_headings_instead_of_bold_lead_ins():
    """So that each paragraph which says something new can be linked."""
    text = (ROOT / "root.md").read_text(encoding="utf-8")
    assert re.findall(r"\n\n(\*\*[^*\n]+[.:]\*\*.*)", text) == []


def test_each_finding_says_how_sure_it_is():
    rows = [[cell.strip() for cell in line.strip("|\n ").split(" | ")]
            for line in (ROOT / "docs/findings.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    rows = [row for row in rows if row[0] != "finding" and not set(row[0]) <= set("- |")]
    assert len(rows) > 40
    for finding, status, evidence in rows:
        assert re.match(STATUS, status), (finding, status)
        assert "../root.md#" in evidence, finding
