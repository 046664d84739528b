//! The word that was probably meant by an unknown subcommand. clap suggests only words of which most letters are in
//! their places, so not `xdp` for `xpd`.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};

use crate::model::text::nearest;

/// Adds the most similar subcommand to an error that names none.
pub fn added(mut error: Error, command: &Command, args: &[OsString]) -> Error {
    let kind = match error.kind() {
        ErrorKind::InvalidSubcommand if error.get(ContextKind::SuggestedSubcommand).is_none() => ContextKind::InvalidSubcommand,
        // After an argument, as in `attach 1 xpd`, clap takes the word for another argument.
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        _ => return error,
    };
    let Some(ContextValue::String(word)) = error.get(kind) else { return error };
    let at = args.iter().skip(1).filter_map(|arg| arg.to_str()).take_while(|arg| arg != word);
    let parent = at.fold(command, |command, arg| command.find_subcommand(arg).unwrap_or(command));
    let known = parent.get_subcommands().filter(|inner| !inner.is_hide_set()).map(Command::get_name);
    if let Some(meant) = nearest(word, known).filter(|_| !word.starts_with('-')) {
        let tip = StyledStr::from(format!("a similar subcommand exists: '{meant}'"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}
