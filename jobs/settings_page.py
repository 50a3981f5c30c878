"""Writes configs/README.md: every setting of every verb, from the dataclasses themselves.

python -m jobs.settings_page          (or: make configs)
"""

import sys
from pathlib import Path

from jobs.settings_schema import SAME_SETTINGS, SETTINGS_CLASSES, Group, groups, settings_class

FILE = Path(__file__).resolve().parent.parent / "configs" / "README.md"

_HEAD = """# Settings

Every setting of every verb. Set them in YAML with `--config FILE`, or one by one with `--set key=value`, which takes
precedence. Values are YAML: `--set decoding.beam_size=5`, `--set input.keep_columns=[license,width]`, `--set epochs=3`.
The folders beside this file have presets: `configs/VERB/*.yaml`.

Generated from the settings' dataclasses by `make configs`; do not edit it here.
"""


def page() -> str:
    """The page in Markdown. Settings that a verb shares with an earlier one are described there only."""
    parts, seen = [_HEAD], dict[tuple[str, str], str]()
    for verb, place in SETTINGS_CLASSES.items():
        same = [name for name in SETTINGS_CLASSES if SETTINGS_CLASSES[name] == place]
        if verb != same[0]:
            continue
        others = [name for name, other in SAME_SETTINGS.items() if other == verb] + same[1:]
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
    """The anchor of the heading that starts with this verb."""
    others = [name for name, other in SAME_SETTINGS.items() if other == verb]
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
