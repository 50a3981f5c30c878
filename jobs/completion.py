"""Completion in the shell of what follows `python -m jobs`: verbs, options, their values, settings.

    eval "$(python -m jobs --show-completion bash)"

The shell completes commands by their first word, here `python`: the function that is set up looks for
`-m jobs` behind it, and leaves every other use of Python to the completion that was there before.
"""

from enum import StrEnum
from typing import Annotated

import typer

#: Tells `python -m jobs` that it is asked for completions, and in which shell's manner.
COMPLETE_VARIABLE = "_CAPTIONING_JOBS_COMPLETE"

#: What stands behind `-m jobs` is handed on as if the command were one word, `jobs`. It is cut anew at blanks, for bash
#: takes `=` and `:` for the ends of words, which here are parts of one: `--set decoding.beam_size=5`.
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
    # What stands before the last `=` or `:` is there already.
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
    """The shells whose completion there is."""

    bash = "bash"
    zsh = "zsh"


def script(shell: Shell) -> str:
    """What the shell has to run to complete `python -m jobs`."""
    text = _BASH.replace("__VARIABLE__", COMPLETE_VARIABLE).lstrip("\n")
    if shell is Shell.zsh:
        return "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n" + text
    return text


def complete_setting(context: typer.Context, incomplete: str) -> list[str]:
    """Settings of the verb that begin so, and the values of those that have a few words for values."""
    from jobs.settings_of import PLACES, SAME, keys

    verb = context.info_name or ""
    if SAME.get(verb, verb) not in PLACES:
        return []
    found = keys(verb)
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [f"{name}=" for name in found if name.startswith(incomplete)]
    setting = found.get(key)
    words = () if setting is None else setting.choices or (("true", "false") if setting.type == "true or false" else ())
    return [f"{key}={word}" for word in words if str(word).startswith(value)]


def complete_model(incomplete: str) -> list[str]:
    """Bundled captioners that begin so; folders are completed by the shell."""
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
        help='Print what sets up completion; in ~/.bashrc: eval "$(python -m jobs --show-completion bash)"',
    ),
]
