"""Text that speaks to the model instead of about the item: taken out before it is embedded.

An encoder takes its own marks ("[SEP]", "<|im_end|>") for what they are wherever they stand, and a text that begins
like an instruction moves the vector of an embedder that was trained on instructions. Sellers try it; nobody looks for
it. Taken out are marks of models, a beginning that plays a part in a conversation, and orders to forget what was said.
"""

from __future__ import annotations

import re

__all__ = ["without_prompts"]

_MARKS = re.compile(
    r"<\|[^<>|\n]{1,40}\|>|<[｜][^<>\n]{1,40}[｜]>|\[/?INST\]|<</?SYS>>|\[(?:CLS|SEP|MASK|PAD|UNK)\]"
    r"|<(?:pad|unk|mask|bos|eos|start_of_turn|end_of_turn)>",
    re.IGNORECASE,
)
_PARTS = re.compile(
    r"\A\s*(?:#{1,6}\s*)?(?:system|assistant|human|instructions?|instruct|query|passage|search_query|search_document"
    r"|系统|指令|助手)\s*[:：]\s*",
    re.IGNORECASE,
)
_ORDERS = re.compile(
    r"\b(?:ignore|disregard|forget)\s+(?:(?:all|any|everything|the|your|of|these|those)\s+){0,4}"
    r"(?:previous|prior|above|earlier|preceding)\s+(?:instructions?|prompts?|rules|text|context|messages?)"
    r"[^.!?\n。！？]{0,200}[.!?。！？]?"
    r"|(?:忽略|无视|忘记|忘掉)(?:掉)?(?:所有|全部|一切)?(?:之前|以上|前面|上述|先前)(?:的)?(?:所有|全部|一切)?(?:的)?"
    r"(?:指令|指示|提示词?|要求|规则|内容)[^.!?\n。！？]{0,200}[.!?。！？]?",
    re.IGNORECASE,
)
_MOST_PARTS = 4
"""Beginnings one after the other that are looked for."""


def without_prompts(text: str) -> str:
    """``text``, cleaned before, without what speaks to the model; one space between words as before. May be empty."""
    if "<" in text or "[" in text:
        text = _MARKS.sub(" ", text)
    text = _ORDERS.sub(" ", text)
    for _ in range(_MOST_PARTS):
        text, found = _PARTS.subn("", text)
        if not found:
            break
    return " ".join(text.split())
