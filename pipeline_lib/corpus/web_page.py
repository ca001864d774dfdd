"""The main text of an HTML page, without navigation and scripts. Needs the extra `web` (resiliparse, Apache-2.0)."""

from __future__ import annotations

from pipeline_lib.errors import ConfigError

_MOST_TITLE = 300  # characters


def need_web(where: str) -> None:
    """Raise when the extra is not installed.

    Raises:
        ConfigError: says what to install.
    """
    try:
        import fastwarc  # noqa: F401
        import resiliparse  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "HTML and WARC need the extra `web`", where=where, fix="pip install 'millrace[web]', or name other files"
        ) from error


def page(data: bytes, charset: str = "") -> tuple[bytes, dict[str, str]]:
    """The main text of a page (UTF-8), and what the page says about itself: `title` and `url` (its canonical link).

    Args:
        data: HTML in any encoding.
        charset: the encoding that a header names; "": detected from the bytes.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(bytes_to_str(data, charset or detect_encoding(data) or "utf-8"))
    text = extract_plain_text(tree, main_content=True, preserve_formatting=True, alt_texts=False, comments=False)
    facts = {"title": " ".join((tree.title or "").split())[:_MOST_TITLE]}
    link = tree.head.query_selector("link[rel=canonical]") if tree.head else None
    address = (link.getattr("href") or "") if link is not None else ""
    if address.startswith(("http://", "https://")):
        facts["url"] = address
    return text.encode("utf-8", "replace"), {name: value for name, value in facts.items() if value}
