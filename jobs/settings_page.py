"""Writes configs/README.md: every setting of every verb, from the dataclasses themselves.

python -m jobs.settings_page          (or: make configs)
"""

import sys
from pathlib import Path

from jobs.settings_of import PLACES, SAME, Group, groups, settings_class

FILE = Path(__file__).resolve().parent.parent / "configs" / "README.md"

_HEAD = """# Settings

Every setting of every verb: give them in YAML with `--config FILE`, or singly with `--set key=value`, which goes over
the file. Values are YAML: `--set decoding.beam_size=5`, `--set input.keep_columns=[license,width]`, `--set epochs=3`.
The folders beside this file have presets: `configs/VERB/*.yaml`.

Made from the settings' dataclasses by `make configs`; do not edit it here.
"""


def page() -> str:
    """The page in Markdown. What a verb shares with one before it stands there alone."""
    parts, seen = [_HEAD], dict[tuple[str, str], str]()
    for verb in PLACES:
        others = [name for name, other in SAME.items() if other == verb]
        others += [name for name in PLACES if name != verb and PLACES[name] == PLACES[verb]]
        if any(PLACES[name] == PLACES[verb] for name in list(PLACES)[: list(PLACES).index(verb)]):
            continue
        parts.append(f"## {', '.join(f'`{name}`' for name in (verb, *others))}\n")
        found = list(groups(settings_class(verb)))
        several = {group.key for group in found if sum(other.key == group.key for other in found) > 1}
        for group in found:
            before = seen.setdefault((group.key, group.name), verb)
            if before != verb:
                parts.append(f"`{group.key}.*` as of [{before}](#{_anchor(before)}).\n")
            else:
                parts.append(_group(group, several=group.key in several))
    return "\n".join(part for part in parts if part)


def _anchor(verb: str) -> str:
    """The anchor that a heading which begins with this verb gets."""
    others = [name for name, other in SAME.items() if other == verb]
    return "-".join([verb, *others])


def _group(group: Group, *, several: bool) -> str:
    kind = f" ({group.name})" if several else ""
    heading = f"### `{group.key}`{kind}\n\n" if group.key else ""
    about = f"{group.about}\n" if group.about else ""
    if not group.settings:
        return f"{heading}{about}" if group.key else ""
    rows = [
        f"| `{setting.key}` | {_cell(setting.type)} | {_cell(setting.default)} | {_cell(setting.meaning)} |"
        for setting in group.settings
    ]
    return f"{heading}{about}\n| setting | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the page."""
    FILE.write_text(page(), encoding="utf-8")
    print(f"Written: {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
