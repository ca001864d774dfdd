"""Chat templates: how a conversation becomes text and special tokens, and which of it a model learns to say.

A template is Jinja, as `transformers` uses it, and runs in a sandbox without access to anything but the messages. It is rendered
once for every *shape* (the roles of a conversation, in order) with marks in place of what the messages say. What comes out is a
plan, a list of segments; a million conversations of one shape are then a few column operations (five times as fast as a template
rendered for each). So special tokens come from the template alone: what a message says is put into the plan as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from blake3 import blake3

from pipeline_lib.errors import ConfigError
from pipeline_lib.tokens.load import FILES, read_named
from pipeline_lib.tokens.train import EOS
from pipeline_lib.workspace.identity import file_digest

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# For tokenizers without ChatML's marks: no token is added to a vocabulary that a model was trained with.
PLAIN = (
    "{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)
FILE = "chat_template.jinja"
_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation: one special token, or a run of text that is tokenised as a whole."""

    special: int  # id of the special token; -1: text
    parts: tuple[str | int, ...]  # of text: what the template says (str) and messages (int: their place), one after the other
    learned: bool  # whether the model learns to say it


@dataclass(frozen=True)
class Plan:
    """How every conversation of one shape is put together."""

    segments: tuple[Segment, ...]
    end_learned: bool  # whether the document's end token, which follows, is learned


