#compdef kvmsup
# SPDX-License-Identifier: LGPL-2.1-or-later
# Zsh completion of kvmsup(1). It asks files and QEMU only, so that it needs no right and is quick; what cannot be read is
# not offered. tests/unit/test_completions.py holds it together with the other shells', argparse and the man page.

(( $+functions[_kvmsup_guests] )) ||
# Those of the guests $@ that are not on the command line already.
_kvmsup_guests() {
    local expl others
    others=(${words[1,CURRENT-1]} ${words[CURRENT+1,-1]})
    local -aU found=(${(M)@:#[a-z][a-z0-9-]#})
    found=(${found:|others})
    _wanted guests expl guest compadd -a found
}

(( $+functions[_kvmsup_running] )) ||
# Guests that run, which have a control group.
_kvmsup_running() {
    local running=(/sys/fs/cgroup/kvm.slice/*/kvm@*.service(N:t:r))
    _kvmsup_guests ${running#kvm@}
}

(( $+functions[_kvmsup_with_file] )) ||
# Guests that have a file, of the host or below the directory of --root.
_kvmsup_with_file() {
    local root=${(Q)opt_args[--root]}
    _kvmsup_guests ${root/#\~\//$HOME/}/etc/kvmsup/*.toml(N:t:r)
}

(( $+functions[_kvmsup_known] )) ||
_kvmsup_known() {
    local running=(/sys/fs/cgroup/kvm.slice/*/kvm@*.service(N:t:r))
    _kvmsup_guests /etc/kvmsup/*.toml(N:t:r) ${running#kvm@}
}

(( $+functions[_kvmsup_bridges] )) ||
_kvmsup_bridges() {
    local expl found=(/sys/class/net/*/bridge(N:h:t))
    _wanted bridges expl bridge compadd -a found
}

(( $+functions[_kvmsup_machines] )) ||
_kvmsup_machines() {
    local expl found=(${${(f)"$(_call_program machines qemu-system-x86_64 -machine help 2>/dev/null)"}%% *})
    found=(${(M)found:#(q35|pc|pc-(q35|i440fx)-*)})
    _wanted machines expl 'machine type' compadd -a found
}

(( $+functions[_kvmsup_models] )) ||
# The list of models ends with an empty line; below it are features. QEMU 7.2 has "x86" before each name, later ones do not.
_kvmsup_models() {
    local expl found=(${(f)"$(_call_program models qemu-system-x86_64 -cpu help 2>/dev/null |
        sed -n -E '/^$/q; s/^(x86)? +([A-Za-z0-9][A-Za-z0-9_.-]*)( .*)?$/\2/p')"})
    _wanted models expl 'CPU model' compadd -a found
}

(( $+functions[_kvmsup_keys] )) ||
_kvmsup_keys() {
    local expl found=(none '^'{A..Z} '^@' '^[' '^\' '^]' '^^' '^_')
    _wanted keys expl key compadd -a found
}

(( $+functions[_kvmsup_verbs] )) ||
_kvmsup_verbs() {
    local verbs=(
        'balloon:how much memory a running guest has, or should have'
        'check:every error in the configuration, all at once'
        "console:the guest's console; Ctrl-] leaves it"
        'cpu-models:the CPU models that QEMU knows, and which of them this host can run'
        "freeze:run a command while the guest's file systems are frozen"
        'host:whether this host is fit for guests, and what would make it so'
        "import:write the file of a guest from a libvirt domain's XML"
        'list:guests and the host at a glance'
        'new:write the file of a new guest'
        'plan:where guests would go, and why; nothing is touched'
        'status:everything about one guest\: threads, CPUs, memory'
        'topology:a picture of the host\: which guest has which CPU'
        'verify:read back what guests were given; 1 when something differs'
    )
    _describe -t verbs verb verbs
}

_kvmsup() {
    local curcontext=$curcontext state line ret=1
    typeset -A opt_args
    _arguments -C '(- : *)--help[show this help message and exit]' \
        "(- : *)--version[show program's version number and exit]" \
        '1:verb:_kvmsup_verbs' '*::argument:->argument' && ret=0
    [[ $state == argument ]] || return ret

    curcontext=${curcontext%:*:*}:kvmsup-$words[1]:
    local common=('(- : *)--help[show this help message and exit]' '--json[for programs]')
    local again=('(--interval)--watch[again every 2 seconds, until Ctrl-C]' '(--watch)--interval=[watch, that often]:seconds: ')
    case $words[1] in
        balloon)
            _arguments $common '1:guest:_kvmsup_running' '2:size: ' && ret=0
            ;;
        check)
            _arguments $common '--root=[check the configuration below DIR]:directory:_directories' \
                '*:guest:_kvmsup_with_file' && ret=0
            ;;
        console)
            _arguments $common '--detach-key=[such as ^\], or none; ^\]]:key:_kvmsup_keys' '1:guest:_kvmsup_running' && ret=0
            ;;
        cpu-models)
            _arguments $common '--usable[only those that this host can run]' \
                '--machine=[versions as with that machine type; q35]:type:_kvmsup_machines' \
                '--accel=[what QEMU emulates instead; kvm]:accelerator:(kvm tcg)' '1:model:_kvmsup_models' && ret=0
            ;;
        freeze)
            _arguments $common '(-)1:guest:_kvmsup_running' '*:::command:_normal' && ret=0
            ;;
        host)
            _arguments $common && ret=0
            ;;
        import)
            _arguments $common '--name=[of the guest; as in libvirt, as far as that is one]:name: ' \
                '--output=[not below /etc/kvmsup; - only shows it]:file:_files' '1:file:_files' && ret=0
            ;;
        list)
            _arguments $common $again && ret=0
            ;;
        new)
            _arguments $common '--image=[its disk is a copy of this one, raw or qcow2]:file:_files' \
                '--cdrom=[an installer, in an ISO image]:file:_files' \
                '--disk=[of its disk; that of the image]:size: ' '--vcpus=[2]:number: ' '--memory=[2G]:size: ' \
                '(--user-net)--bridge=[its network is this bridge of the host]:bridge:_kvmsup_bridges' \
                "(--bridge)--user-net[its network is behind the host's address]" \
                '--dedicated[host CPUs of its own]' '--hugepages=[memory of hugepages]:size:(2M 1G)' \
                '--uefi[UEFI instead of BIOS]' "--machine=[QEMU's machine type; the newest q35]:type:_kvmsup_machines" \
                '--description=:text: ' '--hostname=[told to cloud-init]:name: ' \
                '*--ssh-key=[a public key, for cloud-init]:file:_files' \
                '--user-data=[everything that cloud-init is told]:file:_files' \
                '--print[only show the file]' '1:new guest: ' && ret=0
            ;;
        plan)
            _arguments $common '--root=[the host whose /etc, /sys and /run are below DIR]:directory:_directories' \
                '1:guest:_kvmsup_with_file' && ret=0
            ;;
        status)
            _arguments $common '(--interval --noise)--watch[again every 2 seconds, until Ctrl-C]' \
                '(--watch --noise)--interval=[watch, that often]:seconds: ' \
                '(--watch --interval)--noise=[listen on its isolated CPUs, that long]:seconds: ' '1:guest:_kvmsup_known' && ret=0
            ;;
        topology)
            _arguments $common $again '--root=[the host whose /sys and /run are below DIR]:directory:_directories' \
                '--svg=[write it as SVG; - is standard output]:file:_files' && ret=0
            ;;
        verify)
            _arguments $common '*:guest:_kvmsup_running' && ret=0
            ;;
    esac
    return ret
}

_kvmsup "$@"
