"""A talk as one text, by the template that a published tokenizer brings along."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait.errors import UsageError


class ChatTemplate:
    """Turns of a talk -> the text that a model was taught to read them as.

    Read from `chat_template.jinja` or the `chat_template` of `tokenizer_config.json`, in Jinja's sandbox: a template is
    a program from outside. Begin, end and what else it calls by name are the file's own special tokens.
    """

    def __init__(self, source: str, tokens: dict[str, str] | None = None):
        try:
            from jinja2.exceptions import TemplateError
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise UsageError("chat templates need Jinja: pip install 'plait[chat]'") from error
        made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        made.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        made.globals["raise_exception"] = self._refuse
        self.tokens, self.errors = tokens or {}, TemplateError
        try:
            self.template = made.from_string(source)
        except TemplateError as error:
            raise UsageError(f"the chat template cannot be read: {error}") from error

    @classmethod
    def read(cls, folder: str | Path, name: str = "default") -> ChatTemplate:
        """The template of a tokenizer's folder; name: which, where there are several. Raises UsageError where there is
        none."""
        folder = Path(folder)
        config, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        told: dict[str, Any] = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        source = file.read_text(encoding="utf-8") if file.is_file() else told.get("chat_template")
        if isinstance(source, list):
            source = {one["name"]: one["template"] for one in source}.get(name)
        if not source:
            raise UsageError(f"{folder} has no chat template: expected {file.name}, or one in {config.name}")
        special = {k: v["content"] if isinstance(v, dict) else v for k, v in told.items() if k.endswith("_token")}
        return cls(source, {k: v for k, v in special.items() if isinstance(v, str)})

    def render(self, turns: Sequence[dict], *, answering: bool = True, **more: Any) -> str:
        """turns: {"role": "user", "content": "..."} each. answering: the text ends where the model's turn begins.
        Raises UsageError for a talk that the template does not take."""
        try:
            return self.template.render(messages=list(turns), add_generation_prompt=answering, **self.tokens, **more)
        except self.errors as error:
            raise UsageError(f"the chat template refuses this talk: {error}") from error

    def _refuse(self, message: str) -> None:
        raise self.errors(message)
