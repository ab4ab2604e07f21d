//! What is measured: one file for each section of the report.

mod attach;
mod batch;
mod bounded;
mod bulk;
mod clients;
mod fold;
mod folders;
mod growth;
mod history;
mod hits;
mod hot;
mod keys;
mod lists;
mod memory;
mod order;
pub(crate) mod read;
mod redis;
mod snapshot;
mod steady;
mod streams;
mod tracks;
mod tuning;
mod windows;

use anyhow::Result;

use crate::options::{Options, Section};
use crate::report::Measured;

pub(crate) fn run(section: Section, options: &Options) -> Result<Measured> {
    match section {
        Section::Hot => hot::run(options),
        Section::Clients => clients::run(options),
        Section::Hits => hits::run(options),
        Section::Keys => keys::run(options),
        Section::Batch => batch::run(options),
        Section::Bulk => bulk::run(options),
        Section::Redis => redis::run(options),
        Section::Order => order::run(options),
        Section::Tracks => tracks::run(options),
        Section::History => history::run(options),
        Section::Read => read::run(options),
        Section::Lists => lists::run(options),
        Section::Bounded => bounded::run(options),
        Section::Windows => windows::run(options),
        Section::Streams => streams::run(options),
        Section::Fold => fold::run(options),
        Section::Folders => folders::run(options),
        Section::Memory => memory::run(options),
        Section::Growth => growth::run(options),
        Section::Tuning => tuning::run(options),
        Section::Snapshot => snapshot::run(options),
        Section::Steady => steady::run(options),
    }
}
