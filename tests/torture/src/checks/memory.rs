use super::variant::Variant;
use crate::options::Options;
use crate::report::PartReport;

pub(super) fn run(_options: &Options, _report: &mut PartReport, _variant: &Variant) {}
