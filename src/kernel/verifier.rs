//! The verifier's log, reduced to the source line, the reason and the last lines.

use crate::kernel::core_relo::POISON;

/// How many lines of the log's end are kept.
const TAIL_LINES: usize = 16;
const TAIL_BYTES: usize = 2048;
/// How many bytes of the log are kept for a user who asks for it.
const WHOLE_BYTES: usize = 1 << 20;
/// How many bytes of one line a message contains.
const LINE_BYTES: usize = 120;

/// The verifier's explanation of a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierLog {
    /// The source line in question, `code @ file.c:12` on Linux 6.9 and later, `code` before; None without line
    /// records.
    pub line: Option<String>,
    /// The last message, as the reason.
    pub reason: String,
    /// The last lines.
    pub tail: String,
    /// The end of the log, up to a mebibyte of it.
    pub whole: String,
}

impl VerifierLog {
    /// Reads a log as BPF_PROG_LOAD left it in a buffer; None if the log is empty.
    pub fn read(buffer: &[u8]) -> Option<Self> {
        let end = buffer.iter().position(|b| *b == 0).unwrap_or(buffer.len());
        let text = String::from_utf8_lossy(&buffer[..end]);
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !statistics(line)).collect();
        let reason = lines.iter().rev().find(|line| !state(line)).or(lines.last())?;
        let line = lines.iter().rev().find_map(|line| line.strip_prefix("; "));
        let tail = shortened(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"), TAIL_BYTES);
        let whole = shortened(lines.join("\n"), WHOLE_BYTES);
        Some(Self { line: line.map(|l| bounded(l.trim())), reason: bounded(reason.trim()), tail, whole })
    }

    /// The source line for a message, starting with " at"; empty if there is none.
    pub fn at(&self) -> String {
        self.line.as_ref().map(|line| format!(" at `{line}`")).unwrap_or_default()
    }

    /// True if the program was refused because it is loaded without CAP_PERFMON.
    ///
    /// The helpers are those that bpf_base_func_proto (kernel/bpf/helpers.c) provides only with CAP_PERFMON; the
    /// messages are those that kernel/bpf/verifier.c writes if `allow_ptr_leaks` is off.
    pub fn needs_perfmon(&self) -> bool {
        const HELPERS: [&str; 13] = [
            "bpf_probe_read#",
            "bpf_probe_read_str#",
            "bpf_probe_read_user#",
            "bpf_probe_read_kernel#",
            "bpf_probe_read_user_str#",
            "bpf_probe_read_kernel_str#",
            "bpf_trace_printk#",
            "bpf_trace_vprintk#",
            "bpf_snprintf#",
            "bpf_snprintf_btf#",
            "bpf_get_current_task#",
            "bpf_get_current_task_btf#",
            "bpf_task_pt_regs#",
        ];
        const SENTENCES: [&str; 6] = [
            "leaks addr",
            "pointer comparison prohibited",
            "pointer -= pointer prohibited",
            "partial copy of pointer",
            "attempt to corrupt spilled pointer",
            "prohibited for !root",
        ];
        let refused = self.reason.contains("cannot use helper") || self.reason.contains("unknown func");
        refused && HELPERS.iter().any(|helper| self.reason.contains(helper))
            || SENTENCES.iter().any(|sentence| self.reason.contains(sentence))
            || self.reads_unwritten_stack()
    }

    /// True if the program reads stack that it did not write: CAP_PERFMON allows this, and it is easy to fix in the
    /// program.
    fn reads_unwritten_stack(&self) -> bool {
        ["invalid read from stack", "invalid indirect read from stack"].iter().any(|start| self.reason.starts_with(start))
    }

    /// A remedy other than host scope; empty if none is known.
    pub fn remedy(&self) -> &'static str {
        if self.reads_unwritten_stack() {
            "; or initialize every byte of the stack that the program reads, padding included"
        } else {
            ""
        }
    }

    /// True if the verifier reached an instruction that CO-RE poisoned.
    pub fn is_poisoned(&self) -> bool {
        self.reason.contains(&format!("#{POISON}"))
    }
}

