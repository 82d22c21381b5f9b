# SPDX-License-Identifier: LGPL-2.1-or-later
# Fish completion of kvmsup(1). It asks files and QEMU only, so that it needs no right and is quick; what cannot be read is
# not offered. tests/unit/test_completions.py holds it together with the other shells', argparse and the man page.

# The words before the cursor that are neither options nor their values: the verb and what stands behind it. What is
# behind the guest of freeze is another command's.
function __kvmsup_words
    set -l words
    set -l value no
    for token in (commandline -opc)[2..]
        if test $value = yes
            set value no
        else if test "$words[1]" = freeze -a (count $words) -ge 2
            set -a words $token
        else if contains -- $token --{accel,bridge,cdrom,description,detach-key,disk,hostname,hugepages,image,interval,machine,memory,noise} \
                --{name,output,root,ssh-key,svg,user-data,vcpus}
            set value yes
        else if not string match -q -- '-?*' $token
            set -a words $token
        end
    end
    test (count $words) -eq 0; or printf '%s\n' $words
end

# Whether an option would be kvmsup's own.
function __kvmsup_own
    set -l words (__kvmsup_words)
    not test "$words[1]" = freeze -a (count $words) -ge 2
end

# Whether the verb is one of $argv.
function __kvmsup_has
    contains -- (__kvmsup_words)[1] $argv
end

# Whether the word that comes next is number $argv[1] behind one of the verbs $argv[2..]; 0 is the verb itself.
function __kvmsup_next
    set -l words (__kvmsup_words)
    test (count $words) -eq $argv[1]; or return
    test $argv[1] -eq 0; or contains -- $words[1] $argv[2..]
end

function __kvmsup_directories
    __fish_complete_directories (commandline -ct | string replace -r -- '^--root=' '')
end

# Those of $argv that can be guests and are not before the cursor.
function __kvmsup_guests
    set -l given (__kvmsup_words)[2..]
    for guest in (string match -r -- '^[a-z][a-z0-9-]*$' $argv | sort -u)
        contains -- $guest $given; or echo $guest
    end
end

# The directory of --root before the cursor; nothing where there is none.
function __kvmsup_root
    set -l before (commandline -opc)
    if set -l at (contains -i -- --root $before)
        string replace -r -- '^~/' "$HOME/" $before[(math $at + 1)]
    else
        string replace -fr -- '^--root=' '' $before | string replace -r -- '^~/' "$HOME/"
    end
end

function __kvmsup_with_file
    set -l files (__kvmsup_root)/etc/kvmsup/*.toml
    set -q files[1]; or __kvmsup_root | string length -q; or set files /etc/kvmsup/*.toml
    __kvmsup_guests (string replace -r -- '.*/(.*)\.toml$' '$1' $files)
end

# Guests that run, which have a control group.
function __kvmsup_running
    set -l groups /sys/fs/cgroup/kvm.slice/*/kvm@*.service
    __kvmsup_guests (string replace -r -- '.*/kvm@(.*)\.service$' '$1' $groups)
end

function __kvmsup_known
    printf '%s\n' (__kvmsup_with_file) (__kvmsup_running) | sort -u
end

function __kvmsup_bridges
    set -l found /sys/class/net/*/bridge
    string replace -r -- '.*/([^/]*)/bridge$' '$1' $found
end

function __kvmsup_machines
    command -q qemu-system-x86_64; or return
    qemu-system-x86_64 -machine help 2>/dev/null | string replace -fr -- '^(q35|pc|pc-(?:q35|i440fx)-[^ ]*) .*' '$1'
end

# The list of models ends with an empty line; below it are features. QEMU 7.2 has "x86" before each name, later ones do not.
function __kvmsup_models
    command -q qemu-system-x86_64; or return
    qemu-system-x86_64 -cpu help 2>/dev/null | sed -n -E '/^$/q; s/^(x86)? +([A-Za-z0-9][A-Za-z0-9_.-]*)( .*)?$/\2/p'
end

function __kvmsup_keys
    printf '%s\n' none ^(string split '' -- '@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_')
end

# What the command behind the guest of freeze would be offered if it stood alone.
function __kvmsup_command
    set -l before (commandline -opc)
    set -e before[1..(contains -i -- (__kvmsup_words)[2] $before)]
    set -l line
    for word in $before
        set -a line (string escape -- $word)
    end
    complete -C "$line $(commandline -ct)"
end

complete -c kvmsup -f
complete -c kvmsup -n '__kvmsup_next 0' -l version -d "show program's version number and exit"
complete -c kvmsup -n __kvmsup_own -l help -d 'show this help message and exit'
complete -c kvmsup -n '__kvmsup_next 0' -a balloon -d 'how much memory a running guest has, or should have'
complete -c kvmsup -n '__kvmsup_next 0' -a check -d 'every error in the configuration, all at once'
complete -c kvmsup -n '__kvmsup_next 0' -a console -d "the guest's console; Ctrl-] leaves it"
complete -c kvmsup -n '__kvmsup_next 0' -a cpu-models -d 'the CPU models that QEMU knows, and which of them this host can run'
complete -c kvmsup -n '__kvmsup_next 0' -a freeze -d "run a command while the guest's file systems are frozen"
complete -c kvmsup -n '__kvmsup_next 0' -a host -d 'whether this host is fit for guests, and what would make it so'
complete -c kvmsup -n '__kvmsup_next 0' -a import -d "write the file of a guest from a libvirt domain's XML"
complete -c kvmsup -n '__kvmsup_next 0' -a list -d 'guests and the host at a glance'
complete -c kvmsup -n '__kvmsup_next 0' -a new -d 'write the file of a new guest'
complete -c kvmsup -n '__kvmsup_next 0' -a plan -d 'where guests would go, and why; nothing is touched'
complete -c kvmsup -n '__kvmsup_next 0' -a status -d 'everything about one guest: threads, CPUs, memory'
complete -c kvmsup -n '__kvmsup_next 0' -a topology -d 'a picture of the host: which guest has which CPU'
complete -c kvmsup -n '__kvmsup_next 0' -a verify -d 'read back what guests were given; 1 when something differs'

