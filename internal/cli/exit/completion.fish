# Completion of NAME for fish. Nothing that stands on the line is evaluated.

function __NAME_complete
    set -l asked (commandline -opc)
    set -l cur (commandline -ct)
    set -l prefix ''
    if string match -qr -- '^-[^=]*=' $cur
        set -l parts (string split -m 1 = -- $cur)
        set prefix $parts[1]=
        set -a asked $parts[1]
        set cur $parts[2]
    end
    set -l last $asked[-1]
    if string match -qr -- '^--?(id|status)$' $last; and string match -q -- '*,*' $cur
        set prefix $prefix(string replace -r -- '[^,]*$' '' $cur)
        set cur (string replace -r -- '.*,' '' $cur)
    end
    string match -q -- '-*' $cur; and set -a asked $cur
    set -l found
    for line in ($asked --generate-shell-completion 2>/dev/null)
        if string match -qr -- '^-[^-]' $cur; and string match -q -- '--*' $line
            set line (string sub -s 2 -- $line)
        end
        # Names once one is begun.
        if test -z "$cur"; and string match -qr -- '^--?vm$' $last; and not string match -q -- '/*' $line
            continue
        end
        test -n "$line"; and set -a found $line
    end
    if not set -q found[1]
        __fish_complete_path $cur
        return
    end
    for line in $found
        printf '%s\n' $prefix(string replace -- ':' \t $line)
    end
end

complete -c NAME -e
complete -c NAME -f -a '(__NAME_complete)'
