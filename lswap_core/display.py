"""Text from files, made safe to show: one line, and nothing that drives a terminal."""

from __future__ import annotations


def one_line(text: str) -> str:
    r"""`text` with every character that cannot be printed escaped.

    >>> one_line("a\nb"), one_line("\x1b[2J é")
    ('a\\nb', '\\x1b[2J é')
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, noun: str) -> str:
    """A number and its noun.

    >>> counted(1, "tensor"), counted(2, "tensor")
    ('1 tensor', '2 tensors')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
