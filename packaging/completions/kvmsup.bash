# SPDX-License-Identifier: LGPL-2.1-or-later
# Bash completion of kvmsup(1): verbs, options and the names of guests.

_kvmsup_guests() {
    local file
    for file in /etc/kvmsup/*.toml; do
        [[ -e $file ]] || continue
        file=${file##*/}
        printf '%s\n' "${file%.toml}"
    done
}

_kvmsup() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} verb='' words='' word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $word == -* ]] || { verb=$word; break; }
    done
    if [[ $previous == --root ]]; then
        compopt -o dirnames 2>/dev/null
        return
    fi
    if [[ $verb == new && $previous == --bridge ]]; then
        # shellcheck disable=SC2012 # names of network devices have no line ends
        mapfile -t COMPREPLY < <(compgen -W "$(ls -d /sys/class/net/*/bridge 2>/dev/null | cut -d/ -f5)" -- "$current")
        return
    fi
    if [[ $verb == import && $previous != --name && $current != -* ]]; then
        compopt -o default 2>/dev/null
        return
    fi
    if [[ $previous == --svg || $previous == --@(image|cdrom|ssh-key|user-data) ]]; then
        compopt -o default 2>/dev/null
        return
    fi
    case $verb in
        '') words='balloon check console cpu-models freeze host import list new plan status topology verify --help --version' ;;
        check) words="$(_kvmsup_guests) --root --json --help" ;;
        plan) words="$(_kvmsup_guests) --root --json --help" ;;
        console) words="$(_kvmsup_guests) --detach-key --json --help" ;;
        balloon | verify) words="$(_kvmsup_guests) --json --help" ;;
        status) words="$(_kvmsup_guests) --watch --interval --json --help" ;;
        freeze)
            words="--json --help $(_kvmsup_guests)"
            if ((COMP_CWORD > 3)) || [[ $previous != freeze && $previous != --json ]]; then
                COMPREPLY=()
                compopt -o default 2>/dev/null
                return
            fi
            ;;
        cpu-models) words='--usable --machine --accel --json --help' ;;
        new)
            words='--image --cdrom --disk --vcpus --memory --bridge --user-net --dedicated --hugepages --uefi --machine'
            words+=' --description --hostname --ssh-key --user-data --print --json --help'
            ;;
        import) words='--name --output --json --help' ;;
        topology) words='--svg --root --watch --interval --json --help' ;;
        list) words='--watch --interval --json --help' ;;
        host) words='--json --help' ;;
    esac
    [[ $current == -* || $verb != '' ]] || words=${words%% --*}
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}

complete -F _kvmsup kvmsup
