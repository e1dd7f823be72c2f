"""Streaming text from tokens: only complete characters, and nothing that may turn out to be part of a stop string."""

from collections.abc import Sequence

from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer

_CONTEXT_TOKENS = 8
"""Earlier tokens decoded along with new ones: some tokenizers decode a token differently at the start of a text."""
_REPLACEMENT = "\ufffd"
_LONGEST_PART = 3
"""The most bytes of a UTF-8 character that can arrive without the last one."""


class TextStream:
    """The text of one continuation, up to the first stop string."""

    def __init__(self, tokenizer: Tokenizer, *, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        """Start after a prompt.

        Args:
            tokenizer: Turns tokens into text; invalid UTF-8 becomes U+FFFD.
            prompt: Tokens of the prompt.
            stop: The text ends before the first of these strings, which are not empty.
        """
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._shown = len(_whole(tokenizer.decode(self._window)))
        """Characters of the window's text that have been processed."""
        self._held = ""
        """Complete characters that may be the beginning of a stop string."""
        self.is_stopped = False
        """Whether a stop string has appeared."""

    def add(self, token: int) -> str:
        """Add a token; return the text that has become certain."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        whole = _whole(text)
        new = whole[self._shown :]
        self._shown = len(whole)
        if whole == text and len(self._window) > 2 * _CONTEXT_TOKENS:
            self._window = self._window[-_CONTEXT_TOKENS:]
            self._shown = len(_whole(self._tokenizer.decode(self._window)))
        return self._release(new)

    def finish(self) -> str:
        """Return what was held back, at the end of the continuation; an incomplete character becomes U+FFFD."""
        if self.is_stopped:
            return ""
        rest = self._tokenizer.decode(self._window)[self._shown :]
        self._shown += len(rest)
        released = self._release(rest)
        if self.is_stopped:
            return released
        held, self._held = self._held, ""
        return released + held

    def _release(self, new: str) -> str:
        text = self._held + new
        ends = [text.find(stop) for stop in self._stop if stop in text]
        if ends:
            self.is_stopped, self._held = True, ""
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _whole(text: str) -> str:
    """Return the text without replacement characters at its end that the next tokens may still complete."""
    bare = text.rstrip(_REPLACEMENT)
    return text[: max(len(bare), len(text) - _LONGEST_PART)]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
