//! The part of a record that listings of programs and links are made of, borrowed from where the record lies: with thousands of
//! owners, taking a record apart is what a listing spends its time on.

use std::borrow::Cow;

use serde::Deserialize;

use crate::model::attach_point::{AttachPoint, ProgramKind, Scope};
use crate::model::ids::OwnerNo;
use crate::model::record::Numbered;

/// Of [`OwnerRecord`](crate::model::record::OwnerRecord).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ListedOwner<'a> {
    /// The record's number.
    pub no: OwnerNo,
    /// Its programs.
    #[serde(borrow)]
    pub programs: Vec<ListedProgram<'a>>,
    /// Its links.
    #[serde(borrow)]
    pub links: Vec<ListedLink<'a>>,
    /// Where the programs came from.
    #[serde(borrow)]
    pub images: Vec<ListedImage<'a>>,
}

/// Of [`ProgramRecord`](crate::model::record::ProgramRecord).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ListedProgram<'a> {
    /// Its pin.
    #[serde(borrow)]
    pub pin: Cow<'a, str>,
    /// The function.
    #[serde(borrow)]
    pub function: Cow<'a, str>,
    /// Its kind.
    pub kind: ProgramKind,
    /// How far it reaches.
    pub scope: Scope,
    /// Index into the images.
    pub image: usize,
    /// The kernel's id.
    pub id: Option<u32>,
}

/// Of [`LinkRecord`](crate::model::record::LinkRecord).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ListedLink<'a> {
    /// The pin of its program.
    #[serde(borrow)]
    pub program: Cow<'a, str>,
    /// Where it attaches.
    pub at: AttachPoint,
    /// The kernel's id.
    pub id: Option<u32>,
}

/// Of [`ImageRecord`](crate::model::record::ImageRecord).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ListedImage<'a> {
    /// As it was asked for.
    #[serde(borrow)]
    pub reference: Cow<'a, str>,
    /// What it resolved to.
    #[serde(borrow)]
    pub digest: Cow<'a, str>,
    /// The rule that allowed it.
    #[serde(borrow)]
    pub rule: Cow<'a, str>,
    /// What that rule found.
    #[serde(borrow)]
    pub verdict: ListedVerdict<'a>,
}

/// Of [`Verdict`](crate::model::bytecode::Verdict).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ListedVerdict<'a> {
    /// `verified` or `unsigned`.
    #[serde(borrow)]
    pub verdict: Cow<'a, str>,
    /// By what.
    #[serde(borrow, default)]
    pub by: Option<Cow<'a, str>>,
    /// In which layout.
    #[serde(borrow, default)]
    pub layout: Option<Cow<'a, str>>,
}

impl Numbered for ListedOwner<'_> {
    fn number(&self) -> OwnerNo {
        self.no
    }
}
