"""A hook of MkDocs: what the documentation links to outside of docs/ (examples, code) becomes pages of the site.

The links in docs/ lead to files of the repository, so that they work where the repository is read. A site has docs/
alone: each linked file is added to it as a page below ``source/``, and the links are changed to lead there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]

FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)

LINK = re.compile(r"(\]\()([^)\s]+)(\))")

LANGUAGES = {".py": "python", ".c": "c", ".yml": "yaml", ".toml": "toml", ".sh": "bash", ".json": "json"}

PICTURES = (".png", ".svg", ".jpg")


def targets(markdown: str) -> list[str]:
    """The links of a page that lead to files, without their anchors."""
    prose = "".join(FENCE.split(markdown)[::2])
    found = (link[1].partition("#")[0] for link in LINK.findall(prose))
    return [target for target in found if target and not re.match(r"\w+:", target)]


def place_in_site(path: str) -> str:
    """Where a file of the repository is among the site's sources; ``path`` counts from the repository's root."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path / "README.md").is_file():
        return f"source/{path}/README.md"
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    return f"source/{path}" if path.endswith((".md", *PICTURES)) else f"source/{path}.md"


def with_site_links(markdown: str, own: str) -> str:
    """The page ``own`` (its path in the repository) with links to where the site has what they lead to."""

    def changed(match: re.Match[str]) -> str:
        target, hash_, anchor = match[2].partition("#")
        if not target or re.match(r"\w+:", target):
            return match[0]
        path = os.path.normpath(os.path.join(os.path.dirname(own), target))
        link = os.path.relpath(place_in_site(path), os.path.dirname(place_in_site(own)) or ".")
        return f"{match[1]}{link}{hash_}{anchor}{match[3]}"

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(changed, part) for part in parts[::2]]
    return "".join(parts)


def source_page(path: str) -> str:
    """A file or folder of the repository as Markdown; a page of Markdown stays as it is."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(
            f"{entry.name}/" if entry.is_dir() else entry.name
            for entry in file.iterdir()
            if not entry.name.startswith((".", "_"))
        )
        return f"# {path}/\n\n" + "\n".join(f"- [{name}]({name})" for name in names) + "\n"
    text = file.read_text(encoding="utf-8")
    if path.endswith(".md"):
        # Python-Markdown wants four spaces before a list inside of a numbered one, where GitHub is content with three.
        return re.sub(r"^ {3}(?=- |  \S)", "    ", text, flags=re.MULTILINE)
    language = LANGUAGES.get(file.suffix, "text")
    return f"# {path}\n\n````{language}\n{text}````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add all files outside of docs/ to which pages lead, and those to which these lead."""
    docs = Path(config.docs_dir)
    new = [(f"docs/{file.src_uri}", (docs / file.src_uri).read_text("utf-8")) for file in files.documentation_pages()]
    seen = set()
    while new:
        own, markdown = new.pop()
        for target in targets(markdown):
            path = os.path.normpath(os.path.join(os.path.dirname(own), target))
            if path in seen or path.startswith("docs/") or not (ROOT / path).exists():
                continue
            seen.add(path)
            if (ROOT / path / "README.md").is_file():
                path += "/README.md"
                if path in seen:
                    continue
                seen.add(path)
            if path.endswith(PICTURES):
                files.append(File.generated(config, place_in_site(path), abs_src_path=str(ROOT / path)))
                continue
            page = source_page(path)
            place = place_in_site(path)
            # A folder's page lists links as from inside of it.
            inside = f"{path}/index.md" if (ROOT / path).is_dir() else path
            files.append(File.generated(config, place, content=with_site_links(page, inside)))
            new.append((inside, page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The links of a page of docs/; those of the pages that :func:`on_files` adds are changed already."""
    if page.file.generated_by is not None:
        return markdown
    return with_site_links(markdown, f"docs/{page.file.src_uri}")
