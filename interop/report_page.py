"""Checks a page that `longshore quantize --report FILE` or `longshore eval compare --html FILE` wrote, as a reader's browser
would see it.

    python interop/report_page.py report.html [--browser PATH] [--out DIR]

The page must be well-formed, load nothing, have its plots; that of a quantization also a mark for every layer of its pattern.
Where a headless Chromium is found it is also drawn, wide and narrow, and must not be blank.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

BROWSERS = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"]
HTML = "{http://www.w3.org/1999/xhtml}"


def check_source(text: str) -> list[str]:
    """What is wrong with the page as text."""
    root = ElementTree.fromstring(text)
    problems = []
    names = [element.tag.removeprefix(HTML) for element in root.iter()]
    for name in ("script", "link", "img", "iframe", "object"):
        if name in names:
            problems.append(f"there is a <{name}>")
    for element in root.iter():
        problems += [f"`{key}` loads something" for key in element.attrib if key in ("src", "href", "srcset", "data")]
    if re.search(r"url\(|@import", text):
        problems.append("the style loads something")
    if names.count("h1") != 1 or "table" not in names:
        problems.append("the heading or the tables are missing")
    if not any(element.attrib.get("role") == "img" for element in root.iter(f"{HTML}svg")):
        problems.append("there is no plot")
    return problems + (check_layers(root) if "quantization report" in (root.findtext(f".//{HTML}title") or "") else [])


def check_layers(root: ElementTree.Element) -> list[str]:
    """What is wrong with the plots of a quantization."""
    problems = []
    pattern = next((element.text or "" for element in root.iter(f"{HTML}code")), "")
    titles = [element.text or "" for element in root.iter(f"{HTML}title")]
    for layer, letter in enumerate(pattern):
        if not any(re.match(rf"layer {layer}[,:]", title) for title in titles):
            problems.append(f"nothing is plotted of layer {layer} ({letter})")
    if not pattern:
        problems.append("the pattern of the layers is missing")
    return problems


def draw(browser: str, page: pathlib.Path, width: int, out: pathlib.Path) -> list[str]:
    """What is wrong with the page as it is drawn."""
    picture = out / f"{page.stem}-{width}.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},3000"]
    command += [f"--screenshot={picture}", page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0 or not picture.exists():
        return [f"drawing failed: {done.stderr.strip()[-300:]}"]
    # One colour compresses to almost nothing.
    size = picture.stat().st_size
    return [f"the picture at a width of {width} is blank ({size} bytes)"] if size < 30_000 else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--browser", default=next(filter(None, map(shutil.which, BROWSERS)), None))
    parser.add_argument("--out", type=pathlib.Path, help="keep the pictures here")
    args = parser.parse_args()
    problems = check_source(args.page.read_text(encoding="utf-8"))
    if args.browser is None:
        print("no Chromium found: the page was not drawn")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            out = args.out or pathlib.Path(temporary)
            out.mkdir(parents=True, exist_ok=True)
            for width in (1200, 420):
                problems += draw(args.browser, args.page, width, out)
    for problem in problems:
        print(f"{args.page}: {problem}", file=sys.stderr)
    print("bad" if problems else "good")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
