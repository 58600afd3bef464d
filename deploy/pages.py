"""The documentation as a site: which files are its pages, and where links lead there.

Pages are written for who reads them in the repository. A page in docs/ is a page of the site; README.md,
its home there, and whatever else a page links to is taken from where it lies, so that nothing is said twice.
Links are rewritten to where their targets went; anchors are those that repositories make of headings.
mkdocs calls the functions `on_…`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NAMED = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "promises.md",
    "examples/README.md": "examples.md",
}
PICTURES = {".png", ".svg", ".jpg"}
LANGUAGES = {
    ".py": "python",
    ".go": "go",
    ".js": "js",
    ".mjs": "js",
    ".java": "java",
    ".sh": "sh",
    ".proto": "protobuf",
    ".toml": "toml",
}
FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:|/)([^)#\s]*)(#[^)\s]*)?\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """The text with all that is no block of code changed."""
    parts, end = [], 0
    for block in FENCE.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def slug(heading: str, separator: str = "-") -> str:
    """The anchor of a heading, as repositories make it: small letters, no punctuation, spaces as hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def anchors(text: str) -> set[str]:
    """Every anchor of a page."""
    seen: dict[str, int] = {}
    found = set()
    for heading in HEADING.findall(outside_fences_only(text)):
        name = slug(re.sub(r"\]\([^)]*\)", "]", heading))
        found.add(f"{name}-{seen[name]}" if name in seen else name)
        seen[name] = seen.get(name, 0) + 1
    return found


def outside_fences_only(text: str) -> str:
    """The text without its blocks of code."""
    return FENCE.sub("", text)


def links(text: str) -> Iterator[tuple[str, str]]:
    """Path and anchor of every link and picture that stays here; an empty path is the page itself."""
    for path, anchor in LINK.findall(outside_fences_only(text)):
        yield path, anchor.removeprefix("#")


def target(source: str, path: str) -> str:
    """What a link of `source` names, below the root; of a folder its README.md, where it has one."""
    found = posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source
    readme = f"{found}/README.md"
    return readme if (ROOT / readme).is_file() else found


def place(path: str) -> str:
    """Where a file or folder of the repository stands in the site."""
    if path in NAMED:
        return NAMED[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    kept = (ROOT / path).suffix in {".md", *PICTURES}
    return f"files/{path}" if kept else f"files/{path}.md"


def taken() -> list[str]:
    """The files and folders outside docs/ that pages are made of: those named, and what is linked."""
    found = list(NAMED)
    waiting = [*found, *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
    while waiting:
        source = waiting.pop()
        for path, _ in links((ROOT / source).read_text(encoding="utf-8")):
            one = target(source, path)
            if one not in found and not one.startswith("docs/") and (ROOT / one).exists():
                pages = [f"{one}/{p.name}" for p in (ROOT / one).glob("*.md")]
                found += [one, *pages]
                waiting += [p for p in (one, *pages) if p.endswith(".md")]
    return list(dict.fromkeys(found))


def shown(path: str) -> str:
    """A page that shows what is none: a file's text, or what is in a folder."""
    whole = ROOT / path
    if whole.is_dir():
        files = sorted(p for p in whole.iterdir() if p.suffix in {".md", *LANGUAGES})
        lines = (f"[{p.stem}]({whole.name}/{p.name})" if p.suffix == ".md" else f"`{p.name}`" for p in files)
        return f"# `{path}`\n\n" + "".join(f"- {line}\n" for line in lines)
    text = whole.read_text(encoding="utf-8").rstrip()
    return f"# `{path}`\n\n~~~~{LANGUAGES.get(whole.suffix, 'text')}\n{text}\n~~~~\n"


def rewritten(text: str, source: str) -> str:
    """A page of the repository with its links as the site has them."""
    here = posixpath.dirname(place(source))

    def relinked(link: re.Match[str]) -> str:
        if not link[1]:
            return link[0]
        there = posixpath.relpath(place(target(source, link[1])), here or ".")
        return f"]({there}{link[2] or ''})"

    return outside_fences(text, lambda part: LINK.sub(relinked, part))


# What mkdocs calls.

_sources: dict[str, str] = {}  # page of the site: file of the repository
_written: dict[str, str] = {}  # page of the site: its text there


def on_config(config: Any) -> Any:
    """Anchors as repositories make them, so that a link with one leads there in both."""
    config.mdx_configs["toc"] = {**config.mdx_configs.get("toc", {}), "slugify": slug}
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds what lies outside docs/."""
    from mkdocs.structure.files import File

    _sources.clear()
    _sources.update({f.src_uri: f"docs/{f.src_uri}" for f in files if f.src_uri.endswith(".md")})
    for path in taken():
        kept = (ROOT / path).suffix in {".md", *PICTURES}
        said = {"abs_src_path": str(ROOT / path)} if kept else {"content": shown(path)}
        files.append(File.generated(config, place(path), **said))
        if kept and path.endswith(".md"):
            _sources[place(path)] = path
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrites links, and keeps the text for those who read no HTML."""
    source = _sources.get(page.file.src_uri)
    if page.file.src_uri.startswith("files/"):
        page.meta["search"] = {"exclude": True}
    _written[page.file.src_uri] = rewritten(markdown, source) if source else markdown
    return _written[page.file.src_uri]


def on_post_build(config: Any) -> None:
    """Writes each page's text beside it, and llms.txt, a list of them."""
    site = Path(config.site_dir)
    for name, text in _written.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text, encoding="utf-8")
    sections = (f"## {title}\n\n{_listed(pages)}" for title, pages in _grouped(config.nav))
    head = f"# {config.site_name}\n\n> {config.site_description}\n"
    (site / "llms.txt").write_text("\n".join([head, *sections]), encoding="utf-8")


def _grouped(nav: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    for entry in nav:
        ((title, pages),) = entry.items()
        yield title, pages if isinstance(pages, list) else [entry]


def _listed(pages: list[Any]) -> str:
    named = ((title, path) for entry in pages for title, path in entry.items())
    return "".join(f"- [{title}]({path})\n" for title, path in named)
