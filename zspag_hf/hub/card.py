"""Licence and language out of a model's card, as short texts; whatever else stands in it is never built.

YAML makes of a few lines a nest that takes forever to write down again, and of ``no`` (Norwegian) false. So the header
is read event by event: what is wanted is taken as it is written, the rest is passed over.
"""

from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

TEXTS = ("license", "license_name", "license_link")
LANGUAGE = "language"
MOST_CHARACTERS, DEEPEST = 100_000, 50  # of a header
LONGEST, MOST_LANGUAGES = 300, 100
STRING, SEQUENCE, NULL = (f"tag:yaml.org,2002:{name}" for name in ("str", "seq", "null"))
NORWEGIAN = "no"
Value = str | list[str]


def card_fields(path: Path) -> tuple[dict[str, Value], list[str]]:
    """The fields of TEXTS and LANGUAGE that a card has, and what is wrong with those that it has and that are left out.

    Raises:
        yaml.YAMLError, ValueError: a header that is no YAML mapping, too long, too deep, or no text.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        text = file.read(MOST_CHARACTERS + 1)
    if (header := REGEX_YAML_BLOCK.search(text)) is None:
        if text.lstrip().startswith("---\n") and len(text) > MOST_CHARACTERS:
            raise ValueError(f"the header of {path.name} has over {MOST_CHARACTERS:,} characters.")
        return {}, []
    fields, wrong = dict[str, Value](), list[str]()
    for key, events in top_level(yaml.parse(header.group(2), Loader=yaml.SafeLoader)):
        if key not in (*TEXTS, LANGUAGE):
            continue
        fields.pop(key, None)
        if is_empty(events):
            continue
        held = language_of(events) if key == LANGUAGE else text_of(events)
        if held is None:
            wrong.append(f"its {key} is no {'language code or list of them' if key == LANGUAGE else 'plain text'}")
        else:
            fields[key] = held
    return fields, wrong


def check_nesting(header: str) -> None:
    """Refuse a header that grows without bounds once it is built: an alias inside what an anchor names.

    Raises:
        yaml.YAMLError, ValueError: that, or one that is nested too deep.
    """
    anchored = list[bool]()
    for event in yaml.parse(header, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            anchored.append(event.anchor is not None)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchored.pop()
        elif isinstance(event, yaml.AliasEvent) and any(anchored):
            raise ValueError(f"it has the alias {event.anchor!r} inside of an anchor.")
        if len(anchored) > DEEPEST:
            raise ValueError(f"it is nested over {DEEPEST} deep.")


def top_level(events: Iterator[yaml.Event]) -> Iterator[tuple[str | None, list[yaml.Event]]]:
    """Key and events of the value of every entry of a mapping; None for a key that is no text."""
    start = next(event for event in events if not isinstance(event, (yaml.StreamStartEvent, yaml.DocumentStartEvent)))
    if isinstance(start, yaml.StreamEndEvent) or (isinstance(start, yaml.ScalarEvent) and is_empty([start])):
        return
    if not isinstance(start, yaml.MappingStartEvent):
        raise ValueError("the header is no mapping.")
    while key := whole(events):
        yield (key[0].value if isinstance(key[0], yaml.ScalarEvent) else None), whole(events)


def whole(events: Iterator[yaml.Event]) -> list[yaml.Event]:
    """The events of the next value; of a long one, those of its first entries. Empty at the end of the mapping."""
    depth, kept = 0, list[yaml.Event]()
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth < 0:
            return []
        if depth > DEEPEST:
            raise ValueError(f"the header is nested over {DEEPEST} deep.")
        if len(kept) <= MOST_LANGUAGES + 2:
            kept.append(event)
        if depth == 0:
            return kept
    return []


def is_empty(events: list[yaml.Event]) -> bool:
    """Whether a value is null."""
    return isinstance(events[0], yaml.ScalarEvent) and kind(events[0]) == NULL


def kind(event: yaml.ScalarEvent) -> str:
    """The tag that YAML gives to a scalar."""
    return event.tag or yaml.resolver.Resolver().resolve(yaml.ScalarNode, event.value, event.implicit)


def text_of(events: list[yaml.Event]) -> str | None:
    """A text of one line, also as the only one of a list; None for anything else."""
    held = scalars(events)
    fits = len(held) == 1 and kind(held[0]) == STRING and is_short(held[0].value, LONGEST)
    return held[0].value.strip() if fits else None


def language_of(events: list[yaml.Event]) -> Value | None:
    """A language code, or a list of them; None for anything else."""
    held = scalars(events)
    codes = [event.value.lower() if event.value.lower() == NORWEGIAN else event.value.strip() for event in held]
    sound = all(kind(e) == STRING or c == NORWEGIAN for e, c in zip(held, codes, strict=True))
    if not held or not sound or len(held) > MOST_LANGUAGES or not all(is_short(code, 40) for code in codes):
        return None
    return codes[0] if isinstance(events[0], yaml.ScalarEvent) else codes


def scalars(events: list[yaml.Event]) -> list[yaml.ScalarEvent]:
    """A scalar, or those of a flat list; empty for anything else."""
    plain = isinstance(events[0], yaml.SequenceStartEvent) and events[0].tag in (None, SEQUENCE)
    inner = events[1:-1] if plain else events
    return inner if all(isinstance(event, yaml.ScalarEvent) for event in inner) else []


def is_short(text: str, most: int) -> bool:
    """Whether a text is one printable line, and not too long."""
    return 0 < len(text.strip()) <= most and text.strip().isprintable()