class ChatTemplate:
    """The chat template of a tokenizer folder.

    Attributes:
        text: the template.
        digest: blake3 of the template and of the special tokens that it may name.
        origin: "tokenizer", or "chatml" or "plain" where the tokenizer has none.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.names = special_names(folder)
        added = json.loads((folder / "tokenizer.json").read_text("utf-8")).get("added_tokens") or []
        self._special = {token["content"]: token for token in added if token.get("special")}
        self.text, self.origin = _template_of(folder, self._special)
        vocabulary = Tokenizer.from_str((folder / "tokenizer.json").read_text("utf-8")).get_vocab(with_added_tokens=True)
        self._ids = {content: int(vocabulary[content]) for content in self._special}
        if EOS in self._special:
            self.names.setdefault("eos_token", EOS)
        self._eos = self.names.get("eos_token", "")
        self.digest: str = blake3(json.dumps([self.text, self.names], sort_keys=True).encode()).hexdigest()
        self.plan = lru_cache(maxsize=None)(self._plan)

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False) -> str:
        """A conversation as the template writes it.

        Raises:
            ConfigError: the template is broken, refuses these roles, or wants what the sandbox does not give.
        """
        from jinja2 import TemplateError

        try:
            rendered: str = _compiled(self.text).render(
                messages=[dict(message) for message in messages], add_generation_prompt=add_generation_prompt, tools=None,
                documents=None, **self.names,
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise ConfigError(
                f"the chat template cannot write a conversation of {roles}: {error}", where="chat template",
                fix="drop these records, or put a chat_template.jinja that knows these roles into the tokenizer's folder",
            ) from error  # fmt: skip
        return rendered

    def stop_id(self) -> int | None:
        """The special token that ends an assistant's turn, where it is another one than the end of text; None otherwise."""
        plan = self.plan(("user", "assistant"))
        last = next((segment.special for segment in reversed(plan.segments) if segment.learned and segment.special >= 0), None)
        return None if plan.end_learned else last

    def _plan(self, roles: tuple[str, ...]) -> Plan:
        """The plan of a shape (cached).

        Raises:
            ConfigError: as `render`; or the template leaves out, repeats or changes a message.
        """
        marks = [_mark(i) for i in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        text = self.render(messages)
        places = []
        for role, mark in zip(roles, marks, strict=True):
            if text.count(mark) != 1:
                raise ConfigError(
                    f"the chat template {'repeats' if mark in text else 'leaves out'} the {role} message of a conversation of "
                    f"{', '.join(roles)}",
                    where="chat template",
                    fix="drop these records, or put a chat_template.jinja that writes every message into the tokenizer's folder",
                )
            places.append((text.index(mark), text.index(mark) + len(mark)))
        text, closed = self._without_last_end(text, max(end for _, end in places))
        specials = self._specials_in(text)
        learned = [self._answer(text, messages, places, specials, i) for i, role in enumerate(roles) if role == "assistant"]
        end_learned = False
        if roles[-1] == "assistant" and (closed or learned[-1][1] == places[-1][1]):
            end_learned = True  # the end of the document ends the answer
            learned[-1] = (learned[-1][0], len(text) if closed else learned[-1][1])
        return Plan(tuple(_segments(text, places, specials, learned)), end_learned)

    def _without_last_end(self, text: str, last: int) -> tuple[str, bool]:
        """Cut off an end token at the end, with white space around it: packing puts one behind every document."""
        tail = text[last:].rstrip()
        if not self._eos or not tail.endswith(self._eos):
            return text, False
        only = tail.removesuffix(self._eos).strip() == ""
        return text[:last] + tail.removesuffix(self._eos), only

    def _specials_in(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, id) of the special tokens in what the template wrote, with the white space that they take along."""
        if not self._special:
            return []
        ordered = sorted(self._special.values(), key=lambda token: -len(token["content"]))
        space = {True: r"\s*", False: ""}
        choices = "|".join(
            f"{space[bool(t.get('lstrip'))]}(?P<t{number}>{re.escape(t['content'])}){space[bool(t.get('rstrip'))]}"
            for number, t in enumerate(ordered)
        )
        ids = {f"t{number}": self._ids[token["content"]] for number, token in enumerate(ordered)}
        return [(found.start(), found.end(), ids[str(found.lastgroup)]) for found in re.finditer(choices, text)]

    def _answer(
        self,
        text: str,
        messages: Sequence[Mapping[str, str]],
        places: Sequence[tuple[int, int]],
        specials: Sequence[tuple[int, int, int]],
        turn: int,
    ) -> tuple[int, int]:
        """What of the text is learned for a turn: from where generation would begin to the token that ends the turn."""
        start, end = places[turn]
        asked = self.render(messages[:turn], add_generation_prompt=True) if turn else ""
        if asked and text.startswith(asked) and len(asked) <= start:
            start = len(asked)
        following = min((begin for begin, _ in places if begin >= end), default=len(text))
        ending = next((special for special in specials if special[0] >= end), None)
        return start, ending[1] if ending is not None and ending[0] < following else end


@lru_cache(maxsize=32)
def _compiled(text: str) -> Any:
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks answers for other tools; here it is its body."""

        tags = {"generation"}  # noqa: RUF012 - as its base class has it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as error:
        raise ConfigError(f"cannot be read as a chat template ({error})", where="chat template") from error


@lru_cache(maxsize=8)
def _loaded(folder: Path, digests: tuple[str, ...]) -> ChatTemplate:
    return ChatTemplate(folder)


def chat_template(folder: Path) -> ChatTemplate:
    """The chat template of a tokenizer folder, kept while its files stay the same."""
    return _loaded(folder, tuple(file_digest(folder / name) if (folder / name).is_file() else "" for name in FILES))


def special_names(folder: Path) -> dict[str, str]:
    """The special tokens that a template may name (`eos_token` …), as the tokenizer's files say."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        known = read_named(folder, file)
        for name in _SPECIAL_NAMES:
            value = known.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                found[name] = value
    return found


def _template_of(folder: Path, special: Mapping[str, Any]) -> tuple[str, str]:
    if (folder / FILE).is_file():
        return (folder / FILE).read_text("utf-8"), "tokenizer"
    told = read_named(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(told, list):  # several under names
        told = next((one["template"] for one in told if one.get("name") == "default"), None)
    if isinstance(told, str) and told:
        return told, "tokenizer"
    return (CHATML, "chatml") if {TURN_START, TURN_END} <= special.keys() else (PLAIN, "plain")


def _mark(turn: int) -> str:
    """Stands for a message while a template is rendered: letters and digits, which no template changes, and no template says."""
    return f"Qzx{blake3(f'message {turn}'.encode()).hexdigest(16)}xzQ"


def _segments(
    text: str,
    places: Sequence[tuple[int, int]],
    specials: Sequence[tuple[int, int, int]],
    learned: Sequence[tuple[int, int]],
) -> list[Segment]:
    """Cut a rendered text at its special tokens and where learning begins and ends."""
    tokens = {start: (end, number) for start, end, number in specials}
    inside = [(start, end) for start, end, _ in specials]
    cuts = {0, len(text), *(place for special in inside for place in special)}
    cuts |= {place for span in learned for place in span if not any(a < place < b for a, b in inside)}
    ordered = sorted(cuts)
    found = []
    for start, end in pairwise(ordered):
        is_learned = any(a <= start and end <= b for a, b in learned)
        if start in tokens:
            found.append(Segment(tokens[start][1], (), is_learned))
            continue
        parts: list[str | int] = []
        at = start
        for turn, (begin, stop) in sorted(enumerate(places), key=lambda one: one[1]):
            if start <= begin and stop <= end:
                parts += [text[at:begin], turn]
                at = stop
        parts.append(text[at:end])
        found.append(Segment(-1, tuple(part for part in parts if part != ""), is_learned))
    return found
