"""The user's terminal. Texts of others are shown as they are: they tell neither rich nor the terminal what to do.

Every line on the screen has some text that we did not write: a path, a name of the data, the error of a server. So
nothing here is markup or the name of an emoji; colour is given beside the text, as `style=`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""C0 but for newline and tab, DEL, C1: what a terminal acts on rather than shows."""


def visible(text: str) -> str:
    r"""The text with its control characters spelled, ESC as `\x1b`; newlines and tabs stay."""
    return text.translate(_CONTROLS)


class Terminal(Console):
    """Where the user reads: text is no markup, and only our own colours and bars move anything.

    Args:
        file: The stream.
        width: Columns where the stream is no terminal; rich's own where absent.
    """

    def __init__(self, file: IO[str], width: int | None = None) -> None:
        given = None if file.isatty() else width
        super().__init__(file=file, soft_wrap=True, width=given, markup=False, emoji=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """As rich, of the visible text: here tables and lines are measured, and rich has dropped nothing yet."""
        return super().render_str(visible(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich; what came as a `Text` or a traceback is made visible too. Segments of control are rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
