use anyhow::Result;

use crate::options::Options;
use crate::report::PartReport;

pub(crate) fn run(_options: &Options, _report: &mut PartReport) -> Result<()> {
    anyhow::bail!("not written yet")
}
