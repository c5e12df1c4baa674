"""report.html: the executed notebooks of a study as one page that stands by itself, equations drawn as MathML, to read without Jupyter."""

import html
import re
from pathlib import Path

import latex2mathml.converter
import nbformat
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from . import files, tables, words

SUMMARY = ("students", "comparisons", "grid", "robust_comparisons", "best_epoch", "published")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 60rem; margin: 0 auto; padding: 1rem; }
img, svg { max-width: 100%; height: auto; }
pre { overflow-x: auto; padding: .5rem .7rem; font-size: .85rem; line-height: 1.35; margin: .4rem 0; }
.highlight { background: #f6f6f6; border-left: 3px solid #ccc; }
.prompt, .anchor-link { display: none; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
.output { overflow-x: auto; margin: .5rem 0 1rem; }
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", math; }
math[display=block] { margin: .8rem 0; overflow-x: auto; }
nav ul { list-style: none; padding-left: 1.2rem; } nav a { text-decoration: none; }
section { border-top: 2px solid #1a1a1a; margin-top: 3rem; }
"""


class _Renderer(IPythonRenderer):
    """Markdown with equations as MathML, headings that can be linked to, and links to other notebooks within the page."""

    def __init__(self, place: str, pages: list[str], headings: list, **options) -> None:
        super().__init__(escape=False, exclude_anchor_links=True, **options)
        self.place, self.pages, self.headings = place, pages, headings

    def block_math(self, body: str) -> str:
        return latex2mathml.converter.convert(body.strip(), display="block")

    def inline_math(self, body: str) -> str:
        return latex2mathml.converter.convert(body.strip())

    def heading(self, text: str, level: int, **attributes) -> str:
        name = f"{self.place}-{len(self.headings)}"
        self.headings.append((level, name, text))
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if url.endswith(".ipynb"):
            place = Path(url).stem
            return f'<a href="#{place}">{text}</a>' if place in self.pages else text
        return super().link(text, url, title)


class _Exporter(HTMLExporter):
    """A notebook as a part of the page."""

    def __init__(self, place: str, pages: list[str]) -> None:
        super().__init__(template_name="basic")
        self.place, self.pages, self.headings = place, pages, []

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        renderer = _Renderer(self.place, self.pages, self.headings)
        return MarkdownWithMath(renderer=renderer).render(source)


def write(executed: Path, study: Path, title: str) -> Path:
    """<executed>/report.html of the notebooks that lie there; its summary is of the tables in the folder `study`.

    Raises OSError naming the file that could not be written.
    """
    notebooks = sorted(executed.glob("[0-9]*.ipynb"))
    pages = [path.stem for path in notebooks]
    contents, sections = ['<li><a href="#summary">What was found</a></li>'], []
    for path in notebooks:
        exporter = _Exporter(path.stem, pages)
        body, _ = exporter.from_notebook_node(_readable(nbformat.read(path, as_version=4)))
        sections.append(f'<section id="{path.stem}">{body}</section>')
        contents.append(_contents(exporter.headings))
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{HtmlFormatter().get_style_defs(".highlight")}</style>'
        f"</head><body><h1>{html.escape(title)}</h1>{_summary(study)}<nav><h2>Contents</h2><ul>{''.join(contents)}</ul></nav>"
        f"{''.join(sections)}</body></html>\n"
    )
    target = executed / "report.html"
    files.write_atomically(target, page.encode())
    return target


def _readable(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without progress bars, and with an alternative text for each picture: the heading that it stands under."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.M) or [heading])[-1]
            continue
        cell.outputs = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.metadata.setdefault("image/png", {})["alt"] = heading
    return notebook


def _summary(study: Path) -> str:
    """What one sees in the main figures, and what their numbers rest on."""
    said = words.told(study, SUMMARY)
    if not said:
        return '<h2 id="summary">What was found</h2><p>No figure of a study is here.</p>'
    rest = next(tables.read(path) for name in SUMMARY if (path := study / f"{name}.csv").is_file())["caption"].iloc[0]
    points = "".join(f"<li><b>{title}.</b> {html.escape(text)}</li>" for title, text in said.items())
    return f'<h2 id="summary">What was found</h2><p>{html.escape(rest)}.</p><ul>{points}</ul>'


def _contents(headings: list[tuple[int, str, str]]) -> str:
    """Of one notebook: its title, and its sections below."""
    links = {
        level: [f'<li><a href="#{name}">{text}</a></li>' for at, name, text in headings if at == level]
        for level in (1, 2)
    }
    return f"{''.join(links[1])[:-5]}<ul>{''.join(links[2])}</ul></li>" if links[1] else ""
