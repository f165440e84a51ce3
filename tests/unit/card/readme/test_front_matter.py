"""Front matter gets a tag and a relation by insertions alone, and the Hub reads what was meant; or it is refused."""

from __future__ import annotations

from difflib import SequenceMatcher

import pytest
from huggingface_hub.repocard import REGEX_YAML_BLOCK, ModelCard
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.card.readme.front_matter import TAG, Front, with_front_matter
from quantaudit.errors import FormatError
from tests.readmes import READMES

NOTHING = Front(base=None, quantized=False)
QUANTIZED = Front(base="org/base", quantized=True)

# By YAML: what stands in the place of `+…+` afterwards, and nowhere else.
SHAPES: dict[str, str] = {
    "no tags": "license: mit\n+tags:\n- quantaudit\n+",
    "tags below their key": "tags:\n- a\n- b\n+- quantaudit\n+license: mit\n",
    "indented, with comments": "tags:\n  - a # one\n+  - quantaudit\n+  # two\nlicense: mit # x\n",
    "in brackets": "tags: [a, 'b'+, quantaudit+]  # few\n",
    "in brackets over lines": "tags: [\n  a,\n  b+, quantaudit+, # last\n]\n",
    "none in brackets": "tags: [+quantaudit+ ]\n",
    "a key alone": "tags: # none yet\n+- quantaudit\n+license: mit\n",
    "comments alone": "# to do\n+tags:\n- quantaudit\n+",
    "all indented": "  license: no\n  x: 010\n+  tags:\n  - quantaudit\n+",
    "a text at the end": "+tags:\n- quantaudit\n+# of the prompt\nprompt: |\n  Do\n\n  not\n",
    "a text as the last tag": "tags:\n+- quantaudit\n+- >\n  a\n  b\nlicense: mit\n",
    "a mapping as the last tag": "tags:\n+- quantaudit\n+- a: b\nlicense: mit\n",
    "quotes over lines": 'tags:\n- "a\n  b"\n+- quantaudit\n+',
    "an end of the document": "tags:\n- a\n+- quantaudit\n+...\n",
    "in braces": "{tags: [a+, quantaudit+], license: mit}\n",
    "there already": "tags: [quantaudit]\n",
    "dates, numbers and duplicates by case": "Tags: [x]\ndate: 2024-01-01\nn: .nan\n+tags:\n- quantaudit\n+",
}
REFUSED: dict[str, tuple[str, str, int]] = {
    "one tag as text": ("license: mit\ntags: a\n", "is no list", 3),
    "null": ("tags: null\n", "without changing the rest", 2),
    "an alias": ("more: &all [a]\ntags: *all\n", "without changing the rest", 2),
    "merged": ("more: &all {tags: [a]}\n<<: *all\n", "without changing the rest", 2),
    "braces without tags": ("{license: mit}\n", "without changing the rest", 2),
    "a list": ("- a\n", "no fields", 2),
    "a key given twice": ("a: 1\na: 2\n", "given twice", 3),
    "not YAML": ("license: mit\na: [\n", "not YAML", 3),
    "aliases without end": ("a: &a [*a]\n", "no end", 2),
    "code": ("a: !!python/object:os.system x\n", "only Python can build", 2),
}


def fields(text: str) -> dict[str, object]:
    """As the Hub's library reads a model card."""
    data: dict[str, object] = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    return data


def check_inserted(before: str, after: str) -> None:
    """Nothing is gone or moved."""
    operations = {tag for tag, *_ in SequenceMatcher(None, before, after, autojunk=False).get_opcodes()}
    assert operations <= {"equal", "insert"}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_tag_is_inserted_and_nothing_else(name: str, newline: str) -> None:
    shape = f"---\n{SHAPES[name]}---\n\n# T\n".replace("\n", newline)
    before = "".join(shape.split("+")[::2])
    after = shape.replace("+", "")
    new = with_front_matter(before, NOTHING, "r.md")
    assert new == after
    assert with_front_matter(new, NOTHING, "r.md") == new
    old, read = fields(before), fields(new)
    there, tags = old.pop("tags", None) or [], read.pop("tags")
    assert isinstance(there, list)
    assert tags in ([*there, TAG], [TAG, *there], there)
    assert TAG in tags
    assert repr(read) == repr(old)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_extended_is_refused_with_its_line(name: str) -> None:
    yaml, words, line = REFUSED[name]
    with pytest.raises(FormatError, match=words) as error:
        with_front_matter(f"---\n{yaml}---\n# T\n", NOTHING, "r.md")
    assert error.value.where == f"r.md:{line}"
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\ufeff---\na: 1\n---\n", "byte order mark"),
        ("---\n---\n# T\n", "finds no front matter"),
        ("---\r a: 1\r---\r# T\r", "finds no front matter"),
        ("---\n\n# Title\n\nSetext\n---\n", "no fields"),
    ],
)
def test_what_the_hub_reads_otherwise_is_refused(text: str, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        with_front_matter(text, NOTHING, "r.md")


@pytest.mark.parametrize("name", READMES)
def test_a_readme_keeps_every_byte(name: str) -> None:
    text = READMES[name].decode()
    try:
        new = with_front_matter(text, QUANTIZED, "r.md")
    except FormatError:
        assert name in ("dashes that are no front matter",) or text.startswith("\ufeff")
        return
    check_inserted(text[:1_000], new[: 1_000 + len(new) - len(text)])
    assert new.endswith(text[-1_000:] if REGEX_YAML_BLOCK.search(text) is None else text[text.rindex("---") :])
    assert TAG in fields(new)["tags"]  # type: ignore[operator]
    assert with_front_matter(new, QUANTIZED, "r.md") == new


@pytest.mark.parametrize(
    ("yaml", "front", "added"),
    [
        ("base_model: org/base\n", QUANTIZED, True),
        ("base_model: [org/base]\n", QUANTIZED, True),
        ("base_model:\n- org/base\n", QUANTIZED, True),
        ("base_model: org/other\n", QUANTIZED, False),
        ("license: mit\n", QUANTIZED, False),
        ("base_model: org/base\n", QUANTIZED._replace(quantized=False), False),
        ("base_model: null\n", Front(base=None, quantized=True), False),
    ],
)
def test_the_relation_is_added_where_it_is_known(yaml: str, front: Front, added: bool) -> None:
    new = with_front_matter(f"---\n{yaml}---\n", front, "r.md")
    assert fields(new).get("base_model_relation") == ("quantized" if added else None)


def test_a_relation_that_is_there_stays() -> None:
    text = "---\nbase_model: org/base\nbase_model_relation: finetune\ntags: [quantaudit]\n---\n"
    assert with_front_matter(text, QUANTIZED, "r.md") == text


LINES = (
    "a: 1",
    "b: 'x'  # c",
    "# c",
    "",
    "tags:",
    "- t",
    "  - t",
    "tags: [u]",
    "p: |",
    "  text",
    "  q: >-",
    "'k': {x: 1}",
)


@given(st.lists(st.sampled_from(LINES), max_size=7), st.sampled_from(["\n", "\r\n"]))
def test_whatever_is_there_is_kept_or_refused(lines: list[str], newline: str) -> None:
    text = newline.join(["---", *lines, "---", "# T", ""])
    try:
        new = with_front_matter(text, NOTHING, "r.md")
    except FormatError:
        return
    check_inserted(text, new)
    assert TAG in fields(new)["tags"]  # type: ignore[operator]
    assert with_front_matter(new, NOTHING, "r.md") == new
