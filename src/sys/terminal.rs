//! What is known about the terminal at standard output.

use std::io::{self, IsTerminal as _};

use rustix::termios::tcgetwinsize;

/// True if standard output is a terminal.
pub fn is_stdout() -> bool {
    io::stdout().is_terminal()
}

/// The number of columns of the terminal at standard output; None if it is none, or does not say.
pub fn columns() -> Option<usize> {
    tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}
