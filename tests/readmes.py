"""READMEs as model repositories have them: front matter, badges, tables, HTML, code, and the odd line ending."""

from __future__ import annotations

_FRONT = """\
---
# which license applies: see LICENSE, not the tag
license: apache-2.0   # SPDX
language: [en, 'de']
tags:
  - text-generation
  # keep sorted
  - conversational
base_model: "org/base"
widget:
- text: |
    ```
    not a fence
---
"""
_BADGES = """\
<div align="center">
  <img src="logo.svg" width="60%" alt="Logo">
  <a href="https://example.org"><img alt="Chat" src="https://img.example.org/badge?x=1&y=2"></a>
</div>
<hr>

# Model &amp; friends
"""
_TABLE = "| a | b |\n|:--|--:|\n| `x|y` | 1\\|2 |\n\nText after.\n"
_MARKED = """\
# About

How to mark a section:

```markdown
<!-- quantaudit:begin v1 -->
here
<!-- quantaudit:end -->
```

~~~~text
```
<!-- quantaudit:end -->
~~~~

    <!-- quantaudit:begin v1 -->

Inline `<!-- quantaudit:begin v1 -->` and in words <!-- quantaudit:end --> too.
"""
_RTL = """\
# مودل 🤖

\u202b1. שלום
   - [ ] 🧪 *نص*
     - nested
       > quote

       1. deeper\u202c
"""
_PICTURE = "## Figure {n}\n\n![chart](data:image/png;base64," + "iVBORw0KGgo" * 12_000 + ")\n\n"

READMES: dict[str, bytes] = {
    name: text.encode("utf-8")
    for name, text in {
        "a title": "# Title\n",
        "no final newline": "# Title\n\nLast line",
        "a single line": "Title",
        "CRLF": "# Title\r\n\r\n- one\r\n- two\r\n",
        "CRLF without a final newline": "# Title\r\n\r\nLast line",
        "mostly CRLF": "# Title\r\n\r\none\ntwo\r\nthree\r\n",
        "carriage returns alone": "# Title\r\rtext\r",
        "empty": "",
        "a byte order mark alone": "\ufeff",
        "a byte order mark, front matter and CRLF": "\ufeff" + _FRONT.replace("\n", "\r\n") + "# Title\r\n",
        "front matter with comments": _FRONT + "\n# Title\n",
        "front matter alone": _FRONT,
        "front matter alone without a final newline": _FRONT.rstrip("\n"),
        "front matter of markers": "---\nnote: |\n  <!-- quantaudit:begin v1 -->\nx: 1\n---\ntext\n",
        "dashes that are no front matter": "---\n\n# Title\n\nSetext\n---\n",
        "badges": _BADGES + _TABLE,
        "a table at the end": _TABLE.partition("\n\n")[0] + "\n",
        "markers in code": _MARKED,
        "emoji and scripts": "# 🤗 模型 \u202bעברית\u202c\n\n漢字 👩‍👩‍👧 ﬁn\u2028after a line separator\n",
        "blank lines at the end": "# Title\n\n\n\n",
        "blanks and tabs at the end": "# Title  \n\t\n   ",
        "a list at the end": "1. one\n   - nested\n\n     ```python\n     x = 1\n     ```\n2. two",
        "details": "<details>\n<summary>More</summary>\n\n```bash\nls\n```\n\n</details>\n",
        "a quote that is never closed by a blank line": "> quoted\nlazy\n> ```\n> code in it\n",
        "comments of others": "<!-- markdownlint-disable -->\n<!-- begin -->\ntext\n<!-- end -->\n",
        "a multi-line comment": "text\n\n<!--\nTODO: say more\n-->\n",
        "an indented fence at the end": "- item\n\n      code\n",
        "form feeds": "a\x0cb\n\x0b\n",
        "right to left, emoji and nested lists": _RTL,
        "front matter with CRLF, HTML and no final newline": _FRONT.replace("\n", "\r\n")
        + _BADGES.replace("\n", "\r\n")[:-4],
        "a megabyte with pictures inside": _FRONT + "".join(_PICTURE.format(n=n) for n in range(8)),
        "references and footnotes": "See [x] and[^1].\n\n[x]: https://example.org 'T'\n[^1]: note\n\n    more of it\n",
        "HTML that is never closed": "<div>\n\n<table><tr><td>\n\n# T\n",
        "math": "$$\nx < y\n$$\n\nCosts $5 & <5 %.\n",
    }.items()
}
