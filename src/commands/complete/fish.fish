# fish completion for bpfman-hook; `bpfman-hook completions fish` prints this file.
function __bpfman_hook_complete
    set -l words (commandline -opc)
    $words[1] __complete fish (count $words) -- $words (commandline -ct) 2>/dev/null
end
complete --command bpfman-hook --no-files --keep-order --arguments '(__bpfman_hook_complete)'
