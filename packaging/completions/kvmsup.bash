# SPDX-License-Identifier: LGPL-2.1-or-later
# Bash completion of kvmsup(1). It asks files and QEMU only, so that it needs no right and is quick; what cannot be read is
# not offered. tests/unit/test_completions.py holds it together with the other shells', argparse and the man page.

# Of the lines of standard input those that can name a guest.
_kvmsup_names() {
    local line
    while read -r line; do
        line=${line##*/}
        line=${line#kvm@}
        line=${line%.*}
        [[ $line =~ ^[a-z][a-z0-9-]*$ ]] && printf '%s\n' "$line"
    done
}

# Guests that have a file below the directory $1, as it stands on the command line.
_kvmsup_with_file() {
    local root=${1//\\/}
    compgen -G "${root/#\~\//$HOME/}/etc/kvmsup/*.toml" 2>/dev/null | _kvmsup_names
}

# Guests that run, which have a control group.
_kvmsup_running() {
    compgen -G '/sys/fs/cgroup/kvm.slice/*/kvm@*.service' 2>/dev/null | _kvmsup_names
}

_kvmsup_bridges() {
    compgen -G '/sys/class/net/*/bridge' 2>/dev/null | cut -d/ -f5
}

_kvmsup_machines() {
    qemu-system-x86_64 -machine help 2>/dev/null | sed -n -E 's/^(q35|pc|pc-(q35|i440fx)-[^ ]*) .*/\1/p'
}

# The list of models ends with an empty line; below it are features. QEMU 7.2 has "x86" before each name, later ones do not.
_kvmsup_models() {
    qemu-system-x86_64 -cpu help 2>/dev/null | sed -n -E '/^$/q; s/^(x86)? +([A-Za-z0-9][A-Za-z0-9_.-]*)( .*)?$/\2/p'
}

# The options of verb $1, with = behind those that have a value.
_kvmsup_options() {
    case $1 in
        '') echo '--help --version' ;;
        check | plan) echo '--root= --json --help' ;;
        console) echo '--detach-key= --json --help' ;;
        cpu-models) echo '--usable --machine= --accel= --json --help' ;;
        import) echo '--name= --output= --json --help' ;;
        new)
            echo '--image= --cdrom= --disk= --vcpus= --memory= --bridge= --user-net --dedicated --hugepages= --uefi --machine='
            echo '--description= --hostname= --ssh-key= --user-data= --print --json --help'
            ;;
        topology) echo '--svg= --root= --watch --interval= --json --help' ;;
        list) echo '--watch --interval= --json --help' ;;
        status) echo '--watch --interval= --noise= --json --help' ;;
        balloon | freeze | host | verify) echo '--json --help' ;;
    esac
}

# Offers those of the words $2 that begin with $1. Readline puts in what is offered as it is: a backslash is doubled.
_kvmsup_offer() {
    local word -
    set -f
    for word in $2; do
        [[ $word != "$1"* ]] || COMPREPLY+=("${word//\\/\\\\}")
    done
}

# Offers what can be the value of option $1, of which $2 is there.
_kvmsup_value() {
    case $1 in
        --root) compopt -o dirnames 2>/dev/null ;;
        --svg | --output | --image | --cdrom | --ssh-key | --user-data) compopt -o default 2>/dev/null ;;
        --accel) _kvmsup_offer "$2" 'kvm tcg' ;;
        --hugepages) _kvmsup_offer "$2" '2M 1G' ;;
        --bridge) _kvmsup_offer "$2" "$(_kvmsup_bridges)" ;;
        --machine) _kvmsup_offer "$2" "$(_kvmsup_machines)" ;;
        --detach-key)
            local keys='none ^] ^@ ^A ^B ^C ^D ^E ^F ^G ^H ^I ^J ^K ^L ^M ^N ^O ^P ^Q ^R ^S ^T ^U ^V ^W ^X ^Y ^Z ^[ ^\ ^^ ^_'
            _kvmsup_offer "${2//\\/}" "$keys"
            ;;
    esac
}

# Offers what can stand in the place of the word $2, behind the verb $1 and the words behind $2.
_kvmsup_argument() {
    local verb=$1 current=$2 words='' word
    shift 2
    case $verb in
        '') words='balloon check console cpu-models freeze host import list new plan status topology verify' ;;
        check) words=$(_kvmsup_with_file "$root") ;;
        verify) words=$(_kvmsup_running) ;;
        plan) (($#)) || words=$(_kvmsup_with_file "$root") ;;
        status) (($#)) || words=$(printf '%s\n' "$(_kvmsup_with_file '')" "$(_kvmsup_running)" | sort -u) ;;
        balloon | console | freeze) (($#)) || words=$(_kvmsup_running) ;;
        cpu-models) (($#)) || words=$(_kvmsup_models) ;;
        import) (($#)) || compopt -o default 2>/dev/null ;;
    esac
    for word; do
        words=$(printf '%s\n' "$words" | grep -Fxv -e "$word")
    done
    _kvmsup_offer "$current" "$words"
}

_kvmsup() {
    local current=${COMP_WORDS[COMP_CWORD]} verb='' option='' root='' options='' seen=' ' word given=() at IFS=$' \t\n'
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        if [[ $word == = ]]; then
            continue # --option=value is three words
        elif [[ $option ]]; then
            [[ $option != --root ]] || root=$word
            option=''
        elif [[ $word == -?* ]]; then
            seen+="$word "
            [[ " $options " != *[[:space:]]"$word="[[:space:]]* ]] || option=$word
        elif [[ ! $verb ]]; then
            verb=$word
        else
            given+=("$word")
            [[ $verb != freeze ]] || break
        fi
        options=$(_kvmsup_options "$verb")
    done
    options=${options:-$(_kvmsup_options "$verb")}
    [[ $current != = ]] || current=''

    if [[ $verb == freeze && ${#given[@]} -gt 0 ]]; then
        if declare -F _command_offset >/dev/null; then
            _command_offset $((at + 1))
        elif ((COMP_CWORD == at + 1)); then
            mapfile -t COMPREPLY < <(compgen -c -- "$current")
        else
            compopt -o default 2>/dev/null
        fi
    elif [[ $option ]]; then
        _kvmsup_value "$option" "$current"
    elif [[ $current == -* ]]; then
        for word in $options; do
            word=${word%=}
            [[ $seen == *" $word "* && $word != --ssh-key ]] || _kvmsup_offer "$current" "$word"
        done
    else
        _kvmsup_argument "$verb" "$current" "${given[@]}"
    fi
}

complete -F _kvmsup kvmsup
