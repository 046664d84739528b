//! Our documents as man pages: the parts of Markdown that docs/ uses, in the macros of man(7).

use std::fmt::Write as _;

/// Text of a line, with everything escaped that roff would interpret.
pub fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// The body of a man page: the document without its title. What comes before the first heading is the DESCRIPTION.
pub fn body(markdown: &str) -> String {
    let mut roff = String::from(".SH DESCRIPTION\n");
    let mut blocks = RoffBlocks { lines: markdown.lines().collect(), at: 0 };
    while let Some(block) = blocks.next() {
        match block {
            RoffBlock::Title => {}
            RoffBlock::Heading(text) => _ = writeln!(roff, ".SH {}", escaped(&plain(&text).to_uppercase())),
            RoffBlock::Subheading(text) => _ = writeln!(roff, ".SS {}", inline(&text)),
            RoffBlock::Paragraph(text) => _ = writeln!(roff, ".PP\n{}", inline(&text)),
            RoffBlock::Item(text) => _ = writeln!(roff, ".IP \\(bu 2\n{}", inline(&text)),
            RoffBlock::Code(lines) => {
                roff.push_str(".PP\n.RS 4\n.nf\n");
                lines.iter().for_each(|line| _ = writeln!(roff, "{}", escaped(line)));
                roff.push_str(".fi\n.RE\n");
            }
            RoffBlock::Table(rows) => table(&mut roff, &rows),
        }
    }
    roff
}

/// A row becomes a paragraph: the first cell is its tag, the others follow with the names of their columns.
fn table(roff: &mut String, rows: &[Vec<String>]) {
    let Some((heading, rows)) = rows.split_first() else { return };
    for row in rows {
        let Some((first, others)) = row.split_first() else { continue };
        let named = others.iter().zip(heading.iter().skip(1)).filter(|(cell, _)| !cell.is_empty());
        let cells: Vec<String> = named
            .map(|(cell, name)| match others.len() {
                1 => inline(cell),
                _ => format!("{}: {}", inline(name), inline(cell)),
            })
            .collect();
        _ = writeln!(roff, ".TP\n{}\n{}", inline(first), cells.join(".\n.br\n"));
    }
}

enum RoffBlock {
    Title,
    Heading(String),
    Subheading(String),
    Paragraph(String),
    Item(String),
    Code(Vec<String>),
    Table(Vec<Vec<String>>),
}

/// The blocks of a document, one after another.
struct RoffBlocks<'a> {
    lines: Vec<&'a str>,
    at: usize,
}

impl<'a> RoffBlocks<'a> {
    fn next(&mut self) -> Option<RoffBlock> {
        while self.lines.get(self.at).is_some_and(|line| line.trim().is_empty()) {
            self.at += 1;
        }
        let line = *self.lines.get(self.at)?;
        if line.starts_with("```") {
            self.at += 1;
            let code = self.take_while(|line| !line.starts_with("```"));
            self.at += 1;
            return Some(RoffBlock::Code(code.into_iter().map(str::to_owned).collect()));
        }
        if line.starts_with("    ") {
            let code = self.take_while(|line| line.starts_with("    ") || line.trim().is_empty());
            let mut code: Vec<String> = code.into_iter().map(|line| line.get(4..).unwrap_or_default().to_owned()).collect();
            while code.last().is_some_and(String::is_empty) {
                code.pop();
            }
            return Some(RoffBlock::Code(code));
        }
        if line.starts_with('|') {
            let rows = self.take_while(|line| line.starts_with('|'));
            let is_rule = |row: &&str| row.chars().all(|c| matches!(c, '|' | '-' | ' ' | ':'));
            return Some(RoffBlock::Table(rows.into_iter().filter(|row| !is_rule(row)).map(cells).collect()));
        }
        self.at += 1;
        if let Some(heading) = line.strip_prefix('#') {
            let text = heading.trim_start_matches('#').trim().to_owned();
            return Some(match heading.len() - heading.trim_start_matches('#').len() {
                0 => RoffBlock::Title,
                1 => RoffBlock::Heading(text),
                _ => RoffBlock::Subheading(text),
            });
        }
        let item = ["* ", "- "].iter().find_map(|mark| line.strip_prefix(mark)).or_else(|| numbered(line));
        let begins = |line: &str| {
            line.trim().is_empty()
                || ["* ", "- ", "#", "|", "```"].iter().any(|mark| line.starts_with(mark))
                || numbered(line).is_some()
        };
        let more = self.take_while(|line| !begins(line));
        let text = [item.unwrap_or(line)].into_iter().chain(more).map(str::trim).collect::<Vec<_>>().join(" ");
        Some(if item.is_some() { RoffBlock::Item(text) } else { RoffBlock::Paragraph(text) })
    }

    fn take_while(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<&'a str> {
        let from = self.at;
        while self.lines.get(self.at).is_some_and(|line| wanted(line)) {
            self.at += 1;
        }
        self.lines[from..self.at].to_vec()
    }
}

/// The text of `1. text`, with its number.
fn numbered(line: &str) -> Option<&str> {
    let (number, _) = line.split_once(". ")?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(line)
}

fn cells(row: &str) -> Vec<String> {
    let row = row.trim().trim_matches('|').replace("\\|", "\u{1}");
    row.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
}

/// Text with code and strong text in bold, and links as their text.
fn inline(text: &str) -> String {
    let text = linked(text);
    let (mut roff, mut bold) = (String::new(), false);
    let mut rest = escaped(&text).replace("**", "`");
    while let Some(at) = rest.find('`') {
        roff.push_str(&rest[..at]);
        bold = !bold;
        roff.push_str(if bold { "\\fB" } else { "\\fR" });
        rest = rest.split_off(at + 1);
    }
    roff.push_str(&rest);
    if bold {
        roff.push_str("\\fR");
    }
    roff
}

fn plain(text: &str) -> String {
    linked(text).replace(['`', '*'], "")
}

/// Replaces `[text](target)` by its text; a target on the web follows it.
fn linked(text: &str) -> String {
    let (mut shown, mut rest) = (String::new(), text);
    while let Some((before, link)) = rest.split_once('[') {
        let parts = link.split_once("](").and_then(|(name, after)| Some((name, after.split_once(')')?)));
        shown.push_str(before);
        match parts {
            Some((name, (target, after))) => {
                shown.push_str(name);
                if target.starts_with("http") {
                    _ = write!(shown, " <{target}>");
                }
                rest = after;
            }
            None => {
                shown.push('[');
                rest = link;
            }
        }
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_the_macros_of_man() {
        let markdown = "\
# Title

First *line*
goes on with `a-b` and [a page](other.md).

## A heading

* one
  more
* **two**

```toml
.x = 1
[[rule]]
```

| key | meaning |
| --- | --- |
| `a` | what `x \\| y` is |

    indented
";
        let expected = "\
.SH DESCRIPTION
.PP
First *line* goes on with \\fBa\\-b\\fR and a page.
.SH A HEADING
.IP \\(bu 2
one more
.IP \\(bu 2
\\fBtwo\\fR
.PP
.RS 4
.nf
\\&.x = 1
[[rule]]
.fi
.RE
.TP
\\fBa\\fR
what \\fBx | y\\fR is
.PP
.RS 4
.nf
indented
.fi
.RE
";
        assert_eq!(body(markdown), expected);
        assert_eq!(inline("see [the guide](https://x.org/a) and a[0]"), "see the guide <https://x.org/a> and a[0]");
    }
}
