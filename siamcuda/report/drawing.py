"""From a figure to a PNG, or to an SVG that is part of a page."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["to_png", "to_svg"]

_NAMESPACE = re.compile(r"\{[^}]*\}")


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """Draw on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure, name: str, alt: str, colours: dict[str, str]) -> str:
    """Draw to an ``<svg>`` element for a page that has several.

    Text stays text, in the page's font. Colours become CSS variables: ``#2166ac`` is written
    ``var(--genuine)`` if that is what ``colours`` calls it. Ids are told apart by ``name``, and
    what addresses other places (namespaces, metadata) is left out: HTML needs none of it.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _simplify(root, name, colours)
    for size in ("width", "height"):
        del root.attrib[size]  # the page says how large it is; the view box keeps the shape
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-alt")
    title = ElementTree.Element("title", {"id": f"{name}-alt"})
    title.text = alt
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _simplify(root: ElementTree.Element, name: str, colours: dict[str, str]) -> None:
    used = set()
    for element in root.iter():
        for value in element.attrib.values():
            used.update(re.findall(r"#([\w-]+)\)", value))
            if value.startswith("#"):
                used.add(value[1:])
    for parent in list(root.iter()):
        parent.tag = _NAMESPACE.sub("", parent.tag)
        parent.text = (parent.text or "").strip() or None
        parent.tail = (parent.tail or "").strip() or None
        for child in list(parent):
            if _NAMESPACE.sub("", child.tag) in ("metadata", "style", "title"):
                parent.remove(child)
        for key, value in list(parent.attrib.items()):
            del parent.attrib[key]
            if key == "id" and value not in used:
                continue
            parent.set(_NAMESPACE.sub("", key), _own(key, value, name, colours))


def _own(key: str, value: str, name: str, colours: dict[str, str]) -> str:
    if key == "id":
        return f"{name}-{value}"
    if _NAMESPACE.sub("", key) == "href":
        return f"#{name}-{value[1:]}"
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    for variable, colour in colours.items():
        value = value.replace(colour, f"var(--{variable})")
    # The size of text is kept, its family is the page's.
    return re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", value)
