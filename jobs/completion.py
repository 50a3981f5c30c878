"""Shell completion of what follows `python -m jobs`: verbs, options, their values, settings.

    eval "$(python -m jobs --show-completion bash)"

The shell completes commands by their first word, here `python`: the function that is set up looks for
`-m jobs` after it, and leaves every other use of Python to the completion that was there before.
"""

from enum import StrEnum
from typing import Annotated

import typer

#: Set when `python -m jobs` is asked for completions; names the shell's format.
COMPLETE_VARIABLE = "_CAPTIONING_JOBS_COMPLETE"

#: Passes on what follows `-m jobs` as if the command were one word, `jobs`. The line is split again at blanks, because
#: bash also splits at `=` and `:`, which here are parts of a word: `--set decoding.beam_size=5`.
_BASH = r"""
_captioning_jobs() {
    local line=${COMP_LINE:0:COMP_POINT} words current head
    if [[ $line != *" -m jobs "* ]]; then
        COMPREPLY=()
        [[ -n $_captioning_jobs_before ]] && "$_captioning_jobs_before" "$@"
        return
    fi
    line=${line#*" -m jobs "}
    read -a words <<< "$line"
    current=${line##*[[:space:]]}
    [[ -z $current ]] || unset "words[-1]"
    local IFS=$'\n'
    COMPREPLY=($(COMP_WORDS="jobs $line" COMP_CWORD=$((${#words[@]} + 1)) \
        __VARIABLE__=complete_bash "$1" -m jobs 2>/dev/null))
    # What comes before the last `=` or `:` is typed already.
    head=${current%"${current##*[=:]}"}
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[./=] ]]; then compopt -o nospace 2>/dev/null; fi
    return 0
}
_captioning_jobs_before=$(complete -p python 2>/dev/null | sed -n 's/.*-F \([^ ]*\).*/\1/p')
[[ $_captioning_jobs_before == _captioning_jobs ]] && _captioning_jobs_before=
complete -o default -o bashdefault -F _captioning_jobs python python3
"""


class Shell(StrEnum):
    """The shells that are supported."""

    bash = "bash"
    zsh = "zsh"


def script(shell: Shell) -> str:
    """The code that sets up completion of `python -m jobs` in a shell."""
    text = _BASH.replace("__VARIABLE__", COMPLETE_VARIABLE).lstrip("\n")
    if shell is Shell.zsh:
        return "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" + text
    return text


def complete_setting(context: typer.Context, incomplete: str) -> list[str]:
    """The verb's settings that start with `incomplete`; after `=`, the values of a setting that has fixed choices."""
    from jobs.settings_schema import SAME_SETTINGS, SETTINGS_CLASSES, keys

    verb = context.info_name or ""
    if SAME_SETTINGS.get(verb, verb) not in SETTINGS_CLASSES:
        return []
    found = keys(verb)
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [f"{name}=" for name in found if name.startswith(incomplete)]
    setting = found.get(key)
    words = () if setting is None else setting.choices or (("true", "false") if setting.type == "true or false" else ())
    return [f"{key}={word}" for word in words if str(word).startswith(value)]


def complete_model(incomplete: str) -> list[str]:
    """Bundled captioners that start with `incomplete`; the shell completes folders."""
    from captioning.refs import bundled_names

    return [name for name in bundled_names() if name.startswith(incomplete)]


def _show(shell: Shell | None) -> None:
    if shell is not None:
        print(script(shell), end="")
        raise typer.Exit


ShowCompletionOption = Annotated[
    Shell | None,
    typer.Option(
        "--show-completion",
        callback=_show,
        is_eager=True,
        show_default=False,
        help='Print the completion script; in ~/.bashrc: eval "$(python -m jobs --show-completion bash)"',
    ),
]
