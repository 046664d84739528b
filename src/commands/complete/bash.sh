# bash completion for bpfman-hook; `bpfman-hook completions bash` prints this file.
_bpfman_hook() {
    local line=${COMP_LINE:0:COMP_POINT} current begin candidate
    local -a words
    # COMP_WORDS is split at `:` and `=` too, which image references and options contain.
    read -ra words <<<"$line"
    case $line in *[[:space:]]) words+=("") ;; esac
    current=${words[${#words[@]} - 1]}
    # bash replaces only what follows the last of these characters.
    begin=
    case $current in *[=:]*) begin=${current%"${current##*[=:]}"} ;; esac
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("${candidate#"$begin"}")
    done < <("${words[0]/#\~/$HOME}" __complete bash "$((${#words[@]} - 1))" -- "${words[@]}" 2>/dev/null)
    case ${COMPREPLY[0]-} in *[=:/]) [ "${#COMPREPLY[@]}" -ne 1 ] || compopt -o nospace ;; esac
}
complete -o bashdefault -F _bpfman_hook bpfman-hook