complete -c kvmsup -n '__kvmsup_next 1 status' -a '(__kvmsup_known)'
complete -c kvmsup -n '__kvmsup_next 1 plan' -a '(__kvmsup_with_file)'
complete -c kvmsup -n '__kvmsup_next 1 balloon console freeze' -a '(__kvmsup_running)'
complete -c kvmsup -n '__kvmsup_has check' -a '(__kvmsup_with_file)'
complete -c kvmsup -n '__kvmsup_has verify' -a '(__kvmsup_running)'
complete -c kvmsup -n '__kvmsup_next 1 cpu-models' -a '(__kvmsup_models)'
complete -c kvmsup -n '__kvmsup_next 1 import' -F
complete -c kvmsup -n 'not __kvmsup_own' -a '(__kvmsup_command)'

complete -c kvmsup -n 'not __kvmsup_next 0; and __kvmsup_own' -l json -d 'for programs'
complete -c kvmsup -n '__kvmsup_has check' -l root -x -a '(__kvmsup_directories)' -d 'check the configuration below DIR'
complete -c kvmsup -n '__kvmsup_has console' -l detach-key -x -k -a '(__kvmsup_keys)' -d 'such as ^], or none; ^]'
complete -c kvmsup -n '__kvmsup_has cpu-models' -l usable -d 'only those that this host can run'
complete -c kvmsup -n '__kvmsup_has cpu-models' -l machine -x -a '(__kvmsup_machines)' -d 'versions as with that machine type; q35'
complete -c kvmsup -n '__kvmsup_has cpu-models' -l accel -x -a 'kvm tcg' -d 'what QEMU emulates instead; kvm'
complete -c kvmsup -n '__kvmsup_has import' -l name -x -d 'of the guest; as in libvirt, as far as that is one'
complete -c kvmsup -n '__kvmsup_has import' -l output -r -F -d 'not below /etc/kvmsup; - only shows it'
complete -c kvmsup -n '__kvmsup_has new' -l image -r -F -d 'its disk is a copy of this one, raw or qcow2'
complete -c kvmsup -n '__kvmsup_has new' -l cdrom -r -F -d 'an installer, in an ISO image'
complete -c kvmsup -n '__kvmsup_has new' -l disk -x -d 'of its disk; that of the image'
complete -c kvmsup -n '__kvmsup_has new' -l vcpus -x -d '2'
complete -c kvmsup -n '__kvmsup_has new' -l memory -x -d '2G'
complete -c kvmsup -n '__kvmsup_has new' -l bridge -x -a '(__kvmsup_bridges)' -d 'its network is this bridge of the host'
complete -c kvmsup -n '__kvmsup_has new' -l user-net -d "its network is behind the host's address"
complete -c kvmsup -n '__kvmsup_has new' -l dedicated -d 'host CPUs of its own'
complete -c kvmsup -n '__kvmsup_has new' -l hugepages -x -a '2M 1G' -d 'memory of hugepages'
complete -c kvmsup -n '__kvmsup_has new' -l uefi -d 'UEFI instead of BIOS'
complete -c kvmsup -n '__kvmsup_has new' -l machine -x -a '(__kvmsup_machines)' -d "QEMU's machine type; the newest q35"
complete -c kvmsup -n '__kvmsup_has new' -l description -x
complete -c kvmsup -n '__kvmsup_has new' -l hostname -x -d 'told to cloud-init'
complete -c kvmsup -n '__kvmsup_has new' -l ssh-key -r -F -d 'a public key, for cloud-init'
complete -c kvmsup -n '__kvmsup_has new' -l user-data -r -F -d 'everything that cloud-init is told'
complete -c kvmsup -n '__kvmsup_has new' -l print -d 'only show the file'
complete -c kvmsup -n '__kvmsup_has plan' -l root -x -a '(__kvmsup_directories)' -d 'the host whose /etc, /sys and /run are below DIR'
complete -c kvmsup -n '__kvmsup_has status' -l noise -x -d 'listen on its isolated CPUs, that long'
complete -c kvmsup -n '__kvmsup_has topology' -l root -x -a '(__kvmsup_directories)' -d 'the host whose /sys and /run are below DIR'
complete -c kvmsup -n '__kvmsup_has topology' -l svg -r -F -d 'write it as SVG; - is standard output'
complete -c kvmsup -n '__kvmsup_has list status topology' -l watch -d 'again every 2 seconds, until Ctrl-C'
complete -c kvmsup -n '__kvmsup_has list status topology' -l interval -x -d 'watch, that often'