/// The last lines of a text that fit into some bytes.
fn shortened(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let least = text.len() - bytes;
        let cut = (least..=text.len()).find(|n| text.is_char_boundary(*n)).unwrap_or(text.len());
        let cut = text[cut..].find('\n').map_or(cut, |n| cut + n + 1);
        text.drain(..cut);
    }
    text
}

/// True for register states, which follow the message that they explain.
fn state(line: &str) -> bool {
    ["cur state:", "old state:"].iter().any(|start| line.starts_with(start))
}

/// True for lines of statistics.
fn statistics(line: &str) -> bool {
    ["processed ", "verification time", "stack depth"].iter().any(|start| line.starts_with(start))
}

fn bounded(line: &str) -> String {
    if line.len() <= LINE_BYTES { line.to_owned() } else { format!("{}…", &line[..cut_back(line, LINE_BYTES)]) }
}

/// The last character boundary at or before `at`.
fn cut_back(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|n| text.is_char_boundary(*n)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_line_before_the_statistics() {
        let log = VerifierLog::read(
            b"0: R1=ctx() R10=fp0\n; return *(int *)0; @ broken.bpf.c:12\n0: (b7) r1 = 0\n1: (61) r0 = *(u32 *)(r1 +0)\n\
              R1 invalid mem access 'scalar'\nprocessed 2 insns (limit 1000000) max_states_per_insn 0\n\0garbage",
        )
        .unwrap();
        assert_eq!(log.line.as_deref(), Some("return *(int *)0; @ broken.bpf.c:12"));
        assert_eq!(log.reason, "R1 invalid mem access 'scalar'");
        assert_eq!(log.at(), " at `return *(int *)0; @ broken.bpf.c:12`");
        assert!(log.tail.ends_with("'scalar'") && log.tail.starts_with("0: R1"));
        assert!(!log.needs_perfmon());
    }

    #[test]
    fn register_states_are_not_the_reason() {
        let log =
            VerifierLog::read(b"infinite loop detected at insn 20\ncur state: R0=scalar()\nold state: R0=scalar()\n").unwrap();
        assert_eq!(log.reason, "infinite loop detected at insn 20");
        assert_eq!(log.tail.lines().count(), 3);
    }

    #[test]
    fn an_empty_log_is_not_an_explanation() {
        assert_eq!(VerifierLog::read(b""), None);
        assert_eq!(VerifierLog::read(&[0; 64]), None);
        assert_eq!(VerifierLog::read(b"processed 0 insns\n"), None);
    }

    #[test]
    fn refusals_for_lack_of_perfmon_are_recognized() {
        let needs = |text: &str| VerifierLog::read(text.as_bytes()).unwrap().needs_perfmon();
        assert!(needs("program of this type cannot use helper bpf_probe_read_kernel#113"));
        assert!(needs("unknown func bpf_trace_printk#6"));
        assert!(needs("R0 leaks addr as return value"));
        assert!(needs("R2 pointer -= pointer prohibited"));
        assert!(needs("R2 variable stack access prohibited for !root, var_off=(0x0; 0x7) off=-8"));
        assert!(needs("invalid read from stack off -8+4 size 8"));
        assert!(!needs("program of this type cannot use helper bpf_redirect#23"));
        assert!(!needs("R1 type=scalar expected=fp"));
    }

    #[test]
    fn tails_are_bounded() {
        let long = "ü".repeat(5000);
        let log = VerifierLog::read(long.as_bytes()).unwrap();
        assert!(log.tail.len() <= TAIL_BYTES && log.reason.len() <= LINE_BYTES + 4);
        let many = "line of the log\n".repeat(1000);
        assert!(VerifierLog::read(many.as_bytes()).unwrap().tail.lines().count() <= TAIL_LINES);
    }
}
