"""The base model's card: licence and language as texts, whatever else it holds, in no time."""

import json
import os
import time
import warnings

import pytest
import yaml

from zspag_hf.hub.models import inherited_card

STEPS = list(zip("abcdefgh", "bcdefghi", strict=True))
NEST = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in STEPS)
MERGED = "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in STEPS)


@pytest.fixture
def card(tmp_path):
    """What is taken from a header; fails where that takes long, or cannot be written down again."""

    def card(header, told=None):
        (tmp_path / "README.md").write_text(f"---\n{header}\n---\n# A model\n", encoding="utf-8")
        start = time.perf_counter()
        if told is None:
            with warnings.catch_warnings(action="error"):
                taken = inherited_card(tmp_path)
        else:
            with pytest.warns(UserWarning, match=told):
                taken = inherited_card(tmp_path)
        assert len(json.dumps(taken)) < 10_000 and yaml.safe_load(yaml.safe_dump(taken)) == taken
        assert time.perf_counter() - start < 5
        return taken

    return card


@pytest.mark.parametrize("nest", [NEST, MERGED])
@pytest.mark.parametrize("where", ["tags: *i", "license: *i", "language: *i", "language: [en, *i]", "license: &l [*i]"])
def test_a_nest_of_aliases_is_passed_over(card, nest, where):
    told = None if where.startswith("tags") else f"its {where.split(':')[0]} is no"
    assert card(f"{nest}{where}\nlicense_name: own\n", told) == {"license_name": "own"}


@pytest.mark.parametrize("text", ["no", "No", "NO", "[no, en]", "\n- en\n- no"])
def test_norwegian_is_no_boolean(card, text):
    held = card(f"language: {text}")["language"]
    assert held == "no" or sorted(held) == ["en", "no"]


@pytest.mark.parametrize(
    "value",
    [
        "2024-01-01",
        "2024-01-01 12:00:00",
        "true",
        "1.5",
        "0x10",
        "{en: null}",
        "!!set {en, de}",
        "!!binary aGVsbG8=",
        "!!python/object/apply:os.system [ls]",
        "[[en]]",
        "[en, [de]]",
        "[en, 2024-01-01]",
        "[en, null]",
        '"a\\u202eb"',
        '"\\ud800"',
        '"a\\nb"',
        "[" + "en, " * 200 + "de]",
        "x" * 400,
        "|\n  a\n  b",
        "&a [*a]",
    ],
)
@pytest.mark.parametrize("key", ["license", "language"])
def test_anything_but_texts_is_left_out_and_told(card, key, value):
    assert card(f"{key}: {value}\nlicense_name: own", f"its {key} is no") == {"license_name": "own"}


@pytest.mark.parametrize("header", ["tags: " + "[" * 60 + "]" * 60, "[" * 9000, "{a: " * 9000, "tags:\n" + "- " * 400])
def test_a_deep_header_is_left_out_and_told(card, header):
    assert card(f"license: mit\n{header}", "no licence is taken over") == {}


def test_a_long_header_is_left_out_and_told(card):
    assert card("license: mit\ntags: [" + "x, " * 100_000 + "]", "over 100,000 characters") == {}


def test_a_full_header_is_read_in_time(card):
    assert card("tags:\n" + "- tag\n" * 15_000 + "license: mit") == {"license": "mit"}


@pytest.mark.parametrize("value", ["", "null", "~"])
def test_what_is_empty_is_not_there(card, value):
    assert card(f"license: {value}\nlanguage: {value}") == {}


def test_one_licence_in_a_list_and_several(card):
    assert card("license: [mit]\nlanguage: [en]") == {"license": "mit", "language": ["en"]}
    assert card("license: [mit, other]", "its license is no plain text") == {}


def test_the_last_of_two_counts(card):
    assert card("license: mit\nlicense: apache-2.0") == {"license": "apache-2.0"}


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_card_that_is_no_file_is_told(tmp_path, make):
    make(tmp_path / "README.md")
    with pytest.warns(UserWarning, match="no regular file"):
        assert inherited_card(tmp_path) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"---\nlicense: \xff\n---\n",
        b"---\nlicense: a\x00b\n---\n",
        b"---\na: b: c\n---\n",
        b"---\nlicense: !x! y\n---\n",
    ],
)
def test_a_card_that_is_no_text_or_no_yaml_is_told(tmp_path, content):
    (tmp_path / "README.md").write_bytes(content)
    with pytest.warns(UserWarning, match="no licence is taken over"):
        assert inherited_card(tmp_path) == {}
