#compdef bpfman-hook
# zsh completion for bpfman-hook; `bpfman-hook completions zsh` prints this file.
_bpfman-hook() {
    local line value
    local -a described unfinished
    for line in "${(@f)$(${(Q)words[1]} __complete zsh $((CURRENT - 1)) -- "${(@Q)words[1,CURRENT]}" 2>/dev/null)}"; do
        value=${line%%$'\t'*}
        [[ -n $value ]] || continue
        if [[ $value == *[=:/] ]]; then
            unfinished+=("$value")
        elif [[ $line == *$'\t'* ]]; then
            described+=("${value//:/\\:}:${line#*$'\t'}")
        else
            described+=("${value//:/\\:}")
        fi
    done
    (( ${#described} )) && _describe -V 'bpfman-hook' described
    (( ${#unfinished} )) && compadd -S '' -a unfinished
}
if [[ $funcstack[1] == _bpfman-hook ]]; then
    _bpfman-hook "$@"
else
    compdef _bpfman-hook bpfman-hook
fi
